//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/internal/testkit/walltest"
)

func init() { testkit.AddHelper("forge", forgeHelper) }

// needGVisor skips the test where gVisor is not, which no package of Debian has.
func needGVisor(t *testing.T) {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "runsc")
}

// guests returns a sandbox of a shell in a cell of gVisor.
func guests(t *testing.T) (*sandbox.Cell, func(script string, opts ...sandbox.Option) *sandbox.Sandbox) {
	t.Helper()
	c, in := newWalled(t, sandbox.CellRuntime("runsc"))
	return c, func(script string, opts ...sandbox.Option) *sandbox.Sandbox {
		return runs.Shell(script, append([]sandbox.Option{in}, opts...)...)
	}
}

// A run has a kernel of its own, nothing but its root, and a loopback; its user, environment,
// directory, host name and input are what options say.
func TestGuest(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	var host unix.Utsname
	require.NoError(t, unix.Uname(&host))
	version := runs.Output(t, shell("cat /proc/version"))
	require.NotContains(t, version, unix.ByteSliceToString(host.Version[:]))
	require.Equal(t, "1000 1000 guest /tmp b in", runs.Output(t, shell(`echo $(id -u) $(id -g) $(hostname) $PWD $A $(cat)`,
		sandbox.WithHostname("guest"), sandbox.WithDir("/tmp"), sandbox.WithEnv("A=b"), sandbox.WithStdin(strings.NewReader("in")))))
	require.Equal(t, "lo:", runs.Output(t, shell(`awk 'NR > 2 { print $1 }' /proc/net/dev`)))
	require.Equal(t, "0000000000000000 0000000000000000", runs.Output(t, shell(`echo $(awk '/^Cap(Eff|Bnd)/ { print $2 }' /proc/self/status)`)))
	require.Equal(t, "0 0000000000000000 0000000000000000", runs.Output(t, shell(`echo $(id -u) $(awk '/^Cap(Eff|Bnd)/ { print $2 }' /proc/self/status)`, sandbox.WithUser(0, 0))))
	require.Equal(t, "no\nno", runs.Output(t, shell(`ls /.sandbox >/dev/null 2>&1 || echo no; touch /usr/new 2>/dev/null || echo no`)))
}

// How a run ended is true: codes, signals, and what limits and callers do.
func TestGuestEnds(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	ctx := testkit.Deadline(t)
	cell, shell := guests(t)
	for script, want := range map[string]sandbox.Result{
		"exit 7": {ExitCode: 7}, "exit 137": {ExitCode: 137}, "kill -9 $$": {ExitCode: -1, Signal: syscall.SIGKILL}, "kill -TERM $$": {ExitCode: -1, Signal: syscall.SIGTERM},
	} {
		_, err := shell(script).Run(ctx)
		exit := runs.ExitError(t, err)
		require.Equal(t, want.ExitCode, exit.ExitCode, script)
		require.Equal(t, want.Signal, exit.Signal, script)
	}
	_, err := shell("").With(sandbox.WithCommand("no-such-command")).Run(ctx)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = shell("true", sandbox.WithDir("/no/such")).Run(ctx)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = shell("sleep 1000", sandbox.WithTimeout(time.Second)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	_, err = shell("yes", sandbox.WithOutputLimit(1<<16)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	ctx = testkit.Deadline(t) // each of these starts a kernel
	begun, cancel := context.WithCancel(ctx)
	p, err := shell("sleep 1000").Start(begun)
	require.NoError(t, err)
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled)

	p = runs.Start(t, shell("sleep 1000"))
	runs.SetupError(t, p.Pause(), "kernel of its own")
	require.NoError(t, p.Kill())
	_, err = p.Wait()
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	p = runs.Start(t, shell("sleep 1000"))
	require.NoError(t, cell.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	_, err = shell("true").Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

// Signals reach the command, and WithStopSignal ends it gently.
func TestGuestSignals(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	begun, cancel := context.WithCancel(testkit.Deadline(t))
	defer cancel()
	p, err := shell("trap 'echo one' USR1; trap 'echo term; exit 3' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStdoutPipe(),
		sandbox.WithStopSignal(unix.SIGTERM, testkit.Patience)).Start(begun)
	require.NoError(t, err)
	lines := bufio.NewScanner(p.StdoutPipe())
	require.True(t, lines.Scan())
	require.NoError(t, p.Signal(unix.SIGUSR1))
	require.True(t, lines.Scan())
	require.Equal(t, "one", lines.Text())
	cancel()
	require.True(t, lines.Scan())
	require.Equal(t, "term", lines.Text())
	result, err := p.Wait()
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, result.ExitCode)
	require.ErrorIs(t, p.Signal(unix.SIGUSR1), os.ErrProcessDone)
}

// Further commands are in the run, and are what options say.
func TestGuestExec(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	ctx := testkit.Deadline(t)
	p := runs.Start(t, shell("echo >/tmp/there; exec sleep 1000", sandbox.WithEnv("A=a", "B=b"), sandbox.WithStopSignal(unix.SIGTERM, testkit.Patience)))
	testkit.Eventually(t, "the run is ready", func() bool {
		x, err := p.Exec(ctx, sandbox.WithCommand("test", "-e", "/tmp/there"))
		if err != nil {
			return false
		}
		_, err = x.Wait()
		return err == nil
	})
	require.Equal(t, "1000 1000 a c /tmp in 0000000000000000 0000000000000000", inRun(t, p, `cd $PWD; echo $(id -u) $(id -g) $A $B $PWD $(cat) $(awk '/^Cap(Prm|Bnd)/ { print $2 }' /proc/self/status)`,
		sandbox.WithEnv("B=c"), sandbox.WithDir("/tmp"), sandbox.WithStdin(strings.NewReader("in"))))
	require.Equal(t, "1", inRun(t, p, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^1000$"))
	_, err := p.Exec(ctx, sandbox.WithCommand("no-such-command"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = p.Exec(ctx, sandbox.WithCommand("true"), sandbox.WithTerminal(24, 80))
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	_, err = execute(t, p, script("exit 4")...).Wait()
	require.Equal(t, 4, runs.ExitError(t, err).ExitCode)
	_, err = execute(t, p, script("sleep 1000", sandbox.WithTimeout(100*time.Millisecond), sandbox.WithStopSignal(unix.SIGTERM, 0))...).Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	// What it has started ends with it, if it is killed or asked to end; nothing else does.
	left := "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^2000$; true"
	for name, end := range map[string]func(x *sandbox.Process) error{"kill": (*sandbox.Process).Kill, "close": (*sandbox.Process).Close} {
		x := execute(t, p, script("sleep 2000 & setsid sleep 2000 & trap 'exit 5' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStdoutPipe())...)
		_, err := bufio.NewReader(x.StdoutPipe()).ReadString('\n')
		require.NoError(t, err)
		testkit.Eventually(t, name+": all are there", func() bool { return inRun(t, p, left) == "2" })
		require.NoError(t, end(x))
		result, err := x.Wait()
		runs.ExitError(t, err)
		require.Equal(t, map[string]int{"kill": -1, "close": 5}[name], result.ExitCode, name)
		testkit.Eventually(t, name+": none is left", func() bool { return inRun(t, p, left) == "0" })
	}

	x := execute(t, p, script("sleep 1000")...)
	require.NoError(t, p.Kill())
	_, err = x.Wait()
	require.Equal(t, sandbox.RunEnded, runs.ExitError(t, err).Reason)
	_, err = p.Wait()
	require.Equal(t, sandbox.Signaled, runs.ExitError(t, err).Reason)
	_, err = p.Exec(ctx, sandbox.WithCommand("true"))
	require.ErrorIs(t, err, os.ErrProcessDone)
}

// A run of root can't report an end of its own making: PID 1's descriptor is out of its reach, by
// ways that reach the one of a child.
func TestAttackForge(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testForge(t, "child: link open")
}

func TestAttackGuestForge(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, in := newWalled(t, sandbox.CellRuntime("runsc"))
	testForge(t, "child: link open getfd trace", in)
}

func testForge(t *testing.T, child string, opts ...sandbox.Option) {
	var out bytes.Buffer
	_, err := runs.Helper("forge").With(opts...).With(sandbox.WithUser(0, 0), sandbox.WithStdout(&out)).Run(testkit.Deadline(t))
	require.Equal(t, 7, runs.ExitError(t, err).ExitCode)
	require.True(t, strings.HasPrefix(out.String(), child), out.String())
	require.True(t, strings.HasSuffix(out.String(), "\nPID 1:\n"), out.String())
}

// forgeHelper prints by which ways it reaches descriptor 3 of a child, and of PID 1, and exits with
// status 7.
func forgeHelper([]string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{w}
	if err := child.Start(); err != nil {
		return err
	}
	for _, of := range []struct {
		name string
		pid  int
	}{{"child", child.Process.Pid}, {"PID 1", 1}} {
		fmt.Println(strings.Join(append([]string{of.name + ":"}, waysTo(of.pid)...), " "))
	}
	_ = child.Process.Kill()
	os.Exit(7)
	return nil
}

func waysTo(pid int) (ways []string) {
	path := fmt.Sprintf("/proc/%d/fd/3", pid)
	pidfd, err := unix.PidfdOpen(pid, 0)
	for _, way := range []struct {
		name string
		try  func() error
	}{
		{"link", func() error { _, err := os.Readlink(path); return err }},
		{"open", func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				f.Close()
			}
			return err
		}},
		{"getfd", func() error {
			if err != nil {
				return err
			}
			_, err := unix.PidfdGetfd(pidfd, 3, 0)
			return err
		}},
		{"trace", func() error { return unix.PtraceSeize(pid) }},
	} {
		if way.try() == nil {
			ways = append(ways, way.name)
		}
	}
	return ways
}

// The limit of memory is that of the run with its kernel.
func TestGuestMemory(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	_, err := shell("head -c 1G /dev/zero | tail", sandbox.WithMemory(256*sandbox.MiB)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// Roots of directories, one and several, read-only and not, with what is mounted in them.
func TestGuestRoot(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	root := testkit.BusyboxRoot(t)
	top := filepath.Join(t.TempDir(), "a:b,c")
	require.NoError(t, os.Mkdir(top, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(top, "above"), []byte("above\n"), 0o644))
	require.NoError(t, os.MkdirAll(filepath.Join(top, ".sandbox", "theirs"), 0o755)) // where PID 1's file is
	of := sandbox.WithRootfs(sandbox.LayersRootfs(root, top))
	require.Equal(t, "above", runs.Output(t, shell("cat /above; touch /new 2>/dev/null && echo writable; true", of)))
	require.Equal(t, "new", runs.Output(t, shell("echo new >/new && cat /new && ls /.sandbox | grep theirs; test -f /.sandbox/program", of, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0))))
	require.NoFileExists(t, filepath.Join(top, "new"))

	shared := t.TempDir()
	require.NoError(t, os.Chmod(shared, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(shared, "in"), []byte("in\n"), 0o644))
	require.Equal(t, "in\nfile\nsmall", runs.Output(t, shell("cat /shared/in /etc/file; echo out >/shared/out; touch /read/x 2>/dev/null && echo writable; head -c 2m /dev/zero >/small/x 2>/dev/null || echo small",
		sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithBind(shared, "/shared"), sandbox.WithReadOnlyBind(shared, "/read"),
		sandbox.WithFile("/etc/file", []byte("file\n"), 0o600), sandbox.WithTmpfs("/small", sandbox.MiB))))
	out, err := os.ReadFile(filepath.Join(shared, "out"))
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out))
}

// A host process that is killed leaves nothing of gVisor's, and after the next cell no file.
func TestGuestKilledHost(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	host := testkit.HelperCommand(context.Background(), walltest.Helper, "runsc", testkit.ALongTime())
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	id := walltest.CellOf(host.Process.Pid)
	require.NotEmpty(t, belongs(id))
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "gVisor is gone", func() bool { return len(belongs(id)) == 0 })
	walltest.Sweep(t)
	walltest.NoFiles(t, id)
}

// What breaks out of the run's kernel is in the processes of gVisor: in namespaces of their own, in
// a root with nothing in it, behind a filter.
func TestAttackGuestBreakOut(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	p := runs.Start(t, shell("exec sleep 1000"))
	sentry := 0
	for _, pid := range testkit.ChildrenOf(p.PID()) {
		args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		require.NoError(t, err)
		if strings.HasPrefix(string(args), "runsc-sandbox\x00") {
			sentry = pid
		}
	}
	require.NotZero(t, sentry)
	for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		of, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(sentry), "ns", ns))
		require.NoError(t, err)
		own, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		require.NotEqual(t, own, of, ns)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(sentry), "status"))
	require.NoError(t, err)
	require.Contains(t, string(status), "\nSeccomp:\t2\n")
	for dir, want := range map[string][]string{"": {"etc", "proc"}, "etc": {"localtime"}} {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(sentry), "root", dir))
		require.NoError(t, err)
		var found []string
		for _, e := range entries {
			found = append(found, e.Name())
		}
		require.Equal(t, want, found)
	}
}
