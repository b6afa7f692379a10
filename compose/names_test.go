//go:build linux

package compose

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// inside returns what a command in a service writes.
func inside(t testing.TB, r *Running, name string, command ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	p, err := r.Service(name).Exec(testkit.Deadline(t), sandbox.WithCommand(command[0], command[1:]...), sandbox.WithStdout(&out))
	if err != nil {
		return "", err // it may not be there yet
	}
	_, err = p.Wait()
	return strings.TrimSpace(out.String()), err
}

// Services are found by their names, which may have underscores, by aliases, by the names of
// containers and by links, on networks that they share alone; and a service finds itself, at the
// address that others use.
func TestRootlessNames(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": `
x-serve: &serve
  image: ./busybox.tar
  command: [sh, -c, "mkdir /tmp/w; hostname >/tmp/w/index.html; a=$$(busybox nslookup $$(hostname) | sed -n '/^Address: 198/{s/.* //p;q}'); exec httpd -f -p $$a:80 -h /tmp/w"]
  stop_signal: KILL
services:
  my_db:
    <<: *serve
    container_name: Project-DB
    networks: {back: {aliases: [db.example.org, primary]}}
  queue: {<<: *serve, hostname: broker, networks: [back]}
  other: {<<: *serve, networks: {front: {aliases: [primary]}}}
  web: {<<: *serve, links: ["my_db:store"], networks: [back]}
networks: {front: , back: }
`}))
	require.NoError(t, r.Ready())
	for _, name := range []string{"my_db", "project-db", "Project-DB", "db.example.org", "primary", "store"} {
		testkit.Eventually(t, name, func() bool { // httpd may not listen yet
			got, _ := inside(t, r, "web", "get", name, "80", "/")
			return got == "my_db"
		})
	}
	testkit.Eventually(t, "itself", func() bool {
		got, _ := inside(t, r, "queue", "get", "broker", "80", "/")
		return got == "broker"
	})
	for _, command := range [][]string{{"my_db", "other"}, {"web", "broker"}, {"web", "other"}, {"other", "store"}} {
		_, err := inside(t, r, command[0], "get", command[1], "80", "/")
		require.Error(t, err, "%s to %s", command[0], command[1])
	}
	require.NoError(t, r.Close())
}

// The healthcheck of an image counts, unless the file has one, or none; it takes one to depend on.
func TestRootlessImageHealth(t *testing.T) {
	dir := testkit.OpenDir(t)
	testkit.BusyboxImage(t, filepath.Join(dir, "ill.tar"), `{"Healthcheck": {"Test": ["CMD-SHELL", "touch /tmp/checked; exit 1"], "Interval": 1, "Retries": 1}}`)
	testkit.BusyboxImage(t, filepath.Join(dir, "well.tar"), `{"Healthcheck": {"Test": ["CMD", "test", "-e", "/tmp/up"]}}`)
	start := func(content string) *Running {
		testkit.WriteFile(t, filepath.Join(dir, "compose.yaml"), content, 0o644)
		return up(t, projectIn(t, dir))
	}
	const sleep = "command: sleep 1000000, stop_signal: KILL"
	r := start(`
services:
  well: {image: ./well.tar, command: [sh, -c, "sleep 0.2; touch /tmp/up; exec sleep 1000000"], stop_signal: KILL}
  disabled: {image: ./ill.tar, ` + sleep + `, healthcheck: {disable: true}}
  none: {image: ./ill.tar, ` + sleep + `, healthcheck: {test: [NONE]}}
  own: {image: ./ill.tar, ` + sleep + `, healthcheck: {test: "true"}}
  after: {image: ./busybox.tar, ` + sleep + `, depends_on: {well: {condition: service_healthy}}}
`)
	require.NoError(t, r.Ready(), "%+v", r.Status())
	var healthy []string
	for _, s := range r.Status() {
		if s.Health == "healthy" {
			healthy = append(healthy, s.Service)
		}
	}
	require.Equal(t, []string{"own", "well"}, healthy)
	require.NoError(t, r.Close())

	r = start("services:\n  one: {image: ./ill.tar, " + sleep + ", healthcheck: {interval: 10ms, retries: 1, start_interval: 10ms}}\n")
	testkit.Eventually(t, "a check", func() bool {
		if r.Service("one") == nil || r.Status()[0].Health != "starting" {
			return false
		}
		_, err := inside(t, r, "one", "test", "-e", "/tmp/checked")
		return err == nil
	})
	require.NoError(t, r.Close())
	require.ErrorIs(t, r.Ready(), ErrEnded)
}

// Images of databases fill them with a server that nobody else reaches: a check that passes before
// Docker would have asked does not count until the service listens on one of its ports.
func TestRootlessHealthWhilePreparing(t *testing.T) {
	dir := testkit.OpenDir(t)
	testkit.BusyboxImage(t, filepath.Join(dir, "db.tar"), `{"ExposedPorts": {"81/tcp": {}, "80/tcp": {}}, "Healthcheck": {"Test": ["CMD", "test", "-e", "/tmp/up"]}}`)
	testkit.WriteFile(t, filepath.Join(dir, "compose.yaml"), `
x-prepares: &prepares [sh, -c, "touch /tmp/up; httpd -f -p 127.0.0.1:80 & sleep 0.5; kill $$!; wait; touch /tmp/done; exec httpd -f -p 80 -h /etc"]
services:
  db: {image: ./db.tar, command: *prepares, stop_signal: KILL}
  published: {image: ./busybox.tar, command: *prepares, stop_signal: KILL, ports: ["80"], healthcheck: {test: test -e /tmp/up}}
  worker: {image: ./db.tar, command: [sh, -c, "touch /tmp/up; exec sleep 1000000"], stop_signal: KILL, healthcheck: {interval: 10m, start_period: 1m, start_interval: 300ms}}
  udp: {image: ./busybox.tar, command: [sh, -c, "touch /tmp/up; exec sleep 1000000"], stop_signal: KILL, ports: ["53/udp"], healthcheck: {test: test -e /tmp/up, interval: 10m}}
  after: {image: ./busybox.tar, command: [sh, -c, "get db 80 /hostname && get published 80 /hostname"], depends_on: {db: {condition: service_healthy}, published: {condition: service_healthy}, worker: {condition: service_healthy}, udp: {condition: service_healthy}}}
`, 0o644)
	r := up(t, projectIn(t, dir))
	require.NoError(t, r.Ready())
	for _, name := range []string{"db", "published"} {
		_, err := inside(t, r, name, "test", "-e", "/tmp/done")
		require.NoError(t, err, name)
	}
	logged(t, r, "after", "db")
	require.NoError(t, r.Close())
}

// An image's numbers are bounded: each check is a command.
func TestImageHealth(t *testing.T) {
	of := func(h health, i *image.Healthcheck) health {
		got := h.with(i)
		require.NotNil(t, got)
		return *got
	}
	wild := of(health{}, &image.Healthcheck{Command: []string{"x"}, Interval: 1, Timeout: 1 << 60, StartPeriod: 1 << 62, Retries: 1 << 40})
	require.Equal(t, of(health{interval: 1e9, timeout: maxTimeout, start: 24 * 3600e9, retries: maxRetries}, &image.Healthcheck{Command: []string{"x"}}), wild)
	require.Equal(t, of(health{test: []string{"x"}}, nil), of(health{}, &image.Healthcheck{Command: []string{"x"}, Interval: -1, Timeout: -1, StartPeriod: -1, Retries: -1}))
	require.Equal(t, []string{"y"}, of(health{test: []string{"y"}}, &image.Healthcheck{Command: []string{"x"}}).test)
	require.Nil(t, (&health{interval: 1}).with(nil))
	require.Nil(t, (*health)(nil).with(&image.Healthcheck{Command: []string{"x"}}))
}

// Who depends on the health of a service that has no check, not even its image's, learns that when
// the image is there.
func TestRootlessNoHealth(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": "services:\n  web:\n    image: ./busybox.tar\n    depends_on:\n      db: {condition: service_healthy}\n  db: {image: ./busybox.tar}\n"}))
	var wrong *Error
	require.ErrorAs(t, r.Ready(), &wrong)
	require.Equal(t, 5, wrong.Line)
	require.ErrorContains(t, wrong, "services.web.depends_on.db.condition: db has no healthcheck, nor has its image")
}

// Services give files set-uid and set-gid bits, as images do that begin by preparing directories,
// unless one can write to a directory of this machine, of which it could pass files to others.
func TestRootlessSetID(t *testing.T) {
	const compose = `
services:
  own: {image: ./busybox.tar, command: sleep 1000000, stop_signal: KILL, volumes: ['vol:/v', '/own', './ro:/ro:ro']}
volumes: {vol: }
`
	const bind = `  bind: {image: ./busybox.tar, command: sleep 1000000, stop_signal: KILL, volumes: ['vol:/v:ro', './dir:/dir']}
volumes:`
	chmod := func(r *Running, service, dir string) error {
		_, err := inside(t, r, service, "sh", "-c", "mkdir -p "+dir+"/d && touch "+dir+"/f && busybox chmod 3775 "+dir+"/d && busybox chmod 4755 "+dir+"/f && test -g "+dir+"/d && test -u "+dir+"/f")
		return err
	}
	r := up(t, project(t, map[string]string{"compose.yaml": compose}))
	require.NoError(t, r.Ready())
	for _, dir := range []string{"/srv", "/v", "/own"} {
		require.NoError(t, chmod(r, "own", dir), dir)
	}
	require.NoError(t, r.Close())

	r = up(t, project(t, map[string]string{"compose.yaml": strings.Replace(compose, "volumes: {vol", bind+" {vol", 1)}))
	require.NoError(t, r.Ready())
	require.Error(t, chmod(r, "bind", "/dir"))
	require.Error(t, chmod(r, "own", "/own"))
	require.NoError(t, r.Close())

	r = up(t, project(t, map[string]string{"compose.yaml": compose}, VolumeDir(testkit.OpenDir(t))))
	require.NoError(t, r.Ready())
	require.Error(t, chmod(r, "own", "/v"))
	require.NoError(t, r.Close())
}

// Ended is closed when nothing of the project is left, whether it was closed or has failed.
func TestRootlessEnded(t *testing.T) {
	marker := testkit.ALongTime()
	r := up(t, project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, command: sleep " + marker + ", stop_signal: KILL}\n"}))
	require.NoError(t, r.Ready())
	select {
	case <-r.Ended():
		require.Fail(t, "it goes on")
	default:
	}
	go func() { _ = r.Close() }()
	<-r.Ended()
	require.Empty(t, testkit.Running(marker))
	require.NoError(t, r.Err())

	r = up(t, project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, command: 'false'}\n  two: {image: ./busybox.tar, command: sleep " + marker + ", stop_signal: KILL}\n"}))
	<-r.Ended()
	require.Empty(t, testkit.Running(marker))
	require.ErrorContains(t, r.Err(), "one")
}

// A service that begins as root gives its volume to another user, and becomes that one, as images
// of databases do. When it is started again, the volume is as it was.
func TestVolumeOwners(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs")
	const entry = "echo db:x:99:98::/:/bin/sh >>/etc/passwd; test $$(stat -c %u /v) != 0 || chown 99:98 /v; stat -c '%u:%g %n' /v /v/* 2>/dev/null; exec su db -c 'umask 077; cat /v/file; echo kept >/v/file; exit 3'"
	r := up(t, project(t, map[string]string{"compose.yaml": "services:\n  db: {image: ./busybox.tar, command: [sh, -c, \"" + entry + "\"], restart: 'on-failure:1', volumes: ['vol:/v']}\nvolumes: {vol: }\n"}))
	require.Error(t, r.Err())
	said := ""
	for line := range r.Follow(t.Context()) {
		said += line.Text + "\n"
	}
	require.Regexp(t, `^99:98 /v\n.*No such file.*\n99:98 /v\n99:98 /v/file\nkept\n$`, said)
}

// VolumeDisk has named volumes, and those of a service's own, on disk: as large as it says, shared
// by the services that have it, and gone with the project, without a file with a name.
func TestVolumeDisk(t *testing.T) {
	testkit.Need(t, "disks for file systems")
	dir := t.TempDir()
	p := project(t, map[string]string{"compose.yaml": `
services:
  one:
    image: ./busybox.tar
    command: [sh, -c, "df -k /v /own; echo kept >/v/file; ls /v"]
    volumes: ['vol:/v', /own]
  two:
    image: ./busybox.tar
    command: [sh, -c, "cat /v/file; echo x >/v/x || echo read-only"]
    volumes: ['vol:/v:ro']
    depends_on: {one: {condition: service_completed_successfully}}
volumes: {vol: }
`}, VolumeDisk(dir, 32*sandbox.MiB))
	for range 2 { // the second time, nothing is there
		r := up(t, p)
		require.NoError(t, r.Err())
		said := map[string]string{}
		for line := range r.Follow(t.Context()) {
			said[line.Service] += line.Text + "\n"
		}
		require.Regexp(t, `(?s)/dev/\S+ +[23]\d{4} .* /v\n.*/dev/\S+ +[23]\d{4} .* /own\n`, said["one"])
		require.Contains(t, said["two"], "kept\n")
		require.Contains(t, said["two"], "read-only")
		require.Equal(t, 1, strings.Count(said["one"], "file"))
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
	_, err := os.Stat(dir)
	require.NoError(t, err)

	p = project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, volumes: ['vol:/v']}\nvolumes: {vol: }\n"}, VolumeDisk(filepath.Join(dir, "missing"), 32*sandbox.MiB))
	require.ErrorIs(t, up(t, p).Ready(), os.ErrNotExist)
}

// A later file takes back what is not supported, and what was published; an override file is merged
// if a directory is named.
func TestReset(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml":          base + "    build: .\n    ipc: host\n    ports: ['80', '81']\n    devices: [/dev/x]",
		"compose.override.yaml": "services:\n  web:\n    build: !reset null\n    ipc: !override host\n    ports: !override ['82']\n    devices: !reset []\n",
	})
	_, err := Load(filepath.Join(dir, "compose.yaml"), Environ())
	require.ErrorContains(t, err, "services.web.build")
	_, err = Load(dir, Environ())
	require.ErrorContains(t, err, "compose.override.yaml:4: services.web.ipc")
	require.NotContains(t, err.Error(), "build")
	p, err := Load(dir, Environ(), Ignore("ipc"))
	require.NoError(t, err)
	require.Len(t, p.services[0].ports, 1)
	require.Equal(t, 82, p.services[0].ports[0].target)
	_, err = Load(dir, Environ(), Override(filepath.Join(dir, "compose.yaml")))
	require.ErrorContains(t, err, "compose.yaml:4: services.web.build", "those that are named, and no other")
}

// The environment, or .env, says the project's name and profiles where no option does.
func TestEnvironmentOfProject(t *testing.T) {
	dir := write(t, map[string]string{
		".env":         "COMPOSE_PROJECT_NAME=shop\nCOMPOSE_PROFILES=debug,other\nPART=x\n",
		"compose.yaml": "name: ${PART}-file\nservices:\n  web: {image: x, hostname: '$COMPOSE_PROJECT_NAME'}\n  debug: {image: x, profiles: [debug]}\n  more: {image: x, profiles: [more]}\n",
	})
	for _, test := range []struct {
		opts []Option
		name string
		want []string
	}{
		{nil, "shop", []string{"debug", "web"}},
		{[]Option{Name("given"), Profiles("more")}, "given", []string{"more", "web"}},
		{[]Option{Environ("COMPOSE_PROJECT_NAME=", "COMPOSE_PROFILES=")}, "x-file", []string{"web"}},
	} {
		p, err := Load(dir, append([]Option{Environ()}, test.opts...)...)
		require.NoError(t, err)
		require.Equal(t, test.name, p.Name())
		require.Equal(t, test.want, p.Services())
		require.Contains(t, describe(p), `hostname "`+test.name+`"`)
	}
}

// A bind's directory is made, as by Docker; what a service reads from its standard input does not
// come, and does not end, if the file says so, or that it is a terminal, as for shells that are to
// stay. Names of the file's own are known.
func TestRootlessInput(t *testing.T) {
	dir := testkit.OpenDir(t)
	testkit.WriteFile(t, filepath.Join(dir, "compose.yaml"), `
services:
  open: {image: ./busybox.tar, command: [sh, -c, "cat; echo ended"], stdin_open: true, stop_signal: KILL, volumes: ['./new/dir:/v']}
  shell: {image: ./busybox.tar, command: sh, tty: true, stop_signal: KILL}
  hosts:
    image: ./busybox.tar
    command: [sh, -c, "echo me >/tmp/x; httpd -p 80 -h /tmp; get own.test 80 /x; grep six /etc/hosts; get localhost 80 /x; get shell 80 /x || echo ended"]
    extra_hosts: ["own.test:127.0.0.1", "six.test=[::1]"]
  ends: {image: ./busybox.tar, command: [sh, -c, "cat; touch /v/x; echo ended"], volumes: ['./new/other:/v']}
`, 0o644)
	r := up(t, projectIn(t, dir))
	require.NoError(t, r.Ready())
	logged(t, r, "ends", "ended")
	logged(t, r, "hosts", "ended")
	var said []string
	for _, line := range r.Service("hosts").Logs() {
		if !line.Stderr {
			said = append(said, line.Text)
		}
	}
	require.Equal(t, []string{"me", "::1 six.test", "me", "ended"}, said)
	require.Equal(t, service.Running, r.Service("shell").State())
	require.NoError(t, r.Close())
	for line := range r.Follow(t.Context(), "open") {
		require.Fail(t, "it has ended", "%v", line)
	}
	require.DirExists(t, filepath.Join(dir, "new", "dir"))
	require.FileExists(t, filepath.Join(dir, "new", "other", "x"))
}

// What extra_hosts adds to is what a run has without: on no network, its own name, too.
func TestExtraHosts(t *testing.T) {
	for network, want := range map[string]string{"bridge": "127.0.0.1 localhost\n::1 localhost\n192.0.2.1 a.test\n", "none": "127.0.0.1 localhost\n127.0.0.1 own\n::1 localhost\n192.0.2.1 a.test\n"} {
		p, err := load(t, base+"    hostname: own\n    extra_hosts: [a.test=192.0.2.1]\n    network_mode: "+network+"\n")
		require.NoError(t, err)
		require.Contains(t, describe(p), "/etc/hosts: spec.File {Data:"+want+" Mode:")
	}
}
