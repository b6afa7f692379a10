package program

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

const childEnv = "PROGRAM_TEST_CHILD"

// inChild repeats the calling test, with its subtests, in a process of its own, so that no other
// code waits for its clones. It returns true there, and false in the process that waited for it.
func inChild(t *testing.T) bool {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		runtime.LockOSThread()
		return true
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.v")
	// The race detector would wait a second before the exit.
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a process of its own: %v\n%s", err, out)
	}
	require.Contains(t, string(out), "--- PASS: "+t.Name(), "the test did not run in the child")
	return false
}

// process is a clone that runs a program, as its host sees it.
type process struct {
	t     testing.TB
	sock  int
	pid   int
	pidfd int
}

// message is an Event and the descriptor that came along.
type message struct {
	Event
	file *os.File
}

// start clones a process that runs what b has collected.
func start(t testing.TB, flags uint64, b *Builder, files ...*os.File) *process {
	t.Helper()
	p, err := b.Program()
	require.NoError(t, err)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fds[1])
	accompany := []int{fds[1]}
	for _, f := range files {
		accompany = append(accompany, int(f.Fd()))
	}
	m := newMachine(t)
	require.NoError(t, m.Load(p.Image(), accompany))
	pid, pidfd, errno := m.Clone(flags)
	if errno == unix.EPERM || errno == unix.ENOSPC {
		testkit.Need(t, "user namespaces")
	}
	require.Zero(t, errno)
	unix.CloseOnExec(pidfd)
	proc := &process{t: t, sock: fds[0], pid: pid, pidfd: pidfd}
	t.Cleanup(proc.end)
	return proc
}

// end removes a process that a failed test did not wait for.
func (p *process) end() {
	if p.sock < 0 {
		return
	}
	unix.Close(p.sock)
	p.sock = -1
	if p.pid != 0 {
		_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		p.wait()
	}
	unix.Close(p.pidfd)
}

// next waits for a message. io.EOF means that nobody holds the other end any more.
func (p *process) next() (message, error) {
	var b [EventSize + 1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(p.sock, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return message{}, err
		}
		if n == 0 {
			return message{}, io.EOF
		}
		e, err := ParseEvent(b[:n])
		m := message{Event: e}
		if oobn > 0 {
			m.file = received(p.t, oob[:oobn])
		}
		return m, err
	}
}

func received(t testing.TB, oob []byte) *os.File {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	require.NoError(t, err)
	require.Len(t, messages, 1)
	fds, err := unix.ParseUnixRights(&messages[0])
	require.NoError(t, err)
	require.Len(t, fds, 1)
	f := os.NewFile(uintptr(fds[0]), "received")
	t.Cleanup(func() { f.Close() })
	return f
}

// all returns the events up to the end, without time, memory and Alone in them.
func (p *process) all() (events []Event) {
	p.t.Helper()
	for {
		m, err := p.next()
		if errors.Is(err, io.EOF) {
			return events
		}
		require.NoError(p.t, err)
		m.UserCPU, m.SystemCPU, m.MaxRSS = 0, 0, 0
		if m.Kind == Exited {
			m.Index = 0
		}
		events = append(events, m.Event)
	}
}

func (p *process) wait() unix.WaitStatus {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(p.pid, &status, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		require.NoError(p.t, err)
		p.pid = 0
		return status
	}
}

// quiet requires that no message comes for a while.
func (p *process) quiet() {
	p.t.Helper()
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(p.sock), Events: unix.POLLIN}}, int((50 * time.Millisecond).Milliseconds()))
	}
	require.NoError(p.t, err)
	require.Zero(p.t, n, "a message came")
}

// shell adds a command that is a shell script, and the rest of a whole run.
func (b *Builder) shell(script string, args ...string) {
	b.command(script, args...)
	b.In(Init)
	b.Event(Started)
}

// command adds a command that is a shell script.
func (b *Builder) command(script string, args ...string) {
	b.In(Command)
	// The clone blocks all signals.
	b.Call("rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, Int(unix.SIG_SETMASK), b.Bytes(make([]byte, 8), "[]"), Int(0), Int(8))
	b.CallTry("execve", unix.SYS_EXECVE, b.Str("/bin/sh"), b.Strings(append([]string{"sh", "-c", script, "sh"}, args...)),
		b.Strings([]string{"PATH=/usr/local/bin:/usr/bin:/bin"}))
	b.FailTried("/bin/sh")
}
