//go:build linux

package e2e

import (
	"bufio"
	"context"
	"io/fs"
	"os"
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
)

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
	_, err = p.Exec(ctx, sandbox.WithCommand("true"))
	runs.SetupError(t, err, "kernel of its own")
	runs.SetupError(t, p.Pause(), "kernel of its own")
	runs.SetupError(t, p.Signal(unix.SIGTERM), "kernel of its own")
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
	of := sandbox.WithRootfs(sandbox.LayersRootfs(root, top))
	require.Equal(t, "above", runs.Output(t, shell("cat /above; touch /new 2>/dev/null && echo writable; true", of)))
	require.Equal(t, "new", runs.Output(t, shell("echo new >/new && cat /new", of, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0))))
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
	host := testkit.HelperCommand(context.Background(), "walled", "runsc", testkit.ALongTime())
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	id := cellOf(host.Process.Pid)
	require.NotEmpty(t, belongs(id))
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "gVisor is gone", func() bool { return len(belongs(id)) == 0 })
	c, err := sandbox.NewCell() // sweeps
	require.NoError(t, err)
	require.NoError(t, c.Close())
	for _, dir := range []string{"/run", "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
			require.NotContains(t, path, id)
			return nil
		})
	}
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
