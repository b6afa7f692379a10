//go:build linux

package compile_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files of Explain")

var goldenFiles = compile.NewHostFiles(host.NewFiles([]host.Entry{
	{Path: "/etc", Mode: fs.ModeDir | 0o755},
	{Path: "/etc/localtime", Mode: fs.ModeSymlink, Link: "/usr/share/zoneinfo/Etc/UTC"},
	{Path: "/etc/services", Mode: 0o644, Data: []byte("http 80/tcp\n")},
	{Path: "/etc/ssl", Mode: fs.ModeDir | 0o755},
	{Path: "/etc/ssl/openssl.cnf", Mode: 0o644, Data: []byte("# none\n")},
}, []string{"/var/lib/texmf"}), new(int))

// goldenMachine returns the machine that the programs of golden files are compiled for.
func goldenMachine() *compile.Machine {
	return &compile.Machine{
		Facts: host.Facts{
			RootDirs:   []string{"/usr", "/lib64"},
			RootLinks:  map[string]string{"/bin": "usr/bin", "/lib": "usr/lib", "/sbin": "usr/sbin"},
			Proc:       []host.ProcPath{{Path: "/proc/acpi", Dir: true}, {Path: "/proc/kcore"}},
			LastCap:    13, // CAP_NET_RAW
			HardLimits: map[string]uint64{"nofile": 4096, "sigpending": 4096, "msgqueue": 65536, "memlock": 1 << 30},
			Kernel:     [2]int{6, 12},
		},
		Files:  goldenFiles,
		Resolv: "nameserver 192.0.2.1\n",
	}
}

var valid = sandbox.WithCommand("true")

// describe returns the description that the options make.
func describe(opts ...sandbox.Option) (c *spec.Spec) {
	sandbox.New(opts...).With(func(got *spec.Spec) {
		described := *got
		c = &described
	})
	return c
}

type goldenSandbox struct {
	name    string
	shape   compile.Shape
	missing []compile.Point
	opts    []sandbox.Option
	kernel  [2]int // if not goldenMachine's
}

var goldenView = host.View{{Type: "cgroup", Name: "cpu,cpuacct", Options: "cpu,cpuacct"}, {Type: "cgroup", Name: "memory", Options: "xattr,memory"}}

// golden lists the sandboxes whose programs are kept in testdata/explain.
var golden = []goldenSandbox{
	{name: "host", opts: nil},
	{name: "host-everything", opts: []sandbox.Option{
		sandbox.WithEnv("A=1", "PATH=/opt/bin:/bin"), sandbox.WithDir("/work"), sandbox.WithExtraFiles(os.Stdin, os.Stdout),
		sandbox.WithHostname("golden"), sandbox.WithTimeOffset(-1500 * time.Millisecond), sandbox.WithUser(7, 8), sandbox.WithRlimit("nofile", 64, sandbox.RlimitInfinity), sandbox.WithRlimit("as", sandbox.MiB, sandbox.GiB),
		sandbox.WithBind("/host/work", "/work"), sandbox.WithReadOnlyBind("/host/data", "/opt/data"), sandbox.WithReadOnlyBind("/host/under", "/tmp/a/b"),
		sandbox.WithTmpfs("/tmp", 8*sandbox.MiB), sandbox.WithTmpfs("/cache/deep", sandbox.MiB),
		sandbox.WithFile("/etc/app.conf", []byte("a = 1\n"), 0o640), sandbox.WithFile("/tmp/c/d", nil, 0o600),
	}},
	{name: "host-writable", opts: []sandbox.Option{sandbox.WithWritableRoot(64 * sandbox.MiB), sandbox.WithBind("/host/work", "/work"), sandbox.WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "network-host", opts: []sandbox.Option{sandbox.WithNetwork(sandbox.NetworkHost)}},
	{name: "capabilities", opts: []sandbox.Option{sandbox.WithCapabilities("CAP_NET_RAW", "CAP_CHOWN")}},
	{name: "kept-network", shape: compile.Shape{InNetwork: true}, opts: nil},
	{name: "root-user", opts: []sandbox.Option{sandbox.WithUser(0, 0)}},
	{name: "groups", opts: []sandbox.Option{sandbox.WithGroups(10, 65533)}},
	{name: "image", shape: compile.Shape{WideIDs: true}, missing: []compile.Point{{Path: "/proc"}, {Path: "/srv/app", Own: true, Have: []overlay.Dir{{Mode: 0o755}}}}, opts: []sandbox.Option{imageOption}},
	{name: "no-seccomp", opts: []sandbox.Option{sandbox.WithoutSeccomp()}},
	{name: "single-id", shape: compile.Shape{SingleID: true}, opts: nil},
	{name: "cgroup-v1", shape: compile.Shape{Joins: 2, SavedID: true, Views: goldenView, View: goldenView}, opts: nil},
	{name: "cgroup-v2", shape: compile.Shape{Views: host.View{{Type: "cgroup2"}}, View: host.View{{Type: "cgroup2"}}}, opts: nil},
	{name: "no-user-namespace", shape: compile.Shape{HostIDs: true}, opts: []sandbox.Option{sandbox.WithoutUserNamespace(), sandbox.WithBind("/host/work", "/work"), sandbox.WithFile("/tmp/a", []byte("x"), 0o600)}},
	{name: "no-user-namespace-writable", shape: compile.Shape{HostIDs: true}, opts: []sandbox.Option{sandbox.WithoutUserNamespace(), sandbox.WithUser(7, 8), sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "dir", opts: []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs("/srv/root"))}},
	{name: "host-5.10", kernel: [2]int{5, 10}, opts: []sandbox.Option{sandbox.WithReadOnlyBind("/host/data", "/opt/data"), sandbox.WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "dir-missing", missing: []compile.Point{{Path: "/proc"}, {Path: "/usr/home/sandbox"}, {Path: "/opt/a/file", File: true}, {Path: "/opt/a/b"}},
		opts: []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs("/srv/root")), sandbox.WithFile("/opt/a/file", []byte("x"), 0o644), sandbox.WithTmpfs("/opt/a/b", sandbox.MiB)}},
	{name: "layers", shape: compile.Shape{WideIDs: true}, missing: []compile.Point{{Path: "/proc"}, {Path: "/home/sandbox", Have: []overlay.Dir{{Mode: 0o755, UID: 7, GID: 8}}}},
		opts: []sandbox.Option{sandbox.WithRootfs(sandbox.LayersRootfs("/srv/base", "/srv/tools", "/srv/app"))}},
	{name: "layers-nobody", opts: []sandbox.Option{sandbox.WithRootfs(sandbox.LayersRootfs("/srv/base", "/srv/app"))}},
	{name: "layers-writable", shape: compile.Shape{WideIDs: true}, opts: []sandbox.Option{sandbox.WithRootfs(sandbox.LayersRootfs("/srv/base", "/srv/app")), sandbox.WithWritableRoot(sandbox.MiB)}},
	{name: "scratch-root", shape: compile.Shape{WideIDs: true}, opts: []sandbox.Option{withScratchRoot, sandbox.WithFile("/etc/app.conf", []byte("x"), 0o600)}},
	{name: "scratch-root-layers", shape: compile.Shape{WideIDs: true}, missing: []compile.Point{{Path: "/proc"}}, opts: []sandbox.Option{sandbox.WithRootfs(sandbox.LayersRootfs("/srv/base", "/srv/app")), withScratchRoot}},
	{name: "dir-writable", missing: []compile.Point{{Path: "/dev/shm"}, {Path: "/opt"}},
		opts: []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs("/srv/root")), sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFile("/opt/file", []byte("x"), 0o644)}},
}

// imageOption sets what an image sets whose user is nobody, and whose working directory is on a
// tmpfs.
func imageOption(c *spec.Spec) {
	c.SetImage(spec.Image{
		Name: "golden", Layers: []string{"/srv/base", "/srv/app"}, User: "nobody", UID: 65534, GID: 65534, Groups: []int{50}, Dir: "/tmp/work", Dirs: []string{"/tmp/work", "/srv/app"}, Writable: sandbox.MiB,
	})
}

func (g *goldenSandbox) config() *spec.Spec {
	return describe(append([]sandbox.Option{sandbox.WithCommand("true", "and", "arguments")}, g.opts...)...)
}

func (g *goldenSandbox) compile(t testing.TB) *compile.Plan {
	t.Helper()
	c := g.config()
	require.Empty(t, c.Check())
	m := goldenMachine()
	if g.kernel != [2]int{} {
		m.Kernel = g.kernel
	}
	p, err := compile.New(c, m, g.shape, compile.Found{Missing: g.missing})
	require.NoError(t, err)
	return p
}

// The length of a filter depends on the architecture.
var instructions = regexp.MustCompile(`\{[0-9]+ instructions\}`)

func goldenText(p *compile.Plan, command *program.Program) string {
	var b strings.Builder
	b.WriteString("## template\n" + p.Template.Explain())
	b.WriteString("## run\n" + p.Run.Explain())
	b.WriteString("## command\n" + command.Explain())
	return instructions.ReplaceAllString(b.String(), "{... instructions}")
}

func TestExplainGolden(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			command, err := compile.Command(g.config(), goldenMachine())
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

// TestJoinGolden keeps how a further command joins runs of some of the sandboxes, and the command
// of a run that has none.
func TestJoinGolden(t *testing.T) {
	hold, err := compile.Command(describe(sandbox.WithHold(), sandbox.WithFile("/tmp/a", []byte("x"), 0o600)), goldenMachine())
	require.NoError(t, err)
	terminal, err := compile.Command(describe(valid, sandbox.WithTerminal(24, 80)), goldenMachine())
	require.NoError(t, err)
	texts := map[string]string{"hold": hold.Explain(), "terminal": terminal.Explain()}
	for _, g := range golden {
		if slices.Contains([]string{"host", "host-everything", "network-host", "capabilities", "root-user", "groups", "no-seccomp", "single-id", "cgroup-v1", "no-user-namespace"}, g.name) {
			join, err := g.compile(t).Join()
			require.NoError(t, err)
			texts[g.name] = instructions.ReplaceAllString(join.Run.Explain(), "{... instructions}")
		}
	}
	for name, got := range texts {
		path := filepath.Join("testdata", "join", name+".golden")
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), got, "if the change is intended: go test -run TestJoinGolden . -update")
	}
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
				require.Equal(t, first.Run.Image(), again.Run.Image())
				require.Equal(t, first.Template.Image(), again.Template.Image())
				require.Equal(t, first.Files, again.Files)
				require.Equal(t, first.Trees, again.Trees)
			}
		})
	}
}

// TestPlan checks what accompanies the programs.
func TestPlan(t *testing.T) {
	find := func(name string) *compile.Plan {
		for _, g := range golden {
			if g.name == name {
				return g.compile(t)
			}
		}
		t.Fatal(name)
		return nil
	}
	hostTrees := []compile.Tree{
		{Path: "/usr", Of: fault.Subject{Option: "WithRootfs"}}, {Path: "/lib64", Of: fault.Subject{Option: "WithRootfs"}},
		{Path: "/var/lib/texmf", Of: fault.Subject{Option: "WithRootfs"}},
	}
	p := find("host")
	require.Equal(t, hostTrees, p.Trees)
	require.Empty(t, p.Files)
	require.False(t, p.OwnUser)

	p = find("host-everything")
	require.Equal(t, hostTrees, p.Trees)
	require.Equal(t, []compile.Tree{
		{Path: "/host/work", Writable: true, MapOwner: true, Of: fault.Subject{Option: "WithBind"}},
		{Path: "/host/data", MapOwner: true, MapIfCan: true, Of: fault.Subject{Option: "WithReadOnlyBind"}},
		{Path: "/host/under", MapOwner: true, MapIfCan: true, Of: fault.Subject{Option: "WithReadOnlyBind"}},
	}, p.Files)
	require.True(t, p.OwnUser)

	p = find("dir-writable")
	require.Empty(t, p.Trees, "the template is the devices")
	require.Equal(t, []compile.Tree{{Path: "/srv/root", MapOwner: true, MapIfCan: true, Of: fault.Subject{Option: "WithWritableRoot"}}}, p.Files)

	p = find("layers-writable")
	require.Equal(t, []compile.Tree{
		{Path: "/srv/base", MapAll: true, MapIfCan: true, Of: fault.Subject{Option: "WithRootfs"}},
		{Path: "/srv/app", MapAll: true, MapIfCan: true, Of: fault.Subject{Option: "WithRootfs"}},
	}, p.Files)
	p = find("layers-nobody")
	require.Equal(t, []compile.Tree{{Path: "/srv/base", Of: fault.Subject{Option: "WithRootfs"}}, {Path: "/srv/app", Of: fault.Subject{Option: "WithRootfs"}}}, p.Trees)
	require.Empty(t, p.Files)
}

// TestEtc checks the files in which programs look up users and hosts.
func TestEtc(t *testing.T) {
	const root, nobody = "root:x:0:0:root:/:/bin/sh\n", "nobody:x:65534:65534:nobody:/:/bin/false\n"
	tests := []struct {
		name string
		opt  sandbox.Option
		file string
		want string
	}{
		{"passwd", sandbox.WithUser(7, 8), "/etc/passwd", root + "sandbox:x:7:8::/home/sandbox:/bin/sh\n" + nobody},
		{"passwd of root", sandbox.WithUser(0, 8), "/etc/passwd", root + nobody},
		{"group", sandbox.WithUser(7, 8), "/etc/group", "root:x:0:\nsandbox:x:8:\nnogroup:x:65534:\n"},
		{"group of root", sandbox.WithUser(7, 0), "/etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"hosts", sandbox.WithHostname("golden"), "/etc/hosts", "127.0.0.1 localhost\n127.0.0.1 golden\n::1 localhost\n"},
		{"hosts on a private network", func(c *spec.Spec) { c.Namespaces.Network = spec.NetworkPrivate }, "/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
		{"hostname", sandbox.WithHostname("golden"), "/etc/hostname", "golden\n"},
		{"resolv.conf", sandbox.WithNetwork(sandbox.NetworkNone), "/etc/resolv.conf", "# no network\noptions timeout:1 attempts:1\n"},
		{"resolv.conf of the host", sandbox.WithNetwork(sandbox.NetworkHost), "/etc/resolv.conf", "nameserver 192.0.2.1\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, f := range compile.EtcFiles(describe(valid, test.opt), goldenMachine()) {
				if f[0] == test.file {
					require.Equal(t, test.want, f[1])
					return
				}
			}
			t.Fatal("no such file")
		})
	}
}

// TestOldKernelMapsNoLayer checks that owners are not mapped if overlayfs can't take idmapped
// layers.
func TestOldKernelMapsNoLayer(t *testing.T) {
	for kernel, want := range map[[2]int]bool{{5, 11}: false, {5, 18}: false, {5, 19}: true, {6, 0}: true} {
		m := goldenMachine()
		m.Kernel = kernel
		p, err := compile.New(describe(valid, sandbox.WithRootfs(sandbox.DirRootfs("/srv")), sandbox.WithWritableRoot(sandbox.MiB)), m, compile.Shape{}, compile.Found{})
		require.NoError(t, err)
		require.Equal(t, want, p.Files[0].MapOwner, kernel)
	}
}

// TestTooLargeToCompile checks the errors that only the program's size shows.
func TestTooLargeToCompile(t *testing.T) {
	c := describe(sandbox.WithCommand("true", strings.Repeat("x", 9*sandbox.MiB)))
	require.Empty(t, c.Check())
	_, err := compile.Command(c, goldenMachine())
	require.ErrorContains(t, err, "arguments, environment and paths are larger than 8388608 bytes together")
}

// withScratchRoot does what WithScratchRoot does, with a placeholder for the scratch.
func withScratchRoot(c *spec.Spec) { c.Root.SetUpper(new(int), sandbox.MiB) }
