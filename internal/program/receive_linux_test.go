package program

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// startPoller makes the runtime open its own descriptors.
func startPoller(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	r.Close()
	w.Close()
}

// waiting starts a process whose command waits for its program and has reported that.
func waiting(t *testing.T) *process {
	t.Helper()
	b := NewBuilder()
	b.Call("getpid", unix.SYS_GETPID)
	b.In(Command)
	b.Event(Ready)
	b.Receive()
	b.In(Init)
	b.Event(Started)
	p := start(t, 0, b)
	for _, want := range []Kind{Ready, Waiting} {
		m, err := p.next()
		require.NoError(t, err)
		require.Equal(t, want, m.Kind)
	}
	return p
}

// hand sends an image in pieces of at most size bytes.
func (p *process) hand(image []byte, size int, files ...*os.File) {
	p.t.Helper()
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	oob := unix.UnixRights(fds...)
	for len(image) > 0 {
		n := min(len(image), size)
		require.NoError(p.t, unix.Sendmsg(p.sock, image[:n], oob, nil, unix.MSG_NOSIGNAL))
		image, oob = image[n:], nil
	}
}

// writer is a program whose command writes its arguments to the pipe that is sent with it.
func writer(t *testing.T, args ...string) []byte {
	t.Helper()
	b := NewBuilder()
	out := b.File("pipe")
	b.In(Command)
	b.Call("dup3", unix.SYS_DUP3, Use(out), Int(1), Int(0))
	b.command(`printf "%s" "$*"; exit 4`, args...)
	p, err := b.Program()
	require.NoError(t, err)
	return p.Image()
}

func TestReceive(t *testing.T) {
	if !inChild(t) {
		return
	}
	startPoller(t)
	for _, size := range []int{1, 8, 31, 32, 100, 64 << 10} {
		before := openFiles(t)
		p := waiting(t)
		p.quiet()
		read, write, err := os.Pipe()
		require.NoError(t, err)
		p.hand(writer(t, "handed", "over"), size, write)
		require.NoError(t, write.Close())
		require.Equal(t, []Event{{Kind: Started}, {Kind: Exited, Status: 4 << 8}}, p.all(), size)
		content := make([]byte, 64)
		n, err := read.Read(content)
		require.NoError(t, err)
		require.Equal(t, "handed over", string(content[:n]), size)
		require.NoError(t, read.Close())
		p.end()
		require.Equal(t, before, openFiles(t))
	}
}

// A clone stays on one processor until its command begins, which may use what the parent may, as
// may PID 1 then, and the parent all along. Where the parent lacks some, all have the same.
func TestProcessors(t *testing.T) {
	if !inChild(t) {
		return
	}
	all, one := someProcessors(t)
	startPoller(t)
	for _, want := range []unix.CPUSet{all, one, all} {
		require.NoError(t, unix.SchedSetaffinity(0, &want))
		p := waiting(t)
		here := processorsOf(t, p.pid)
		require.Equal(t, 1, here.Count())
		read, write, err := os.Pipe()
		require.NoError(t, err)
		b := NewBuilder()
		out := b.File("pipe")
		b.In(Command)
		b.Call("dup3", unix.SYS_DUP3, Use(out), Int(1), Int(0))
		b.command(`grep ^Cpus_allowed: /proc/self/status; exec sleep 0.3 2>/dev/null`)
		next, err := b.Program()
		require.NoError(t, err)
		p.hand(next.Image(), 64<<10, write)
		require.NoError(t, write.Close())
		m, err := p.next()
		require.NoError(t, err)
		require.Equal(t, Started, m.Kind)
		require.Equal(t, want, processorsOf(t, p.pid))
		require.Equal(t, want, processorsOf(t, 0))
		own, err := os.ReadFile("/proc/thread-self/status")
		require.NoError(t, err)
		told := make([]byte, 1<<10)
		n, err := read.Read(told)
		require.NoError(t, err)
		require.Contains(t, string(own), "\n"+string(told[:n]))
		require.NoError(t, read.Close())
		p.end()
	}
}

// Clones do not stay on one processor beside another that has just begun, nor where the parent
// lacks some.
func TestProcessorsCrowded(t *testing.T) {
	if !inChild(t) {
		return
	}
	all, one := someProcessors(t)
	b := NewBuilder()
	b.In(Command)
	b.Receive()
	p, err := b.Program()
	require.NoError(t, err)
	m := newMachine(t)
	stays := func() bool {
		require.NoError(t, m.Load(p.Image(), []int{0}))
		return m.state.stays
	}
	require.True(t, stays())
	m.last += int64(time.Minute)
	require.False(t, stays())
	m.last -= 2 * crowded
	require.True(t, stays())

	for _, has := range []unix.CPUSet{one, all} {
		require.NoError(t, unix.SchedSetaffinity(0, &has))
		m.last -= 2 * crowded
		require.Equal(t, has == all, stays())
		require.Equal(t, has, processorsOf(t, 0))
	}
}

// Where a command can't leave its processor it does not begin. A parent that could not does so
// before its next clone.
func TestProcessorsStuck(t *testing.T) {
	if !inChild(t) {
		return
	}
	all, one := someProcessors(t)
	b := NewBuilder()
	b.In(Command)
	b.Event(Ready)
	b.Receive()
	p, err := b.Program()
	require.NoError(t, err)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	m := newMachine(t)
	stays := func() bool {
		require.NoError(t, m.Load(p.Image(), fds[1:]))
		return m.state.stays
	}
	require.True(t, stays())
	clone := &process{t: t, sock: fds[0]}
	var errno unix.Errno
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread() // which ends with this
		assert.NoError(t, unix.SchedSetaffinity(0, &one))
		assert.NoError(t, refuse(unix.SYS_SCHED_SETAFFINITY))
		clone.pid, clone.pidfd, errno = m.Clone(pidNamespace())
	}()
	<-done
	if errno != 0 {
		testkit.Need(t, "user namespaces")
	}
	require.Zero(t, errno)
	t.Cleanup(clone.end)
	require.NoError(t, unix.Close(fds[1]))
	for _, want := range []Event{{Kind: Ready}, {Kind: Failed, Index: 1, Errno: uint32(unix.ENOMEM)}} {
		m, err := clone.next()
		require.NoError(t, err)
		require.Equal(t, want, m.Event)
	}

	require.NoError(t, unix.SchedSetaffinity(0, &one))
	m.last -= 2 * crowded
	require.True(t, stays())
	require.Equal(t, all, processorsOf(t, 0))
}

// refuse makes a call of this thread and of its children fail as if memory were short.
func refuse(num uint32) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number: seccomp(2), struct seccomp_data
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: num, Jf: 1},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOMEM)},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return errors.Join(
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
}

// someProcessors returns what this thread, which becomes the test's own, may use, and one of them.
func someProcessors(t *testing.T) (all, one unix.CPUSet) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	require.Zero(t, roam())
	all = processorsOf(t, 0)
	testkit.Need(t, "2 CPUs")
	for at := 0; one.Count() == 0; at++ {
		if all.IsSet(at) {
			one.Set(at)
		}
	}
	return all, one
}

func processorsOf(t *testing.T, pid int) (set unix.CPUSet) {
	t.Helper()
	require.NoError(t, unix.SchedGetaffinity(pid, &set))
	return set
}

// The descriptors that a program passes on come before those that are sent with the program that it
// receives. If that expects something else, it is refused.
func TestPass(t *testing.T) {
	if !inChild(t) {
		return
	}
	for _, expect := range []int{2, 1, 3} {
		b := NewBuilder()
		one, two := b.File("one"), b.File("two")
		b.Pass(two)
		b.Pass(one)
		b.In(Command)
		b.Receive()
		b.In(Init)
		b.Event(Started)
		read, write, err := os.Pipe()
		require.NoError(t, err)
		p := start(t, 0, b, os.Stdin, write)
		m, err := p.next()
		require.NoError(t, err)
		require.Equal(t, Waiting, m.Kind)

		next := NewBuilder()
		for range expect {
			next.Passed("one of them")
		}
		text := next.File("a pipe")
		next.In(Command)
		next.Call("dup3", unix.SYS_DUP3, Use(Report+1), Int(1), Int(0))
		next.Call("dup3", unix.SYS_DUP3, Use(text), Int(2), Int(0))
		next.command(`echo passed; echo sent >&2; exit 4`)
		image, err := next.Program()
		require.NoError(t, err)
		require.Contains(t, image.Explain(), "$1 = passed: one of them\n")
		if expect == 2 {
			p.quiet()
		}
		sent, also, err := os.Pipe()
		require.NoError(t, err)
		p.hand(image.Image(), 1000, also)
		require.NoError(t, also.Close())
		require.NoError(t, write.Close())
		events := p.all()
		if expect != 2 {
			require.Len(t, events, 1)
			require.Equal(t, uint32(unix.EBADMSG), events[0].Errno)
			continue
		}
		require.Equal(t, []Event{{Kind: Started}, {Kind: Exited, Status: 4 << 8}}, events)
		for pipe, want := range map[*os.File]string{read: "passed\n", sent: "sent\n"} {
			content, err := io.ReadAll(pipe)
			require.NoError(t, err)
			require.Equal(t, want, string(content))
		}
	}
	b := NewBuilder()
	for range MaxPassed + 1 {
		b.Pass(Report)
	}
	_, err := b.Program()
	require.ErrorContains(t, err, "more than 64 descriptors are passed on")
}

func TestReceiveMuch(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	for range MaxFiles - 1 {
		b.File("file")
	}
	args := make([]string, 10)
	for i := range args {
		args[i] = strings.Repeat("x", 100<<10)
	}
	b.command(`[ $# = 10 ] && [ ${#10} = 102400 ]`, args...)
	image, err := b.Program()
	require.NoError(t, err)
	p := waiting(t)
	files := make([]*os.File, MaxFiles-1)
	for i := range files {
		files[i] = os.Stdin
	}
	p.hand(image.Image(), 64<<10, files...)
	require.Equal(t, []Event{{Kind: Started}, {Kind: Exited}}, p.all())
}

// The index of a call that fails after the receipt includes the calls before, and the first
// program's Init part is not reached.
func TestReceivedCallFails(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	b.In(Command)
	b.Call("getpid", unix.SYS_GETPID)
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/there/is/no/such/directory"))
	next, err := b.Program()
	require.NoError(t, err)
	p := waiting(t)
	p.hand(next.Image(), len(next.Image()))
	const before = 4 // getpid, report, receive, report
	require.Equal(t, []Event{{Kind: Failed, Index: before + 1, Errno: uint32(unix.ENOENT)}}, p.all())
	require.Equal(t, 127, p.wait().ExitStatus())
}

// If anything else comes instead of a program, the process reports that and executes nothing.
func TestReceiveRefuses(t *testing.T) {
	if !inChild(t) {
		return
	}
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	defer write.Close()
	good := writer(t)
	damaged := append([]byte(nil), good...)
	damaged[headerSize+8] = 9 // kind of an argument
	tests := map[string]struct {
		send func(p *process)
		want unix.Errno
	}{
		"nothing": {func(p *process) { require.NoError(t, unix.Shutdown(p.sock, unix.SHUT_WR)) }, unix.ECONNRESET},
		"half of one": {func(p *process) {
			p.hand(good[:len(good)/2], 50, write)
			require.NoError(t, unix.Shutdown(p.sock, unix.SHUT_WR))
		}, unix.ECONNRESET},
		"garbage":              {func(p *process) { p.hand(make([]byte, 64), 64) }, unix.EBADMSG},
		"damage":               {func(p *process) { p.hand(damaged, len(damaged), write) }, unix.EBADMSG},
		"more than one":        {func(p *process) { p.hand(append(append([]byte(nil), good...), 0), 64<<10, write) }, unix.EBADMSG},
		"no descriptor":        {func(p *process) { p.hand(good, len(good)) }, unix.EBADMSG},
		"too many descriptors": {func(p *process) { p.hand(good, len(good), write, write) }, unix.EBADMSG},
	}
	for name, test := range tests {
		p := waiting(t)
		test.send(p)
		require.Equal(t, []Event{{Kind: Failed, Index: 2, Errno: uint32(test.want)}}, p.all(), name)
		require.Equal(t, 127, p.wait().ExitStatus(), name)
	}
}

// TestWaitFiles has descriptors come with the message to go on. No more arrive than were sent.
func TestWaitFiles(t *testing.T) {
	if !inChild(t) {
		return
	}
	for sent, want := range map[int][]Event{
		2: {{Kind: Started}, {Kind: Exited}},
		1: {{Kind: Failed, Index: 5, Errno: uint32(unix.EBADF)}},
		0: {{Kind: Failed, Index: 4, Errno: uint32(unix.EBADF)}},
	} {
		b := NewBuilder()
		b.In(Command)
		b.Event(Ready)
		for _, f := range b.WaitFiles(2) {
			b.Call("write", unix.SYS_WRITE, Use(f), b.Str("x"), Int(1))
		}
		b.shell("exit 0")
		p := start(t, 0, b)
		_, err := p.next()
		require.NoError(t, err)
		read, write, err := os.Pipe()
		require.NoError(t, err)
		p.hand([]byte{1}, 1, []*os.File{write, write}[:sent]...)
		require.NoError(t, write.Close())
		require.Equal(t, want, p.all(), sent)
		content := make([]byte, 8)
		n, _ := read.Read(content)
		require.Equal(t, sent, n)
		require.NoError(t, read.Close())
	}
}
