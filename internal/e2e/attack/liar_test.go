//go:build linux

package attack

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// TestAttackLiar has a run lie to the host: on the streams that it has, and on the socket that it
// does not have.
func TestAttackLiar(t *testing.T) {
	t.Parallel()
	t.Run("find PID 1's socket", attackSocket)
	t.Run("say the last word for PID 1", attackLastWord)
	t.Run("write without end", attackEndlessOutput)
	t.Run("close all streams", attackClosedStreams)
	t.Run("write what nobody reads", attackUnreadOutput)
	t.Run("read nothing", attackUnreadInput)
	t.Run("send what nobody receives", attackUnreceived)
}

// PID 1 reports on a socket, its descriptor 0. The command can't reach that, with or without a
// filter. It does find a socket that it was given.
func attackSocket(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*sandbox.Sandbox{"with a filter": runs.Helper("sockets"), "without": runs.Helper("sockets").With(sandbox.WithoutSeccomp())} {
		require.Empty(t, runs.Output(t, s.With(sandbox.WithStdin(strings.NewReader("")))), name)
	}
	pair := socketPair(t, unix.SOCK_SEQPACKET)
	require.Equal(t, "descriptor 3", runs.Output(t, runs.Helper("sockets").With(sandbox.WithExtraFiles(pair[0]))))
}

// socketsHelper prints which sockets it finds, its own and PID 1's.
func socketsHelper([]string) error {
	isSocket := func(fd int) bool {
		var st unix.Stat_t
		return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
	}
	for fd := range 1024 {
		if isSocket(fd) {
			fmt.Println("descriptor", fd)
		}
		if f, err := unix.Open(fmt.Sprintf("/proc/1/fd/%d", fd), unix.O_PATH, 0); err == nil {
			fmt.Println("opened PID 1's", fd)
			unix.Close(f)
		}
	}
	init, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return err
	}
	defer unix.Close(init)
	for fd := range 8 {
		if _, err := unix.PidfdGetfd(init, fd, 0); err == nil {
			fmt.Println("took PID 1's", fd)
		}
	}
	return nil
}

// Assume that the command has taken over PID 1 after all: whatever it writes to the socket, the run
// ends at once. The test takes the socket, which root can.
func attackLastWord(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	event := func(e program.Event) []byte { return e.Marshal() }
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	rights := unix.UnixRights(int(null.Fd()), int(null.Fd()))
	for name, lie := range map[string]struct {
		say  func(socket int)
		want sandbox.Result
	}{
		"it has exited": {func(s int) { _ = unix.Send(s, event(program.Event{Kind: program.Exited, Status: 7 << 8}), 0) }, sandbox.Result{ExitCode: 7, Reason: sandbox.Exited}},
		"no status":     {func(s int) { _ = unix.Send(s, event(program.Event{Kind: program.Exited, Status: 0x7f}), 0) }, sandbox.Result{ExitCode: -1, Reason: sandbox.Exited}},
		"it has failed": {func(s int) { _ = unix.Send(s, event(program.Event{Kind: program.Failed, Index: 1 << 31}), 0) }, killedByHost},
		"started again": {func(s int) { _ = unix.Send(s, event(program.Event{Kind: program.Started}), 0) }, killedByHost},
		"garbage":       {func(s int) { _ = unix.Send(s, make([]byte, 50_000), 0) }, killedByHost},
		"nothing":       {func(s int) { _ = unix.Shutdown(s, unix.SHUT_RDWR) }, killedByHost},
		"descriptors": {func(s int) {
			_ = unix.Sendmsg(s, event(program.Event{Kind: program.Exited}), rights, nil, 0)
		}, killedByHost},
		"all of it, without end": {func(s int) {
			for unix.Send(s, event(program.Event{Kind: program.Ready}), unix.MSG_NOSIGNAL) == nil {
			}
		}, killedByHost},
	} {
		mark := testkit.ALongTime()
		p := runs.Start(t, sandbox.New(sandbox.WithCommand("sleep", mark)))
		socket := reportSocket(t, p)
		lie.say(socket)
		unix.Close(socket)
		result, err := p.Wait()
		require.Equal(t, lie.want.Reason, result.Reason, name)
		require.Equal(t, lie.want.ExitCode, result.ExitCode, name)
		require.Equal(t, lie.want.Signal, result.Signal, name)
		runs.ExitError(t, err)
		testkit.RequireGone(t, mark)
	}
}

var killedByHost = sandbox.Result{ExitCode: -1, Signal: syscall.SIGKILL, Reason: sandbox.Signaled}

// reportSocket takes a descriptor of the socket on which the run's PID 1 reports.
func reportSocket(t *testing.T, p *sandbox.Process) int {
	t.Helper()
	pidfd, err := unix.PidfdOpen(parent(t, p.PID()), 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	socket := -1
	testkit.Eventually(t, "PID 1 has put its socket in its place", func() bool { // after it reported that the command has started
		if socket, err = unix.PidfdGetfd(pidfd, 0, 0); err != nil {
			return false
		}
		kind, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && kind == unix.SOCK_SEQPACKET {
			return true
		}
		unix.Close(socket)
		return false
	})
	return socket
}

// attackTimeout is how long an attack goes on that only its timeout ends.
const attackTimeout = 200 * time.Millisecond

// requireTimedOut runs a command that does not end by itself: it is killed soon.
func requireTimedOut(t *testing.T, s *sandbox.Sandbox) {
	t.Helper()
	begin := time.Now()
	result, err := s.With(sandbox.WithTimeout(attackTimeout)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, sandbox.TimedOut, result.Reason)
	require.Less(t, time.Since(begin), testkit.Patience/4)
}

func attackEndlessOutput(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	both := runs.Shell("cat /dev/urandom & cat /dev/zero >&2 & sleep "+mark, sandbox.WithStdout(io.MultiWriter(io.Discard)), sandbox.WithStderr(io.MultiWriter(io.Discard)))
	requireTimedOut(t, both)
	testkit.RequireGone(t, mark)
	result, err := both.With(sandbox.WithOutputLimit(sandbox.MiB), sandbox.WithTimeout(testkit.Patience)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, sandbox.OutputExceeded, result.Reason)
	testkit.RequireGone(t, mark)
}

// The run goes on without its streams. Its timeout ends it, not theirs.
func attackClosedStreams(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	requireTimedOut(t, runs.Shell("exec <&- >&- 2>&-; exec sleep "+mark,
		sandbox.WithStdin(endless{}), sandbox.WithStdout(io.MultiWriter(io.Discard)), sandbox.WithOutputLimit(10)))
	testkit.RequireGone(t, mark)
}

// endless is an endless input.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func attackUnreadOutput(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	requireTimedOut(t, runs.Shell("exec cat /dev/zero", sandbox.WithStdout(w)))
	pair := socketPair(t, unix.SOCK_STREAM)
	requireTimedOut(t, runs.Shell("exec cat /dev/zero", sandbox.WithStdout(pair[0])))
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer file.Close()
	_, err = runs.Shell("exec cat /dev/zero", sandbox.WithStdout(file), sandbox.WithOutputLimit(sandbox.MiB)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
}

func attackUnreadInput(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	requireTimedOut(t, runs.Shell("exec sleep "+mark, sandbox.WithStdin(endless{})))
	testkit.RequireGone(t, mark)
}

// A socket that the run was given is full of messages with descriptors, among them its other end,
// that nobody receives.
func attackUnreceived(t *testing.T) {
	t.Parallel()
	pair := socketPair(t, unix.SOCK_STREAM)
	require.Equal(t, "sent", runs.Output(t, runs.Helper("send").With(sandbox.WithExtraFiles(pair[0], pair[1]))))
}

// sendHelper sends descriptors of sockets over those sockets until they take no more.
func sendHelper([]string) error {
	if err := unix.SetNonblock(3, true); err != nil {
		return err
	}
	for n := 0; ; n++ {
		if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(3, 4), nil, 0); err != nil {
			if n == 0 {
				return err
			}
			fmt.Println("sent")
			return nil
		}
	}
}

func socketPair(t testing.TB, kind int) (files [2]*os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { files[i].Close() })
	}
	return files
}
