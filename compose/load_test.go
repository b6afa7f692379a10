//go:build linux

package compose

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestLoad compares what services become with golden files.
func TestLoad(t *testing.T) {
	files, err := filepath.Glob("testdata/load/*/compose.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			p, err := Load(file, Environ("TAG=1.2", "TOKEN=from the environment", "PASSED=on"), Profiles("debug"))
			require.NoError(t, err)
			abs, err := filepath.Abs(dir)
			require.NoError(t, err)
			got := strings.ReplaceAll(describe(p), abs, "DIR")
			golden := filepath.Join(dir, "golden.txt")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

// describe returns a project in words.
func describe(p *Project) string {
	var b strings.Builder
	fmt.Fprintf(&b, "project %s\n", p.Name())
	for _, s := range p.services {
		var c spec.Spec
		c.Namespaces.UID, c.Root.Writable = 0, 1 // as an image may say
		for _, o := range append(s.opts, s.stop(""), s.command(&image.Image{})) {
			o.Apply(&c)
		}
		cpus := ""
		if c.Limits.CPUSet != nil {
			cpus = *c.Limits.CPUSet
		}
		fmt.Fprintf(&b, "\n%s: image %q %q, user %q, after %q, exits %v, networks %q, aliases %q, alone %v, reaches %d\n", s.name, s.image, s.platform, s.user, s.after, s.exits, s.networks, s.aliases, s.alone, len(p.reaches(s)))
		fmt.Fprintf(&b, "  env %q, dir %q\n", c.Command.Env, c.Command.Dir)
		fmt.Fprintf(&b, "  command %q, restarts %d %v\n", c.Command.Argv, s.restarts, s.again)
		fmt.Fprintf(&b, "  stop %v %v, scale %d, hostname %q\n", c.Supervision.StopSignal, c.Supervision.StopGrace, s.scale, c.Namespaces.Hostname)
		fmt.Fprintf(&b, "  writable %d, limits %d %v %d %q, rlimits %v\n  capabilities %q, groups %v\n", c.Root.Writable, c.Limits.Memory, c.Limits.CPUs, c.Limits.PIDs, cpus, c.Command.Rlimits, c.Security.Capabilities, c.Namespaces.Groups)
		for _, p := range c.Supervision.Publish {
			fmt.Fprintf(&b, "  port %s/%s to %d\n", p.Address, p.Protocol, p.Port)
		}
		for _, m := range c.Root.Mounts {
			fmt.Fprintf(&b, "  %s: %T %+v\n", m.Dst, m.Source, m.Source)
			if bind, ok := m.Source.(spec.Bind); ok {
				fmt.Fprintf(&b, "    read-only %v\n", bind.ReadOnly)
			}
		}
		for _, v := range s.volumes {
			fmt.Fprintf(&b, "  %s: volume %q, read-only %v\n", v.dst, v.name, v.readOnly)
		}
		if health := s.health.with(nil); health != nil {
			fmt.Fprintf(&b, "  health %+v\n", *health)
		}
		fmt.Fprintf(&b, "  checked %v, input %v, made %q\n", s.health != nil, s.stdin, s.made)
	}
	return b.String()
}

const base = "services:\n  web:\n    image: x\n"

// TestWrong has a field in line 4 that is not supported, or wrong.
func TestWrong(t *testing.T) {
	for _, test := range []struct{ content, want string }{
		{base + "    build: .", "compose.yaml:4: services.web.build: images are not built here"},
		{base + "    privileged: true", ":4: services.web.privileged: a run has no right"},
		{base + "    sysctls: {a: 1}", ":4: services.web.sysctls: "},
		{base + "    nonsense: 1", ":4: services.web.nonsense: not supported here"},
		{base + "    container_name: öther", ":4: services.web.container_name: "},
		{base + "    logging: {driver: syslog}", ":4: services.web.logging.driver: \"syslog\""},
		{base + "    scale: 0", ":4: services.web.scale: 0: must be from 1 to 1000"},
		{base + "    deploy:\n      replicas: 1001", ":5: services.web.deploy.replicas: 1001"},
		{base + "    scale: 2\n    ports:\n      - 5353:53/udp", ":6: services.web.ports[0]: 127.0.0.1:5353/udp"},
		{base + "    volumes:\n      - v:/v", ":5: services.web.volumes[0]: \"v:/v\" is no absolute path"},
		{base + "    volumes:\n      - {type: volume, target: v}", ":5: services.web.volumes[0]: \"v\" is no absolute path"},
		{base + "    volumes:\n      - {type: volume, target: /v, read_only: true}", ":5: services.web.volumes[0]: a volume of the service's own"},
		{base + "    deploy:\n      mode: global", ":5: services.web.deploy.mode: "},
		{base + "    deploy: {resources: {reservations: {cpus: '1'}}}", ":4: services.web.deploy.resources.reservations: "},
		{base + "    network_mode: host", ":4: services.web.network_mode: \"host\""},
		{base + "    network_mode: service:web2", "compose.yaml"},
		{base + "    pull_policy: never", ":4: services.web.pull_policy: "},
		{base + "    stop_signal: SIGNAL", ":4: services.web.stop_signal: "},
		{base + "    restart: often", "compose.yaml"},
		{base + "    restart: on-failure:x", "services.web"},
		{base + "    security_opt:\n      - seccomp:unconfined", ":5: services.web.security_opt[0]: "},
		{base + "    cap_add: [ALL]", ":4: services.web.cap_add[0]: list those"},
		{base + "    extra_hosts:\n      - host.docker.internal:host-gateway", ":4: services.web.extra_hosts: host-gateway: nothing leads to this machine"},
		{base + "    extra_hosts: {db: nowhere}", ":4: services.web.extra_hosts: \"nowhere\" is no address of db"},
		{base + "    extra_hosts: [\"a b=::1\"]", ":4: services.web.extra_hosts: \"a b\" is no name"},
		{base + "    group_add: [users]", ":4: services.web.group_add[0]: "},
		{base + "    entrypoint: []", ":4: services.web.entrypoint: it is empty"},
		{base + "    env_file:\n      - missing.env", ":5: services.web.env_file[0]: "},
		{base + "    env_file: /dev/zero", ":4: services.web.env_file"},
		{base + "    tmpfs:\n      - /x:noexec", ":5: services.web.tmpfs[0]: \"noexec\""},
		{base + "    volumes:\n      - {type: npipe, source: a, target: /b}", ":5: services.web.volumes[0]"},
		{base + "    volumes:\n      - {type: volume, source: v, target: /b, volume: {subpath: s}}\nvolumes: {v: {}}", ":5: services.web.volumes[0].volume.subpath"},
		{base + "    volumes: [{type: volume, source: '..', target: /b}]\nvolumes:\n  '..': {}", ":6: volumes...: this is no name"},
		{base + "    ports:\n      - 8080-8090:80", "services.web.ports"},
		{base + "    ports:\n      - 80/sctp", ":5: services.web.ports[0]: \"sctp\""},
		{base + "    networks:\n      default:\n        aliases: [www, 'a b']", ":6: services.web.networks.default.aliases[1]: "},
		{base + "    healthcheck:\n      test: [CMD]", ":5: services.web.healthcheck.test: it names no command"},
		{base + "    depends_on:\n      db:\n        condition: service_healthy\n  db: {image: y, healthcheck: {disable: true}}", ":6: services.web.depends_on.db.condition: db has no healthcheck"},
		{base + "    healthcheck:\n      test: 'true'\n      timeout: 1m", ":6: services.web.healthcheck.timeout: 1m0s"},
		{base + "    links: ['db:other']\n  db: {image: y}\n  other: {image: y}", ":4: services.web.links[0]: other is a name of other"},
		{base + "    links: ['db:a b']\n  db: {image: y}", ":4: services.web.links[0]: "},
		{base + "    pids_limit: -1", ":4: services.web.pids_limit: "},
		{base + "    extends: {file: other.yaml, service: x}", ":4: services.web.extends.file: "},
		{base + "    secrets: [s]\nsecrets:\n  s:\n    external: true", ":7: secrets.s.external: "},
		{base + "    secrets: [s]\nsecrets:\n  s:\n    file: missing", ":7: secrets.s.file: "},
		{base + "    secrets: [s]\nsecrets:\n  s:\n    file: /dev/zero", ":7: secrets.s.file: /dev/zero is no regular file"},
		{base + "    secrets: [s]\nsecrets:\n  s:\n    environment: UNSET", ":7: secrets.s.environment: UNSET is not set"},
		{base + "    configs: [{source: c, mode: 04755}]\nconfigs: {c: {content: x}}", ":4: services.web.configs[0].mode: "},
		{base + "    configs: [{source: c, uid: '5'}]\nconfigs: {c: {content: x}}", ":4: services.web.configs[0].uid: "},
		{base + "    networks: [n]\nnetworks:\n  n:\n    driver: overlay", ":7: networks.n.driver: \"overlay\""},
		{base + "    volumes: ['vol:/v']\nvolumes:\n  vol:\n    driver: nfs", ":7: volumes.vol.driver: \"nfs\""},
		{base + "    volumes: ['vol:/v']\nvolumes:\n  vol:\n    external: true", ":7: volumes.vol.external: "},
		{"services:\n  myDB: {image: x}", ":2: services.myDB: others find the service by its name"},
		{"include: [other.yaml]\n" + base, "compose.yaml:1: include[0]: "},
		{"x-a: &a\n  ipc: host\n\nservices:\n  web:\n    <<: *a\n    image: x", ":2: services.web.ipc: each run has namespaces"},
		{"a: &a [*a]", "compose.yaml"},
		{"services:\n  web:\n   - image", "services"},
		{"- a", "no Compose file"},
		{"", "the file is empty"},
		{base + "---\n" + base, "more than one document"},
		{base + "    image: y", "already defined at line 3"},
	} {
		_, err := load(t, test.content)
		require.ErrorContains(t, err, test.want, "%s", test.content)
	}
}

// All that is wrong is reported at once, sorted or not; errors have their parts.
func TestErrors(t *testing.T) {
	_, err := load(t, base+"    privileged: true\n    ipc: host\n    network_mode: host\n  other:\n    image: y\n    profiles: [p]\n    privileged: true")
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, 4, e.Line)
	require.Equal(t, "services.web.privileged", e.Field)
	// There is none about the other, which is not enabled.
	require.Len(t, strings.Split(err.Error(), "\n"), 3, "%v", err)
	_, err = load(t, base+"    profiles: [p]")
	require.ErrorContains(t, err, "no service is enabled")
	_, err = load(t, base, Only("nobody"))
	require.Error(t, err)
	_, err = Load(t.TempDir())
	require.ErrorContains(t, err, "there is no compose.yaml")
	big := write(t, map[string]string{"compose.yaml": base + strings.Repeat("#", maxFile)})
	_, err = Load(big)
	require.ErrorContains(t, err, "more than 1048576 bytes")
	require.False(t, errors.As(err, &e))
}

func TestIgnore(t *testing.T) {
	content := base + "    ipc: host\n    deploy: {replicas: 0, placement: {}}\n    logging: {driver: json-file}\n  db: {image: y, container_name: database}"
	_, err := load(t, content, Ignore("ipc", "container_name", "deploy.placement", "logging", "services.web.deploy.replicas"))
	require.NoError(t, err)
	_, err = load(t, content, Ignore("container_name", "deploy", "logging"))
	require.ErrorContains(t, err, "services.web.ipc")
}

// What Ignore takes for a field is in its error, word for word.
func TestErrorsSayWhatToIgnore(t *testing.T) {
	content := base + "    sysctls: {a: 1}\n    deploy: {resources: {reservations: {memory: 1m}}}\n    env_file: [{path: x, required: false, format: raw}]\nvolumes: {v: {external: true}}"
	var ignored []string
	for {
		_, err := load(t, content, Ignore(ignored...))
		if err == nil {
			break
		}
		_, after, found := strings.Cut(err.Error(), "have it ignored by Ignore (-ignore ")
		require.True(t, found, "%v", err)
		field, _, _ := strings.Cut(after, ")")
		require.NotContains(t, ignored, field)
		ignored = append(ignored, field)
	}
	require.ElementsMatch(t, []string{"sysctls", "deploy.resources.reservations", "env_file.0.format", "volumes.v.external"}, ignored)
}

// The name needs nothing of the file but its place and its field name.
func TestProjectName(t *testing.T) {
	dir := write(t, map[string]string{"compose.yaml": base + "    build: .\n    nonsense: 1\n", "other.yaml": "name: ${NAME}\nservices: {}", ".env": "NAME=Given\n"})
	for want, opts := range map[string][]Option{filepath.Base(dir): nil, "given": {Override(filepath.Join(dir, "other.yaml"))}, "x": {Name("x")}} {
		name, err := ProjectName(dir, append(opts, Environ())...)
		require.NoError(t, err)
		require.Equal(t, want, name)
	}
	_, err := ProjectName(t.TempDir())
	require.ErrorContains(t, err, "there is no compose.yaml")
	// Where Load fails because of it, the directory's is no guess: another project may have that.
	for name, why := range map[string]string{"${X:?who}": "compose.yaml:1: name: required variable X is missing a value: who", "${": ":1: name: Invalid template", "5": ":1: name: must be a string"} {
		dir := write(t, map[string]string{"compose.yaml": "name: " + name + "\n" + base})
		_, err = ProjectName(dir, Environ())
		require.ErrorContains(t, err, why)
		_, err = Load(dir, Environ())
		require.ErrorContains(t, err, why)
		given, err := ProjectName(dir, Environ(), Name("x"))
		require.NoError(t, err)
		require.Equal(t, "x", given)
	}
}

// An override is merged, and errors name the file that is to blame.
func TestOverride(t *testing.T) {
	dir := write(t, map[string]string{"compose.yaml": base, "other.yaml": "services:\n  web:\n    restart: always\n  db:\n    image: y\n    ipc: host"})
	_, err := Load(dir, Override(filepath.Join(dir, "other.yaml")), Environ())
	require.ErrorContains(t, err, "other.yaml:6: services.db.ipc")
	p, err := Load(dir, Override(filepath.Join(dir, "other.yaml")), Environ(), Only("web"), Name("x"))
	require.NoError(t, err)
	require.Equal(t, []string{"web"}, p.Services())
	require.Equal(t, "x", p.Name())
}

// The documentation has each field of a service.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/COMPOSE.md")
	require.NoError(t, err)
	for field := range rules.fields["services"].fields["*"].fields {
		require.Contains(t, string(text), "`"+field, "%s", field)
	}
	for path := range remedies {
		name := path[strings.LastIndexByte(path, '.')+1:]
		require.Contains(t, string(text), "`"+name, "%s", path)
	}
}

// FuzzLoad finds out what Load can't stand.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*/compose.yaml")
	require.NoError(f, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte(base + "    <<: [*a, *b]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "compose.yaml"), content, 0o600))
		p, err := Load(dir, Environ("A=b"))
		if err == nil {
			require.True(t, slices.IsSorted(p.Services()))
			_ = describe(p)
			return
		}
		for e := range allErrors(err) {
			require.Positive(t, e.Line, "%v", e)
		}
	})
}

// allErrors yields the *Errors of an error.
func allErrors(err error) func(func(*Error) bool) {
	return func(yield func(*Error) bool) {
		all := []error{err}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = joined.Unwrap()
		}
		for _, err := range all {
			if e, ok := err.(*Error); ok && !yield(e) {
				return
			}
		}
	}
}
