package sandbox

import (
	"context"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files of Explain")

var goldenFiles = newHostFiles(host.NewFiles([]host.Entry{
	{Path: "/etc", Mode: fs.ModeDir | 0o755},
	{Path: "/etc/localtime", Mode: fs.ModeSymlink, Link: "/usr/share/zoneinfo/Etc/UTC"},
	{Path: "/etc/services", Mode: 0o644, Data: []byte("http 80/tcp\n")},
	{Path: "/etc/ssl", Mode: fs.ModeDir | 0o755},
	{Path: "/etc/ssl/openssl.cnf", Mode: 0o644, Data: []byte("# none\n")},
}, []string{"/var/lib/texmf"}))

// goldenMachine is what the programs of golden files are compiled for.
func goldenMachine() *machine {
	return &machine{
		Facts: host.Facts{
			RootDirs:   []string{"/usr", "/lib64"},
			RootLinks:  map[string]string{"/bin": "usr/bin", "/lib": "usr/lib", "/sbin": "usr/sbin"},
			Proc:       []host.ProcPath{{Path: "/proc/acpi", Dir: true}, {Path: "/proc/kcore"}},
			LastCap:    13, // CAP_NET_RAW
			HardLimits: map[string]uint64{"nofile": 4096, "sigpending": 4096, "msgqueue": 65536, "memlock": 1 << 30},
			Kernel:     [2]int{6, 12},
		},
		files:  goldenFiles,
		resolv: "nameserver 192.0.2.1\n",
	}
}

type goldenSandbox struct {
	name    string
	shape   shape
	missing []point
	opts    []Option
	kernel  [2]int // where not goldenMachine's
}

var goldenView = host.View{{Type: "cgroup", Name: "cpu,cpuacct", Options: "cpu,cpuacct"}, {Type: "cgroup", Name: "memory", Options: "xattr,memory"}}

// golden is the sandboxes whose programs are kept in testdata/explain.
var golden = []goldenSandbox{
	{name: "host", opts: nil},
	{name: "host-everything", opts: []Option{
		WithEnv("A=1", "PATH=/opt/bin:/bin"), WithDir("/work"), WithExtraFiles(os.Stdin, os.Stdout),
		WithHostname("golden"), WithTimeOffset(-1500 * time.Millisecond), WithUser(7, 8), WithRlimit("nofile", 64, RlimitInfinity), WithRlimit("as", MiB, GiB),
		WithBind("/host/work", "/work"), WithReadOnlyBind("/host/data", "/opt/data"), WithReadOnlyBind("/host/under", "/tmp/a/b"),
		WithTmpfs("/tmp", 8*MiB), WithTmpfs("/cache/deep", MiB),
		WithFile("/etc/app.conf", []byte("a = 1\n"), 0o640), WithFile("/tmp/c/d", nil, 0o600),
	}},
	{name: "host-writable", opts: []Option{WithWritableRoot(64 * MiB), WithBind("/host/work", "/work"), WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "network-host", opts: []Option{WithNetwork(NetworkHost)}},
	{name: "capabilities", opts: []Option{WithCapabilities("CAP_NET_RAW", "CAP_CHOWN")}},
	{name: "root-user", opts: []Option{WithUser(0, 0)}},
	{name: "groups", opts: []Option{WithGroups(10, 65533)}},
	{name: "image", shape: shape{wideIDs: true}, missing: []point{{path: "/proc"}, {path: "/srv/app", own: true, have: []overlay.Dir{{Mode: 0o755}}}}, opts: []Option{imageOption}},
	{name: "no-seccomp", opts: []Option{WithoutSeccomp()}},
	{name: "single-id", shape: shape{singleID: true}, opts: nil},
	{name: "cgroup-v1", shape: shape{joins: 2, savedID: true, views: goldenView, view: goldenView}, opts: nil},
	{name: "cgroup-v2", shape: shape{views: host.View{{Type: "cgroup2"}}, view: host.View{{Type: "cgroup2"}}}, opts: nil},
	{name: "no-user-namespace", shape: shape{hostIDs: true}, opts: []Option{WithoutUserNamespace(), WithBind("/host/work", "/work"), WithFile("/tmp/a", []byte("x"), 0o600)}},
	{name: "no-user-namespace-writable", shape: shape{hostIDs: true}, opts: []Option{WithoutUserNamespace(), WithUser(7, 8), WithWritableRoot(MiB), WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "dir", opts: []Option{WithRootfs(DirRootfs("/srv/root"))}},
	{name: "host-5.10", kernel: [2]int{5, 10}, opts: []Option{WithReadOnlyBind("/host/data", "/opt/data"), WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "dir-missing", missing: []point{{path: "/proc"}, {path: "/usr/home/sandbox"}, {path: "/opt/a/file", file: true}, {path: "/opt/a/b"}},
		opts: []Option{WithRootfs(DirRootfs("/srv/root")), WithFile("/opt/a/file", []byte("x"), 0o644), WithTmpfs("/opt/a/b", MiB)}},
	{name: "layers", shape: shape{wideIDs: true}, missing: []point{{path: "/proc"}, {path: "/home/sandbox", have: []overlay.Dir{{Mode: 0o755, UID: 7, GID: 8}}}},
		opts: []Option{WithRootfs(LayersRootfs("/srv/base", "/srv/tools", "/srv/app"))}},
	{name: "layers-nobody", opts: []Option{WithRootfs(LayersRootfs("/srv/base", "/srv/app"))}},
	{name: "layers-writable", shape: shape{wideIDs: true}, opts: []Option{WithRootfs(LayersRootfs("/srv/base", "/srv/app")), WithWritableRoot(MiB)}},
	{name: "scratch-root", shape: shape{wideIDs: true}, opts: []Option{WithScratchRoot(closedScratch()), WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "scratch-root-layers", shape: shape{wideIDs: true}, missing: []point{{path: "/proc"}}, opts: []Option{WithRootfs(LayersRootfs("/srv/base", "/srv/app")), WithScratchRoot(closedScratch())}},
	{name: "dir-writable", missing: []point{{path: "/dev/shm"}, {path: "/opt"}},
		opts: []Option{WithRootfs(DirRootfs("/srv/root")), WithWritableRoot(MiB), WithFile("/opt/file", []byte("x"), 0o644)}},
}

// imageOption is what an image says whose user is nobody, and whose working directory is on a
// tmpfs.
func imageOption(c *spec.Spec) {
	c.SetImage(spec.Image{
		Name: "golden", Layers: []string{"/srv/base", "/srv/app"}, User: "nobody", UID: 65534, GID: 65534, Groups: []int{50}, Dir: "/tmp/work", Dirs: []string{"/tmp/work", "/srv/app"}, Writable: MiB,
	})
}

func (g *goldenSandbox) config() *spec.Spec {
	return &New(append([]Option{WithCommand("true", "and", "arguments")}, g.opts...)...).config
}

func (g *goldenSandbox) compile(t testing.TB) *plan {
	t.Helper()
	c := g.config()
	require.Empty(t, c.Check())
	m := goldenMachine()
	if g.kernel != [2]int{} {
		m.Kernel = g.kernel
	}
	p, err := compile(c, m, g.shape, found{missing: g.missing})
	require.NoError(t, err)
	return p
}

// The length of a filter depends on the architecture.
var instructions = regexp.MustCompile(`\{[0-9]+ instructions\}`)

func goldenText(p *plan, command *program.Program) string {
	var b strings.Builder
	b.WriteString("## template\n" + p.template.Explain())
	b.WriteString("## run\n" + p.run.Explain())
	b.WriteString("## command\n" + command.Explain())
	return instructions.ReplaceAllString(b.String(), "{... instructions}")
}

func TestExplainGolden(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			command, err := compileCommand(g.config(), goldenMachine())
			require.NoError(t, err)
			got := goldenText(g.compile(t), command)
			path := filepath.Join("testdata", "explain", g.name+".golden")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), got, "if the change is intended: go test -run TestExplainGolden . -update")
		})
	}
	files, err := filepath.Glob("testdata/explain/*.golden")
	require.NoError(t, err)
	require.Len(t, files, len(golden), "files of no test")
}

func TestGoldenPrograms(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) { checkPlan(t, g.config(), g.compile(t)) })
	}
}

func TestCompileIsDeterministic(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			first := g.compile(t)
			for range 5 {
				again := g.compile(t)
				require.Equal(t, first.run.Image(), again.run.Image())
				require.Equal(t, first.template.Image(), again.template.Image())
				require.Equal(t, first.files, again.files)
				require.Equal(t, first.trees, again.trees)
			}
		})
	}
}

// TestPlan has what accompanies the programs.
func TestPlan(t *testing.T) {
	find := func(name string) *plan {
		for _, g := range golden {
			if g.name == name {
				return g.compile(t)
			}
		}
		t.Fatal(name)
		return nil
	}
	hostTrees := []tree{
		{path: "/usr", of: fault.Subject{Option: "WithRootfs"}}, {path: "/lib64", of: fault.Subject{Option: "WithRootfs"}},
		{path: "/var/lib/texmf", of: fault.Subject{Option: "WithRootfs"}},
	}
	p := find("host")
	require.Equal(t, hostTrees, p.trees)
	require.Empty(t, p.files)
	require.False(t, p.ownUser)

	p = find("host-everything")
	require.Equal(t, hostTrees, p.trees)
	require.Equal(t, []tree{
		{path: "/host/work", writable: true, mapOwner: true, of: fault.Subject{Option: "WithBind"}},
		{path: "/host/data", mapOwner: true, mapIfCan: true, of: fault.Subject{Option: "WithReadOnlyBind"}},
		{path: "/host/under", mapOwner: true, mapIfCan: true, of: fault.Subject{Option: "WithReadOnlyBind"}},
	}, p.files)
	require.True(t, p.ownUser)

	p = find("dir-writable")
	require.Empty(t, p.trees, "the template is the devices")
	require.Equal(t, []tree{{path: "/srv/root", mapOwner: true, mapIfCan: true, of: fault.Subject{Option: "WithWritableRoot"}}}, p.files)

	p = find("layers-writable")
	require.Equal(t, []tree{
		{path: "/srv/base", mapAll: true, mapIfCan: true, of: fault.Subject{Option: "WithRootfs"}},
		{path: "/srv/app", mapAll: true, mapIfCan: true, of: fault.Subject{Option: "WithRootfs"}},
	}, p.files)
	p = find("layers-nobody")
	require.Equal(t, []tree{{path: "/srv/base", of: fault.Subject{Option: "WithRootfs"}}, {path: "/srv/app", of: fault.Subject{Option: "WithRootfs"}}}, p.trees)
	require.Empty(t, p.files)
}

// TestEtc has the files that programs look up users and hosts in.
func TestEtc(t *testing.T) {
	const root, nobody = "root:x:0:0:root:/:/bin/sh\n", "nobody:x:65534:65534:nobody:/:/bin/false\n"
	tests := []struct {
		name string
		opt  Option
		file string
		want string
	}{
		{"passwd", WithUser(7, 8), "/etc/passwd", root + "sandbox:x:7:8::/home/sandbox:/bin/sh\n" + nobody},
		{"passwd of root", WithUser(0, 8), "/etc/passwd", root + nobody},
		{"group", WithUser(7, 8), "/etc/group", "root:x:0:\nsandbox:x:8:\nnogroup:x:65534:\n"},
		{"group of root", WithUser(7, 0), "/etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"hosts", WithHostname("golden"), "/etc/hosts", "127.0.0.1 localhost golden\n::1 localhost\n"},
		{"hostname", WithHostname("golden"), "/etc/hostname", "golden\n"},
		{"resolv.conf", WithNetwork(NetworkNone), "/etc/resolv.conf", "# no network\n"},
		{"resolv.conf of the host", WithNetwork(NetworkHost), "/etc/resolv.conf", "nameserver 192.0.2.1\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k := &compiler{c: &New(valid, test.opt).config, m: goldenMachine()}
			for _, f := range k.etcFiles() {
				if f[0] == test.file {
					require.Equal(t, test.want, f[1])
					return
				}
			}
			t.Fatal("no such file")
		})
	}
}

// TestOldKernelMapsNoLayer leaves owners alone where overlayfs can't take
// idmapped layers.
func TestOldKernelMapsNoLayer(t *testing.T) {
	for kernel, want := range map[[2]int]bool{{5, 10}: false, {5, 18}: false, {5, 19}: true, {6, 0}: true} {
		m := goldenMachine()
		m.Kernel = kernel
		p, err := compile(&New(valid, WithRootfs(DirRootfs("/srv")), WithWritableRoot(MiB)).config, m, shape{}, found{})
		require.NoError(t, err)
		require.Equal(t, want, p.files[0].mapOwner, kernel)
	}
}

// TestTooLargeToCompile has what only the program's size shows.
func TestTooLargeToCompile(t *testing.T) {
	c := &New(WithCommand("true", strings.Repeat("x", 9*MiB))).config
	require.Empty(t, c.Check())
	_, err := compileCommand(c, goldenMachine())
	require.ErrorContains(t, err, "arguments, environment and paths are larger than 8388608 bytes together")
}

// TestExplain compiles for this machine, and reports wrong options.
func TestExplain(t *testing.T) {
	s := New(WithCommand("some-command"))
	text, err := s.Explain()
	require.NoError(t, err)
	require.Contains(t, text, `execve("/usr/bin/some-command"`)
	require.Contains(t, text, "## once per cell: assemble what runs copy")
	again, err := s.Explain()
	require.NoError(t, err)
	require.Equal(t, text, again)

	_, err = New().Explain()
	require.ErrorContains(t, err, "WithCommand")
	_, err = New(valid, WithRootfs(DirRootfs(filepath.Join(t.TempDir(), "missing")))).Explain()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "WithRootfs")
}

// bootedCells is the number of default cells.
func bootedCells() int {
	cells.mu.Lock()
	defer cells.mu.Unlock()
	return len(cells.all)
}

// TestWrongOptionsStartNothing gives each wrong option to Start: the error is
// that of the option, whether or not a cell can be booted, and none is.
func TestWrongOptionsStartNothing(t *testing.T) {
	before := bootedCells()
	for _, test := range wrong {
		p, err := New(append([]Option{valid}, test.opts...)...).Start(context.Background())
		require.Nil(t, p, test.name)
		require.ErrorContains(t, err, test.want, test.name)
	}
	require.Equal(t, before, bootedCells())
}

func TestMissingSourcesStartNothing(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	tests := map[string]Option{
		"WithBind":         WithBind(missing, "/a"),
		"WithReadOnlyBind": WithReadOnlyBind(missing, "/a"),
		"WithRootfs":       WithRootfs(DirRootfs(missing)),
	}
	for name, opt := range tests {
		_, err := New(valid, WithMemory(-1), opt).Start(context.Background())
		require.ErrorContains(t, err, "sandbox: "+name)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.ErrorContains(t, err, "WithMemory", "the wrong option beside it")
	}
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := New(valid, WithRootfs(DirRootfs(file))).Start(context.Background())
	require.ErrorContains(t, err, "is not a directory")
}
