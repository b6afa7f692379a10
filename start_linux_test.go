package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/program"
)

func closedFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return f
}

// TestCheckReportsAll has options that are wrong in themselves beside such as name what is not there:
// they are one error, of Explain too, and of a start that is not wanted any more.
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

// TestCheckReportsOnce has paths that are wrong in themselves, and therefore not there.
func TestCheckReportsOnce(t *testing.T) {
	for _, o := range []Option{WithBind("relative", "/a"), WithBind("/no/such/place", "b"), WithRootfs(DirRootfs("relative")),
		WithIO(IOLimit{Path: "relative", ReadOps: 1}), WithCPUSet("x"),
		WithCapabilities("CAP_NONE"), WithExtraFiles(nil), WithStdout((*os.File)(nil)), WithCell(nil)} {
		err := New(valid, o).check()
		require.Error(t, err)
		require.Len(t, strings.Split(err.Error(), "\n"), 1)
	}
	require.NoError(t, New(valid, WithCPUSet("0"), WithStdin(os.Stdin), WithExtraFiles(os.Stdin)).check())
}

func TestClosedFiles(t *testing.T) {
	before := bootedCells()
	f := closedFile(t)
	for name, o := range map[string]Option{"WithStdin": WithStdin(f), "WithStdout": WithStdout(f), "WithStderr": WithStderr(f),
		"WithExtraFiles": WithExtraFiles(os.Stdin, f)} {
		_, err := New(valid, o).Run(context.Background())
		require.ErrorIs(t, err, os.ErrClosed)
		require.ErrorContains(t, err, "sandbox: "+name+": the file can't be used")
	}
	require.Equal(t, before, bootedCells())
}

func TestTooLarge(t *testing.T) {
	_, err := New(WithCommand("true", strings.Repeat("x", 9*MiB))).Explain()
	requireOptionError(t, err, "sandbox: WithCommand: arguments, environment and paths are larger than 8388608 bytes together: pass what is large in a file, with WithReadOnlyBind")
	_, err = New(valid, WithEnv("A="+strings.Repeat("x", 9*MiB))).Explain()
	requireOptionError(t, err, "sandbox: WithEnv: arguments, environment and paths are larger")
}

func TestSetupErrorOfExec(t *testing.T) {
	failed := func(errno unix.Errno, opts ...Option) error {
		call := program.Call{Number: unix.SYS_EXECVE, Purpose: program.Exec, Stage: "exec job", Text: `execve("/bin/job", ["job"], [])`}
		return setupError(&cell.CallError{Call: call, Errno: errno}, &New(WithCommand("job")).With(opts...).config)
	}
	for _, test := range []struct {
		err  error
		is   []error
		text string
	}{
		{failed(unix.ENOENT), []error{fs.ErrNotExist}, "sandbox: exec: exec job: no such file or directory"},
		{failed(unix.EACCES, WithMemory(MiB)), []error{fs.ErrPermission}, "sandbox: exec: exec job: permission denied"},
		{failed(unix.ENOMEM), []error{unix.ENOMEM}, "sandbox: exec: exec job: cannot allocate memory"},
		{failed(unix.ENOMEM, WithMemory(MiB)), []error{unix.ENOMEM, ErrOutOfMemory},
			"sandbox: exec: exec job: out of memory (cannot allocate memory) (raise WithMemory)"},
	} {
		require.EqualError(t, test.err, test.text)
		for _, sentinel := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ENOMEM, ErrOutOfMemory} {
			require.Equal(t, slices.Contains(test.is, sentinel), errors.Is(test.err, sentinel), "%v: %v", test.text, sentinel)
		}
	}
	require.ErrorContains(t, failed(unix.E2BIG), "WithCommand and WithEnv are too large")
}

func TestHints(t *testing.T) {
	for _, test := range []struct {
		purpose program.Purpose
		call    uintptr
		errno   unix.Errno
		want    string
	}{
		{program.General, unix.SYS_OPENAT2, unix.EACCES, "must be open to others"},
		{program.Place, unix.SYS_OPENAT2, unix.EACCES, "must be open to others"},
		{program.Place, unix.SYS_OPENAT2, unix.ENOENT, "in a directory of the host, or in a bind"},
		{program.General, unix.SYS_OPENAT2, unix.ENOENT, ""},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.ENOTDIR, "must both be directories, or neither"},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.EINVAL, "must both be directories, or neither"},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.EPERM, ""},
		{program.General, unix.SYS_MOVE_MOUNT, unix.EINVAL, ""},
		{program.OwnPlace, unix.SYS_MOVE_MOUNT, unix.ENOTDIR, "proc and dev must be directories"},
		{program.OwnPlace, unix.SYS_OPENAT2, unix.ELOOP, "must not be symbolic links"},
		{program.Place, unix.SYS_OPENAT, unix.EACCES, "the run's user may write to"},
		{program.General, unix.SYS_OPENAT, unix.EACCES, ""},
		{program.Directory, unix.SYS_CHDIR, unix.ENOENT, "must exist in the run's root"},
		{program.Directory, unix.SYS_CHDIR, unix.EACCES, ""},
		{program.Groups, unix.SYS_SETGROUPS, unix.EINVAL, "no other groups"},
		{program.Clocks, unix.SYS_WRITE, unix.ERANGE, "the start of the machine"},
		{program.Clocks, unix.SYS_UNSHARE, unix.EINVAL, "CONFIG_TIME_NS"},
		{program.Clocks, unix.SYS_UNSHARE, unix.ENOSPC, "user.max_*_namespaces"},
		{program.Exec, unix.SYS_EXECVE, unix.E2BIG, "too large together"},
		{program.Exec, unix.SYS_EXECVE, unix.EPERM, "must allow execve"},
		{program.Exec, unix.SYS_EXECVE, unix.ENOENT, ""},
		{program.General, unix.SYS_PRLIMIT64, unix.EPERM, "a hard limit can't be raised"},
		{program.General, unix.SYS_CLONE3, unix.EAGAIN, "too many processes"},
	} {
		got := hint(&cell.CallError{Call: program.Call{Number: test.call, Purpose: test.purpose}, Errno: test.errno})
		require.Contains(t, got, test.want, "%+v", test)
		require.Equal(t, test.want == "", got == "", "%+v", test)
	}
}

func TestBootHints(t *testing.T) {
	for why, want := range map[cell.Why]string{cell.ProgramUnreadable: "must be readable", cell.ChildTaken: "Wait4(-1)", cell.Other: ""} {
		err := fmt.Errorf("booting: %w", &cell.BootError{Why: why, Err: errors.New("x")})
		require.Contains(t, bootHint(err, false), want)
		require.Equal(t, want == "", bootHint(err, false) == "")
	}
	denied := &cell.BootError{Why: cell.CapabilitiesLacking, Denied: true, Err: unix.EPERM}
	require.Contains(t, bootHint(denied, true), "--cap-add NET_ADMIN")
	require.Contains(t, bootHint(&cell.BootError{Denied: true, Err: unix.EPERM}, true), "container")
	require.Contains(t, bootHint(&cell.BootError{Err: cell.ErrNested}, true), "the process that started this run")
}

func TestForgottenPlans(t *testing.T) {
	s := New(valid)
	before, err := s.plans.plan(s.config, shape{})
	require.NoError(t, err)
	same, err := s.plans.plan(s.config, shape{})
	require.NoError(t, err)
	require.Same(t, before, same)
	s.With(WithMemory(MiB)).plans.forget()
	again, err := s.plans.plan(s.config, shape{})
	require.NoError(t, err)
	require.NotSame(t, before, again)
}

func TestWrongCells(t *testing.T) {
	for name, o := range map[string]CellOption{
		"CellNetwork: 7 is neither":            CellNetwork(7),
		"CellCgroupParent: \"a\" is not an":    CellCgroupParent("a"),
		"CellCgroupParent: \"/a/\" is not in":  CellCgroupParent("/a/"),
		`CellCgroupParent: "/a\x00" contains`:  CellCgroupParent("/a\x00"),
		`CellCgroupParent: "/a\nb" contains a`: CellCgroupParent("/a\nb"),
	} {
		c, err := NewCell(nil, o)
		requireOptionError(t, err, "sandbox: "+name)
		require.Nil(t, c)
	}
	_, err := NewCell(CellNetwork(7), CellCgroupParent("a"))
	require.ErrorContains(t, err, "CellNetwork")
	require.ErrorContains(t, err, "CellCgroupParent")
	for _, c := range []*Cell{nil, {}} {
		require.ErrorContains(t, c.Close(), "the cell was not made by NewCell")
		_, err := New(valid, WithCell(c)).Run(context.Background())
		require.ErrorContains(t, err, "sandbox: WithCell: the cell was not made by NewCell")
	}
}
