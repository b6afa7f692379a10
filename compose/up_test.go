//go:build linux

package compose

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// always are the shapes that each change is tested with. SANDBOX_COMPOSE_SHAPES=all has the others.
var always = []string{"proxy-backend-db", "job-before-server", "production"}

// TestRootlessShapes starts what well-known Compose files describe, made anew for a busybox, and
// asks for what the file says that the answer is.
func TestRootlessShapes(t *testing.T) {
	files, err := filepath.Glob("testdata/shapes/*/compose.yaml")
	require.NoError(t, err)
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(always, name) {
				testkit.Need(t, "SANDBOX_COMPOSE_SHAPES=all")
			}
			dir := filepath.Join(testkit.OpenDir(t), "project")
			require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Dir(file))))
			p := projectIn(t, dir)
			r := up(t, p)
			require.NoError(t, r.Ready())
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			f, err := parse(file, content, newBudget())
			require.NoError(t, err)
			ask := f.raw["x-test"].(map[string]any)
			require.Equal(t, ask["want"], get(t, r, ask["service"].(string), ask["port"].(int), ask["path"].(string)))
			require.NoError(t, r.Close())
		})
	}
}

// A project ends as one, in the order of its dependencies, and says what happened.
func TestRootlessEvents(t *testing.T) {
	var mu sync.Mutex
	var events []string
	fetched := map[string]bool{}
	p := project(t, map[string]string{"compose.yaml": `
services:
  a: {image: ./busybox.tar, command: [sh, -c, "trap 'echo bye; exit 0' TERM; echo up; sleep 1000000 & wait"]}
  b: {image: ./busybox.tar, command: sleep 1000000, depends_on: [a], stop_signal: KILL, ports: ["9/udp", "9"]}
volumes: {}
`}, Observe(func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.State == Fetching {
			fetched[e.Service] = fetched[e.Service] || e.Fetch.Count == 1
		} else if e.State != Pending {
			events = append(events, e.Service+" "+string(e.State))
		}
	}))
	r := up(t, p)
	require.NoError(t, r.Ready())
	logged(t, r, "a", "up")
	status := r.Status()
	require.Len(t, status, 2)
	require.Equal(t, Ready, status[1].State)
	require.Equal(t, 1, status[1].Starts)
	require.Positive(t, status[1].PID)
	require.Len(t, status[1].Ports, 2)
	require.True(t, strings.HasPrefix(status[1].Ports[0], "127.0.0.1:") && strings.HasSuffix(status[1].Ports[0], "->9/udp"), "%q", status[1].Ports)
	require.Panics(t, func() { r.Addr("b", 10) })
	require.NoError(t, r.Close())
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"a starting", "a running", "b starting", "b running", "b stopping", "b ended", "a stopping", "a ended"}, events)
	require.Equal(t, map[string]bool{"a": true, "b": true}, fetched)
	var all []string
	for line := range r.Follow(context.Background(), "a", "nobody") {
		all = append(all, line.Service+" "+line.String())
	}
	require.Equal(t, []string{"a up", "a bye"}, all)
	require.Equal(t, "127.0.0.1:0", r.Addr("b", 9))
}

// A service that fails ends the project, whose error names it and has its last lines; what can't be
// opened, before anything was started; and so does a context, without one.
func TestRootlessFailures(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": `
services:
  good: {image: ./busybox.tar, command: sleep 1000000}
  bad: {image: ./busybox.tar, command: [sh, -c, "echo broken >&2; exit 3"], depends_on: [good], restart: on-failure:1}
  waits: {image: ./busybox.tar, command: "true", depends_on: {bad: {condition: service_completed_successfully}}}
`}))
	err := r.Ready()
	var failure *service.Error
	require.ErrorAs(t, err, &failure)
	require.Equal(t, "bad", failure.Service)
	require.ErrorContains(t, err, "broken")
	require.ErrorIs(t, r.Err(), failure)
	for _, s := range r.Status() {
		switch s.Service {
		case "bad":
			require.Equal(t, Failed, s.State)
			require.Equal(t, 2, s.Starts)
			require.Contains(t, s.Error, "broken")
		case "good":
			require.Equal(t, Ended, s.State)
		case "waits":
			require.Equal(t, Pending, s.State)
			require.Nil(t, r.Service("waits"))
		}
	}

	r = up(t, project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar}\n  two: {image: ./missing.tar}\n"}))
	require.ErrorContains(t, r.Ready(), "service two: image: ")

	r = up(t, project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, command: sleep 1000000, user: nobody-knows}\n"}))
	require.ErrorContains(t, r.Ready(), "no such user")

	ctx, cancel := context.WithCancel(context.Background())
	r = project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, command: sleep 1000000, healthcheck: {test: 'false'}}\n"}).Up(ctx)
	testkit.Eventually(t, "a start", func() bool { return r.Service("one") != nil })
	cancel()
	require.NoError(t, r.Err())
	require.ErrorIs(t, r.Ready(), ErrEnded)
}

// All of a service's jobs end well: the project has ended. An always is started again.
func TestRootlessEnds(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": "services:\n  one: {image: ./busybox.tar, command: 'true'}\n  two: {image: ./busybox.tar, command: 'true', depends_on: [one]}\n"}))
	require.NoError(t, r.Err())
	require.NoError(t, r.Ready())

	r = up(t, project(t, map[string]string{"compose.yaml": `
services:
  one: {image: ./busybox.tar, command: [sh, -c, "touch /v/$$(ls /v | wc -l); test $$(ls /v | wc -l) -lt 3 || sleep 1000000"], restart: always, volumes: ['vol:/v']}
volumes: {vol: }
`}))
	require.NoError(t, r.Ready())
	testkit.Eventually(t, "the third start", func() bool { return r.Status()[0].Starts == 3 })
	require.NoError(t, r.Close())
}

// What is on another network is not reached, nor what is on none; nothing outside is.
func TestRootlessNetworks(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": `
x-serve: &serve
  image: ./busybox.tar
  command: [sh, -c, "echo $$HOSTNAME >/tmp/index.html; exec httpd -f -p 80 -h /tmp"]
  healthcheck: {test: "get localhost 80 /", interval: 1s}
services:
  front: {<<: *serve, networks: [front]}
  both: {<<: *serve, networks: [front, back]}
  back: {<<: *serve, networks: [back]}
  none: {<<: *serve, network_mode: none}
networks:
  front:
  back:
`}))
	require.NoError(t, r.Ready())
	does := func(from string, command ...string) bool {
		p, err := r.Service(from).Exec(testkit.Deadline(t), sandbox.WithCommand(command[0], command[1:]...))
		require.NoError(t, err)
		_, err = p.Wait()
		return err == nil
	}
	for from, reached := range map[string]string{"front": "front both", "both": "front both back", "back": "both back", "none": ""} {
		for _, to := range []string{"front", "both", "back", "none"} {
			if from != to {
				require.Equal(t, slices.Contains(strings.Fields(reached), to), does(from, "get", to, "80", "/"), "%s to %s", from, to)
			}
		}
	}
	require.False(t, does("front", "nc", "-w", "1", "192.0.2.1", "80"))
	require.NoError(t, r.Close())
}

// Named volumes in a directory stay; secrets are files, and not in the environment; the root user
// has the capabilities that images count on, another user none.
func TestRootlessInside(t *testing.T) {
	volumes := testkit.OpenDir(t)
	files := map[string]string{"compose.yaml": `
services:
  root:
    image: ./busybox.tar
    command: [sh, -c, "echo kept >>/v/file; grep CapEff /proc/self/status; env; cat /run/secrets/s /c; id -u; mount | grep ' / '; touch /bin/x && echo writable"]
    volumes: ['vol:/v']
    environment: {A: b}
    secrets: [s]
    configs: [c]
  user:
    image: ./busybox.tar
    command: [sh, -c, "grep CapEff /proc/self/status; id -u; touch /bin/x 2>/dev/null || echo read-only"]
    user: app
    read_only: true
volumes: {vol: }
secrets: {s: {environment: SECRET}}
configs: {c: {content: the configuration}}
`}
	p := project(t, files, Environ("SECRET=hidden"), VolumeDir(volumes))
	for range 2 {
		r := up(t, p)
		require.NoError(t, r.Err())
		lines := map[string][]string{}
		for line := range r.Follow(context.Background()) {
			lines[line.Service] = append(lines[line.Service], line.Text)
		}
		root := strings.Join(lines["root"], "\n")
		require.Contains(t, root, "CapEff:\t00000000000405fb")
		require.Contains(t, root, "A=b\n")
		require.Contains(t, root, "HOSTNAME=root\n")
		require.NotContains(t, root, "SECRET")
		require.Contains(t, root, "hiddenthe configuration0\n")
		require.Contains(t, root, "writable")
		require.Contains(t, strings.Join(lines["user"], "\n"), "CapEff:\t0000000000000000\n1001\n")
		require.Contains(t, lines["user"], "read-only")
	}
	kept, err := os.ReadFile(filepath.Join(volumes, "vol", "file"))
	require.NoError(t, err)
	require.Equal(t, "kept\nkept\n", string(kept))
}

// A healthcheck that fails says so, with what the command wrote.
func TestRootlessUnhealthy(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": `
services:
  one:
    image: ./busybox.tar
    command: sleep 1000000
    stop_signal: KILL
    healthcheck: {test: "test ! -e /tmp/ill || { echo I am ill; exit 1; }", interval: 10ms, retries: 2}
`}))
	require.NoError(t, r.Ready())
	require.Equal(t, "healthy", r.Status()[0].Health)
	p, err := r.Service("one").Exec(testkit.Deadline(t), sandbox.WithCommand("touch", "/tmp/ill"))
	require.NoError(t, err)
	_, err = p.Wait()
	require.True(t, err == nil || errors.Is(err, sandbox.ErrRunEnded), "%v", err)
	err = r.Err()
	require.ErrorIs(t, err, service.ErrUnhealthy)
	require.ErrorContains(t, err, "I am ill")
}

// Replicas are found by one name, and each has a state, lines and a volume of its own.
func TestRootlessReplicas(t *testing.T) {
	r := up(t, project(t, map[string]string{"compose.yaml": `
services:
  web:
    image: ./busybox.tar
    command: [sh, -c, "trap 'echo bye; exit 0' TERM; test -z \"$$(ls /own)\" && echo me >/own/me; httpd -p 80 -h /own; echo up; sleep 1000000 & wait"]
    scale: 3
    volumes: [/own]
    ports: ["80"]
    healthcheck: {test: "get localhost 80 /me", interval: 1s}
  apart: {image: ./busybox.tar, command: [sh, -c, "httpd -f -p 80 -h /etc"], network_mode: none, deploy: {replicas: 2}, stop_signal: KILL}
  front: {image: ./busybox.tar, command: [sh, -c, "get web 80 /me"], depends_on: {web: {condition: service_healthy}}}
`}, VolumeDir(t.TempDir())))
	require.NoError(t, r.Ready())
	testkit.Eventually(t, "the end of front", func() bool { return r.Status()[2].State == Ended })
	var names []string
	for _, s := range r.Status() {
		names = append(names, s.Name())
		if s.Service == "web" {
			require.Equal(t, "healthy", s.Health)
			require.Positive(t, s.PID)
			require.Equal(t, 1, s.Starts)
		}
	}
	require.Equal(t, []string{"apart.1", "apart.2", "front", "web.1", "web.2", "web.3"}, names)
	require.Len(t, r.Service("web").Replicas(), 3)
	require.Equal(t, "me", get(t, r, "web", 80, "/me"))
	require.NoError(t, r.Close())
	said := map[string][]string{}
	for line := range r.Follow(context.Background(), "web") {
		said[line.Name()] = append(said[line.Name()], line.Text)
	}
	each := []string{"up", "bye"}
	require.Equal(t, map[string][]string{"web.1": each, "web.2": each, "web.3": each}, said)
}

// The signal of an image counts unless the file has one; what is none, as images may have it, does
// not.
func TestStopSignal(t *testing.T) {
	for _, test := range []struct {
		field, image string
		want         syscall.Signal
	}{{"", "", syscall.SIGTERM}, {"", "SIGQUIT", syscall.SIGQUIT}, {"", "3", syscall.SIGQUIT}, {"", "-9", syscall.SIGTERM}, {"", "x\x00", syscall.SIGTERM}, {"    stop_signal: INT", "SIGQUIT", syscall.SIGINT}} {
		p, err := load(t, base+test.field)
		require.NoError(t, err)
		var c spec.Spec
		p.services[0].stop(test.image).Apply(&c)
		require.EqualValues(t, test.want, c.Supervision.StopSignal, "%+v", test)
	}
}
