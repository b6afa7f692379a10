//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// refusalLog has what a run was refused.
type refusalLog struct {
	mu  sync.Mutex
	all []sandbox.Refusal
}

func (l *refusalLog) option() sandbox.Option {
	return sandbox.WithRefusals(func(r sandbox.Refusal) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = append(l.all, r)
	})
}

// take returns those of the calls in one line each, and forgets all.
func (l *refusalLog) take(calls ...string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.all {
		if r.Path == "" && slices.Contains(calls, r.Call) {
			lines = append(lines, fmt.Sprint(r.Call, " ", unix.ErrnoName(r.Errno), " ", r.Option, r.Capability, " ", r.Comm, " ", r.PID > 0))
		}
	}
	l.all = nil
	return lines
}

// refusedCalls makes calls that the default filter refuses, each twice, and one that it allows, and
// prints how they fail.
func refusedCalls([]string) error {
	for _, c := range [][4]uintptr{
		{unix.SYS_MOUNT}, {unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW},
		{unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM}, {unix.SYS_IO_SETUP}, {unix.SYS_FCHMOD, 0, 0o4755}, {unix.SYS_CLOSE, 1 << 20}, {1 << 20},
	} {
		for range 2 {
			_, _, errno := syscall.RawSyscall(c[0], c[1], c[2], c[3])
			fmt.Println(unix.ErrnoName(errno))
		}
	}
	return nil
}

func init() { testkit.AddHelper("refused calls", refusedCalls) }

const refusedErrnos = "EPERM\nEPERM\nEPERM\nEPERM\nEPROTONOSUPPORT\nEPROTONOSUPPORT\nENOSYS\nENOSYS\nEPERM\nEPERM\nEBADF\nEBADF\nENOSYS\nENOSYS\n"

// What the filter refuses is told once, with what would allow it, and fails as it does untold.
func TestRootlessRefusals(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "no filter but each run's own")
	var log refusalLog
	want := []string{"mount EPERM WithSeccomp helper true", "socket EPERM WithCapabilitiesCAP_NET_RAW helper true",
		"socket EPROTONOSUPPORT WithCapabilitiesCAP_NET_ADMIN helper true",
		"io_setup ENOSYS WithSeccomp helper true", "fchmod EPERM WithSetID helper true", "unknown ENOSYS WithSeccomp helper true"}
	calls := []string{"mount", "socket", "io_setup", "fchmod", "close", "unknown"}

	out, err := runs.Helper("refused calls").Output(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, refusedErrnos, string(out))

	s := sandbox.New(append(runs.HelperOptions(), log.option())...)
	prepared := runs.Prepared(t, 1, append(runs.HelperOptions(), log.option())...)
	for name, s := range map[string]*sandbox.Sandbox{"a run": s, "prepared": prepared} {
		out, err := runs.HelperOf(s, "refused calls").Output(testkit.Deadline(t))
		require.NoError(t, err, name)
		require.Equal(t, refusedErrnos, string(out), name)
		require.Equal(t, want, log.take(calls...), name)
	}

	// A further command, and what it leaves behind, answers to the run's.
	p := runs.Start(t, s.With(sandbox.WithHold()))
	var both bytes.Buffer
	x := execute(t, p, sandbox.WithCommand("/helper", testkit.HelperArgs("refused calls")...), sandbox.WithStdout(&both))
	_, err = x.Wait()
	require.NoError(t, err)
	require.Equal(t, refusedErrnos, both.String())
	var told []string // the run's reports go on beside the command's end
	testkit.Eventually(t, "the command's reports", func() bool { told = append(told, log.take(calls...)...); return len(told) >= len(want) })
	require.Equal(t, want, told)
	inRun(t, p, "(sleep 0.3; chmod u+s /tmp; chmod g+s /tmp; echo $? >/tmp/left) >/dev/null 2>&1 &")
	testkit.Eventually(t, "a process that was left is refused", func() bool { return inRun(t, p, "cat /tmp/left 2>/dev/null || echo") == "1" })
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"), log.option())
	require.ErrorContains(t, err, "WithRefusals: it belongs to the run")
}

// A profile of the caller's own is loaded later, and may refuse anything but what tells of it.
func TestRootlessRefusalsOfProfile(t *testing.T) {
	t.Parallel()
	errno := uint(unix.EXDEV)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getppid", "fchmod"}, Action: specs.ActErrno, ErrnoRet: &errno}}}
	var log refusalLog
	out, err := runs.Helper("syscall", strconv.Itoa(unix.SYS_GETPPID)).With(sandbox.WithSeccomp(profile), log.option()).Output(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, "EXDEV\n", string(out))
	require.Equal(t, []string{"getppid EXDEV WithSeccomp helper true"}, log.take("getppid"))

	for _, name := range []string{"sendmsg", "close"} {
		mute := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{name}, Action: specs.ActErrno}}}
		_, err = runs.Shell("", sandbox.WithSeccomp(mute), log.option()).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "WithRefusals: ")
	}
	_, err = runs.Shell("", sandbox.WithoutSeccomp(), log.option()).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithRefusals: ")
}

// takePaths returns what was missing or denied at paths below a directory in one line each, in
// order, and forgets all.
func (l *refusalLog) takePaths(below string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.all {
		if strings.HasPrefix(r.Path, below) {
			lines = append(lines, fmt.Sprint(unix.ErrnoName(r.Errno), " ", strings.TrimPrefix(r.Path, below), " ", r.Option))
		}
	}
	l.all = nil
	slices.Sort(lines)
	return lines
}

// What a run looks for in vain and this machine has, and what it may not do with what is there, is
// reported once each, with what would help, and the calls end as they do otherwise.
func TestRootlessRefusalsOfPaths(t *testing.T) {
	t.Parallel()
	dir := testkit.OpenDir(t)
	for _, name := range []string{"hidden/file", "hidden/program", "shown/file", "shown/closed/file", "writable/file"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	require.NoError(t, os.Symlink("../hidden/file", filepath.Join(dir, "shown/link")))
	// Which the run's user is not the owner of, whoever this process is.
	require.NoError(t, os.Chmod(filepath.Join(dir, "shown/closed"), 0))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "shown/closed"), 0o755) })
	script := strings.ReplaceAll(`exec 2>&1; cd /tmp
cat DIR/hidden/file DIR/hidden/nowhere /proc/self/status /proc/self/nowhere /dev/tty >/dev/null
cat DIR/hidden/file; cd DIR/shown; test -e ../hidden/program; cat link; cat file; cat closed/file
touch new; mkdir made; test -w file; rm file; rm -f nothing; : <DIR/shown/file
touch DIR/writable/new; rm DIR/writable/file; touch /tmp/new; echo $?`, "DIR", dir)
	want := []string{"EACCES /shown/closed ", "ENOENT /hidden/file WithReadOnlyBind", "ENOENT /hidden/program WithReadOnlyBind",
		"EROFS /shown/file WithBind", "EROFS /shown/made WithBind", "EROFS /shown/new WithBind"}
	binds := []sandbox.Option{sandbox.WithReadOnlyBind(filepath.Join(dir, "shown"), filepath.Join(dir, "shown")), sandbox.WithBind(filepath.Join(dir, "writable"), filepath.Join(dir, "writable"))}

	var log refusalLog
	told := append(binds, log.option())
	plain := runs.Output(t, runs.Shell(script, binds...))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "writable/file"), nil, 0o644))
	require.Equal(t, plain, runs.Output(t, runs.Shell(script, told...)))
	require.Equal(t, want, log.takePaths(dir))

	// A program that is not found, by the run's start, a shell, and a further command.
	_, err := sandbox.New(append(told, sandbox.WithCommand(filepath.Join(dir, "hidden/program")))...).Run(testkit.Deadline(t))
	require.Error(t, err)
	require.Equal(t, []string{"ENOENT /hidden/program WithReadOnlyBind"}, log.takePaths(dir))
	path := sandbox.WithEnv("PATH=/bin:/usr/bin:" + filepath.Join(dir, "hidden"))
	_, _ = runs.Shell("program", append(told, path)...).Run(testkit.Deadline(t))
	require.Equal(t, []string{"ENOENT /hidden/program WithReadOnlyBind"}, log.takePaths(dir))
	p := runs.Start(t, sandbox.New(append(told, sandbox.WithHold())...))
	x := execute(t, p, sandbox.WithCommand("/bin/sh", "-c", "cat /readonly "+dir+"/hidden/file; touch /readonly"))
	_, _ = x.Wait()
	testkit.Eventually(t, "what a further command did not find", func() bool {
		return slices.Contains(log.takePaths(dir), "ENOENT /hidden/file WithReadOnlyBind")
	})
}

// A function, and the calls that a worker serves, are reported as commands are.
func TestRootlessRefusalsOfFunctions(t *testing.T) {
	t.Parallel()
	dir := testkit.OpenDir(t)
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	require.NoError(t, os.WriteFile(first, nil, 0o644))
	require.NoError(t, os.WriteFile(second, nil, 0o644))
	var log refusalLog
	_, err := work.Call(testkit.Deadline(t), job{Do: "read", Text: first}, log.option())
	require.ErrorContains(t, err, "no such file")
	require.Equal(t, []string{"ENOENT /first WithReadOnlyBind"}, log.takePaths(dir))

	workers := work.With(log.option()).Workers(1)
	defer workers.Close()
	for _, name := range []string{first, second} {
		_, err = workers.Call(testkit.Deadline(t), job{Do: "read", Text: name})
		require.ErrorContains(t, err, "no such file")
		testkit.Eventually(t, "the call's report", func() bool {
			return slices.Equal(log.takePaths(dir), []string{"ENOENT /" + filepath.Base(name) + " WithReadOnlyBind"})
		})
	}
	workers.Close()
	require.Empty(t, log.takePaths(dir))
}

// Whoever is told, however slowly, holds up neither the run nor, for longer than WithWaitDelay,
// Wait.
func TestRootlessSlowRefusals(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	defer close(stuck)
	s := runs.Helper("refused calls").With(sandbox.WithRefusals(func(sandbox.Refusal) { <-stuck }), sandbox.WithWaitDelay(100*time.Millisecond))
	out, err := s.Output(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, refusedErrnos, string(out))
}
