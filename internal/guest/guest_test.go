//go:build linux

package guest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func init() {
	runtime.LockOSThread() // TestMain, and so the helper, is on the main thread
	testkit.AddHelper("traced", tracedHelper)
}

// here is PID 1 in a pid namespace of this kernel.
type here struct {
	t       *testing.T
	control *forkserver.Conn
	cmd     *exec.Cmd
}

func serveHere(t *testing.T) *here {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	self, err := os.Executable()
	require.NoError(t, err)
	control, far, err := forkserver.NewConn()
	require.NoError(t, err)
	defer far.Close()
	const script = `mount --make-rslave / && mount -t proc proc /proc && exec "$@"`
	h := &here{t, control, exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", script, "sh", self}, Args...)...)}
	h.cmd.Env, h.cmd.ExtraFiles, h.cmd.Stderr = Env, []*os.File{far}, os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	require.NoError(t, h.cmd.Start())
	t.Cleanup(func() { control.Close(); _ = h.cmd.Wait() })
	return h
}

// start starts a command and returns what it writes, and its socket.
func (h *here) start(c Command) (*bufio.Reader, *forkserver.Conn) {
	h.t.Helper()
	r, w, err := os.Pipe()
	require.NoError(h.t, err)
	h.t.Cleanup(func() { r.Close() })
	null, err := os.Open(os.DevNull)
	require.NoError(h.t, err)
	conn, err := Start(h.control, &c, []int{int(null.Fd()), int(w.Fd()), int(w.Fd())})
	require.NoError(h.t, err)
	h.t.Cleanup(func() { conn.Close() })
	w.Close()
	null.Close()
	return bufio.NewReader(r), conn
}

func (h *here) event(conn *forkserver.Conn, kind program.Kind) program.Event {
	h.t.Helper()
	m, err := conn.Next()
	require.NoError(h.t, err, kind)
	require.Equal(h.t, kind, m.Kind)
	return m.Event
}

func (h *here) says(r *bufio.Reader, want string) {
	h.t.Helper()
	line, err := r.ReadString('\n')
	require.NoError(h.t, err, want)
	require.Equal(h.t, want+"\n", line)
}

func shell(script string) Command {
	return Command{Dir: "/", Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}}
}

// The command has the ids and environment that were given, no capability, and none of PID 1's
// descriptors. Its environment does nothing to PID 1.
func TestServe(t *testing.T) {
	c := shell(`echo $A $B $(id -u) $(id -g) $(id -G) $PWD; awk '/^Cap/ { print $2 }' /proc/self/status | sort -u; readlink /proc/self/fd/* | grep -c -e ^socket: -e memfd; exit 7`)
	c.Dir, c.UID, c.GID, c.Groups, c.Env = "/tmp", 1234, 1235, []int{1236}, append(c.Env, "A=a b\xff", "B=", variable+"=x")
	h := serveHere(t)
	out, conn := h.start(c)
	said, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Equal(t, []string{"a b\xff 1234 1235 1235 1236 /tmp", "0000000000000000", "0"}, strings.Split(strings.TrimSpace(string(said)), "\n"))
	h.event(conn, program.Started)
	require.Equal(t, 7, syscall.WaitStatus(h.event(conn, program.Exited).Status).ExitStatus())
	require.NoError(t, h.cmd.Wait(), "it ends with its first command")

	c = shell("kill -TERM 1; kill -HUP 1; kill -INT 1; (exit 3 &); kill -KILL $$")
	c.Env = append(c.Env, "LD_PRELOAD=/none.so", "GODEBUG=inittrace=1")
	h = serveHere(t)
	out, conn = h.start(c)
	said, err = io.ReadAll(out)
	require.NoError(t, err)
	require.NotContains(t, string(said), "init internal", "the command's GODEBUG is not PID 1's")
	h.event(conn, program.Started)
	require.Equal(t, unix.SIGKILL, syscall.WaitStatus(h.event(conn, program.Exited).Status).Signal())
}

// A command that makes PID 1 its tracer has not ended when it stops.
func TestServeTraced(t *testing.T) {
	h := serveHere(t)
	self, err := os.Executable()
	require.NoError(t, err)
	_, first := h.start(Command{Dir: "/", Argv: append([]string{self}, testkit.HelperArgs("traced")...), Env: []string{testkit.HelperEnv}})
	h.event(first, program.Started)
	_, seen := h.start(shell("until grep -qs '^State:.*tracing' /proc/[0-9]*/status; do sleep 0.01; done"))
	h.event(seen, program.Started)
	require.Zero(t, h.event(seen, program.Exited).Status)
	require.NoError(t, Signal(first, unix.SIGKILL))
	require.Equal(t, unix.SIGKILL, syscall.WaitStatus(h.event(first, program.Exited).Status).Signal())
}

// tracedHelper stops for its parent.
func tracedHelper([]string) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0); errno != 0 {
		return errno
	}
	return unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGUSR1)
}

// Why a command could not be started is reported. Without its first one, PID 1 ends.
func TestServeFailures(t *testing.T) {
	going := serveHere(t)
	_, first := going.start(shell("exec sleep 1000"))
	going.event(first, program.Started)
	for _, test := range []struct {
		dir, argv string
		want      program.Event
	}{
		{"/", "/none", program.Event{Errno: uint32(unix.ENOENT)}},
		{"/", "none", program.Event{Errno: uint32(unix.ENOENT)}},
		{"/", "/etc/passwd", program.Event{Errno: uint32(unix.EACCES)}},
		{"/none", "/bin/true", program.Event{Index: InDir, Errno: uint32(unix.ENOENT)}},
	} {
		test.want.Kind = program.Failed
		c := Command{Dir: test.dir, Argv: []string{test.argv}, Env: []string{"PATH=/bin"}}
		_, conn := going.start(c)
		require.Equal(t, test.want, going.event(conn, program.Failed))
		fresh := serveHere(t)
		fresh.cmd.Stderr = nil
		_, conn = fresh.start(c)
		require.Equal(t, test.want, fresh.event(conn, program.Failed))
		_, err := conn.Next()
		require.ErrorIs(t, err, io.EOF)
	}
}

// Signals reach the command that they are for. Kill reaches what a command has started too, but
// not the others; after Stop that ends with the command.
func TestServeSignals(t *testing.T) {
	const script = `sleep 1001 & setsid sleep 1001 & trap 'echo got; exit 5' TERM; trap 'echo one' USR1; echo ready; while :; do sleep 0.01; done`
	h := serveHere(t)
	out, first := h.start(shell("trap 'echo one' USR1; echo ready; while :; do sleep 0.01; done"))
	h.event(first, program.Started)
	h.says(out, "ready")
	sleeping := func() int {
		count, conn := h.start(shell("grep -l ^1001$ -z /proc/[0-9]*/cmdline 2>/dev/null | wc -l"))
		line, err := count.ReadString('\n')
		require.NoError(t, err)
		h.event(conn, program.Started)
		h.event(conn, program.Exited)
		n, err := strconv.Atoi(strings.TrimSpace(line))
		require.NoError(t, err)
		return n
	}
	for name, end := range map[string]func(*forkserver.Conn) error{
		"kill": Kill,
		"stop": func(conn *forkserver.Conn) error { return Stop(conn, unix.SIGTERM) },
	} {
		said, conn := h.start(shell(script))
		h.event(conn, program.Started)
		h.says(said, "ready")
		require.NoError(t, Signal(conn, unix.SIGUSR1))
		h.says(said, "one")
		testkit.Eventually(t, name+": what it starts is there", func() bool { return sleeping() == 2 })
		require.NoError(t, end(conn))
		status := syscall.WaitStatus(h.event(conn, program.Exited).Status)
		if name == "stop" {
			h.says(said, "got")
			require.Equal(t, 5, status.ExitStatus())
		} else {
			require.Equal(t, unix.SIGKILL, status.Signal(), name)
		}
		testkit.Eventually(t, name+": what it has started has ended", func() bool { return sleeping() == 0 })
		if name != "kill" {
			require.NoError(t, Signal(conn, unix.SIGTERM), "to one that has ended, it does nothing")
		}
	}
	require.NoError(t, Signal(first, unix.SIGUSR1))
	h.says(out, "one")
	require.NoError(t, h.control.HangUp(), "when nobody can ask any more, it ends")
	_, err := first.Next()
	require.ErrorIs(t, err, io.EOF)
}

// A PID 1 that takes nothing does not hold up its host.
func TestServeNobody(t *testing.T) {
	conn, far, err := forkserver.NewConn()
	require.NoError(t, err)
	defer conn.Close()
	defer far.Close()
	testkit.Eventually(t, "it is full", func() bool {
		begun := time.Now()
		err = Signal(conn, unix.SIGTERM)
		return err != nil || time.Since(begun) > testkit.Patience
	})
	require.ErrorIs(t, err, unix.EAGAIN)
	require.NoError(t, Kill(conn))
}
