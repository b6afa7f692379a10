package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

func closedFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return f
}

// TestCheckReportsAll combines options that are wrong in themselves with options that name what
// does not exist: all are reported in one error, by Explain too, and by a start whose context has
// ended.
func TestCheckReportsAll(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	s := New(WithMemory(-1), WithReadOnlyBind(missing, "/a"), WithRootfs(DirRootfs(missing)), WithCPUSet("0,9999"),
		WithIO(IOLimit{Path: missing, ReadOps: 1}, IOLimit{Path: "/proc", ReadOps: 1}), WithStdin(closedFile(t)),
		WithSeccomp(&specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", Architectures: []specs.Arch{"SCMP_ARCH_NONE"}}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, startErr := s.Start(ctx)
	_, explainErr := s.Explain()
	for _, err := range []error{startErr, explainErr} {
		for _, want := range []string{"WithCommand: no command", "WithMemory: -1", "WithReadOnlyBind: the source", "WithRootfs: stat " + missing,
			`WithCPUSet: "0,9999": there is no CPU 9999: use some of 0`, "WithIO: " + missing + ": no such file", "WithIO: /proc: it does not lie on",
			"WithStdin: the file can't be used", "WithSeccomp: "} {
			require.ErrorContains(t, err, "sandbox: "+want)
		}
		require.Len(t, strings.Split(err.Error(), "\n"), 9)
	}
	_, err := New(valid).Start(ctx)
	require.EqualError(t, err, "sandbox: not started: context canceled")
}

// TestCheckReportsOnce has paths that are wrong in themselves and so do not exist: each is reported
// once.
func TestCheckReportsOnce(t *testing.T) {
	for _, o := range []Option{WithBind("relative", "/a"), WithBind("/no/such/place", "b"), WithRootfs(DirRootfs("relative")),
		WithIO(IOLimit{Path: "relative", ReadOps: 1}), WithCPUSet("x"),
		WithCapabilities("CAP_NONE"), WithExtraFiles(nil), WithStdout((*os.File)(nil)), WithCell(nil)} {
		err := explained(New(valid, o))
		require.Error(t, err)
		require.Len(t, strings.Split(err.Error(), "\n"), 1)
	}
	require.NoError(t, explained(New(valid, WithCPUSet("0"), WithStdin(os.Stdin), WithExtraFiles(os.Stdin))))
}

// explained returns the error of Explain.
func explained(s *Sandbox) error {
	_, err := s.Explain()
	return err
}

func TestClosedFiles(t *testing.T) {
	before := testkit.ChildPIDs()
	f := closedFile(t)
	for name, o := range map[string]Option{"WithStdin": WithStdin(f), "WithStdout": WithStdout(f), "WithStderr": WithStderr(f),
		"WithExtraFiles": WithExtraFiles(os.Stdin, f)} {
		_, err := New(valid, o).Run(context.Background())
		require.ErrorIs(t, err, os.ErrClosed)
		require.ErrorContains(t, err, "sandbox: "+name+": the file can't be used")
	}
	require.Equal(t, before, testkit.ChildPIDs())
}

func TestTooLarge(t *testing.T) {
	_, err := New(WithCommand("true", strings.Repeat("x", 9*MiB))).Explain()
	requireOptionError(t, err, "sandbox: WithCommand: arguments, environment and paths are larger than 8388608 bytes together: pass what is large in a file, with WithFile or WithReadOnlyBind")
	_, err = New(valid, WithEnv("A="+strings.Repeat("x", 9*MiB))).Explain()
	requireOptionError(t, err, "sandbox: WithEnv: arguments, environment and paths are larger")
}

func TestWrongCells(t *testing.T) {
	for name, o := range map[string]CellOption{
		"CellNetwork: a cell is on no private": CellNetwork(new(PrivateNetwork).As("a")),
		"CellCgroupParent: \"a\" is not an":    CellCgroupParent("a"),
		"CellCgroupParent: \"/a/\" is not in":  CellCgroupParent("/a/"),
		`CellCgroupParent: "/a\x00" contains`:  CellCgroupParent("/a\x00"),
		`CellCgroupParent: "/a\nb" contains a`: CellCgroupParent("/a\nb"),
		"CellRuntime: no container runtime \"podman\" is known: use one of libcontainer, builtin, runc, crun, youki, systemd-nspawn, lxc, runsc, docker, libvirt": CellRuntime("podman"),
	} {
		c, err := NewCell(nil, o)
		requireOptionError(t, err, "sandbox: "+name)
		require.Nil(t, c)
	}
	_, err := NewCell(CellNetwork(new(PrivateNetwork).As("a")), CellCgroupParent("a"))
	require.ErrorContains(t, err, "CellNetwork")
	require.ErrorContains(t, err, "CellCgroupParent")
	_, err = NewCell(CellWithoutUserNamespace(), CellRuntime("lxc"))
	requireOptionError(t, err, "sandbox: CellRuntime: lxc makes no cell with CellWithoutUserNamespace: leave one of them out, or use runc")
	_, err = NewCell(CellNetwork(NetworkHost), CellRuntime("runsc"))
	requireOptionError(t, err, "sandbox: CellNetwork: runs in a cell of runsc have no network but a loopback: leave it out, or use another CellRuntime")
	for _, c := range []*Cell{nil, {}} {
		require.ErrorContains(t, c.Close(), "the cell was not made by NewCell")
		_, err := New(valid, WithCell(c)).Run(context.Background())
		require.ErrorContains(t, err, "sandbox: WithCell: the cell was not made by NewCell")
	}
}

// Explain names the option for which a run has a network namespace that no other was in.
func TestExplainNetwork(t *testing.T) {
	const kept, anew = "\n## if a network namespace of the cell is as it was when it was new: ", "\n## in a network namespace that no run was in before: "
	allow := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for _, test := range []struct {
		opts []Option
		want string
	}{
		{nil, kept + "in that,"},
		{[]Option{WithSetID(), WithUser(7, 8), WithReadOnlyBind("/", "/host")}, kept + "in that,"},
		{[]Option{WithNetwork(NetworkNew), WithoutSeccomp()}, anew + "WithNetwork(NetworkNew) "},
		{[]Option{WithoutUserNamespace()}, anew + "with WithoutUserNamespace "},
		{[]Option{WithCapabilities("CAP_KILL")}, anew + "WithCapabilities "},
		{[]Option{WithSeccomp(allow)}, anew + "WithSeccomp "},
		{[]Option{WithoutSeccomp()}, anew + "WithoutSeccomp "},
		{[]Option{WithNetwork(NetworkHost), WithoutSeccomp()}, ""},
	} {
		text, err := New(valid).With(test.opts...).Explain()
		require.NoError(t, err)
		for _, line := range []string{kept, anew} {
			require.Equal(t, strings.HasPrefix(test.want, line), strings.Contains(text, line), test.want)
		}
		require.Contains(t, text, test.want)
	}
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

// TestWrongOptionsStartNothing gives each wrong option to Start: the error is that of the option,
// whether or not a cell can be booted, and no cell is booted.
func TestWrongOptionsStartNothing(t *testing.T) {
	before := testkit.ChildPIDs()
	for _, test := range wrong {
		p, err := New(append([]Option{valid}, test.opts...)...).Start(context.Background())
		require.Nil(t, p, test.name)
		require.ErrorContains(t, err, test.want, test.name)
	}
	require.Equal(t, before, testkit.ChildPIDs())
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
