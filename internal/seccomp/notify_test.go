//go:build linux

package seccomp

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A call that is refused fails with what the listener answers, and with ENOSYS when there is no
// listener any more, be it in the midst of the call.
func TestListener(t *testing.T) {
	f, err := CachedDefault(nil, false)
	require.NoError(t, err)
	listener, results, next := make(chan int), make(chan unix.Errno), make(chan bool)
	go func() { // this thread ends with it
		runtime.LockOSThread()
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		n, err := f.Notifying()
		assert.NoError(t, err)
		code := n.Bytes()
		program := unix.SockFprog{Len: uint16(n.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(n.Flags), uintptr(unsafe.Pointer(&program)))
		runtime.KeepAlive(code)
		assert.Zero(t, errno)
		listener <- int(fd)
		for range next {
			_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 0, 0, 0)
			results <- errno
			_, _, errno = unix.Syscall(unix.SYS_MOUNT, 1, 2, 3)
			results <- errno
			_, _, errno = unix.Syscall(unix.SYS_CHDIR, 0, 0, 0)
			results <- errno
			_, _, errno = unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, 0)
			results <- errno
		}
	}()
	defer close(next)
	fd := <-listener
	receive := func() Notification {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		require.NoError(t, err)
		n, err := Receive(fd)
		require.NoError(t, err)
		return n
	}
	_, err = Receive(fd)
	require.Equal(t, unix.EAGAIN, err)
	next <- true
	for _, want := range []struct {
		name  string
		errno unix.Errno
	}{{"io_setup", unix.ENOSYS}, {"mount", unix.EPERM}} {
		n := receive()
		require.Equal(t, want.name, n.Call.Name())
		require.Equal(t, want.errno, f.Errno(n.Call))
		require.True(t, Waits(fd, n.ID))
		require.NoError(t, Refuse(fd, n.ID, f.Errno(n.Call)))
		require.Equal(t, want.errno, <-results)
		require.False(t, Waits(fd, n.ID))
		require.Equal(t, unix.ENOENT, Refuse(fd, n.ID, 0), "too late")
	}
	n := receive()
	require.Equal(t, "chdir", n.Call.Name())
	require.EqualValues(t, unix.SECCOMP_RET_ALLOW, f.Decide(n.Call))
	require.NoError(t, Continue(fd, n.ID))
	require.Equal(t, unix.EFAULT, <-results, "the kernel's answer")
	require.Equal(t, unix.EBUSY, <-results, "a second listener")
	next <- true
	n = receive()
	require.NoError(t, Refuse(fd, n.ID, f.Errno(n.Call)))
	<-results
	receive()
	require.NoError(t, unix.Close(fd)) // while mount waits
	require.Equal(t, unix.ENOSYS, <-results)
	require.Equal(t, unix.ENOSYS, <-results, "which the filter allows")
	require.Equal(t, unix.EBUSY, <-results, "a second listener, when there is none any more")
	next <- true
	require.Equal(t, unix.ENOSYS, <-results)
	require.Equal(t, unix.ENOSYS, <-results, "which the filter refuses with EPERM")
	<-results
	<-results
}

// What a notifying filter lets pass by itself, the filter allows, and so it does what is asked
// about and passes on. It never lets a second listener in.
func TestNotifying(t *testing.T) {
	a, err := archFor(runtime.GOARCH)
	require.NoError(t, err)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomProfile(r)
		f, err := Compile(p, runtime.GOARCH)
		require.NoError(t, err)
		n, err := f.Notifying()
		require.NoError(t, err)
		m := newMachine(t, n)
		check := func(c Call) {
			want := f.Decide(c)
			flags := -1
			named, isPath := PathCalls[c.Name()]
			if isPath && named.MayBeEmpty() {
				flags = named.Flags
			}
			switch {
			case want&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO:
				want = unix.SECCOMP_RET_USER_NOTIF
			case want != unix.SECCOMP_RET_ALLOW:
			case isPath && (flags < 0 || c.Args[flags]&unix.AT_EMPTY_PATH == 0):
				want = unix.SECCOMP_RET_USER_NOTIF
			case c.Name() == "seccomp" && c.Args[1]&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0:
				want = unix.SECCOMP_RET_ERRNO | uint32(unix.EBUSY)
			}
			require.Equal(t, want, m.run(t, call{nr: c.Number, audit: c.Arch, args: c.Args}), "%s %+v", c.Name(), c)
		}
		for name := range PathCalls {
			for _, flags := range []uint64{0, unix.AT_EMPTY_PATH, r.Uint64()} {
				check(Call{Number: a.numbers[name], Arch: a.audit, Args: [maxArgs]uint64{0, 1, flags, flags, flags}})
			}
		}
		check(Own("seccomp", 1, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER))
		check(Own("seccomp", 1, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_LOG))
		check(Own("seccomp", 1, unix.SECCOMP_FILTER_FLAG_LOG))
		for range 40 {
			check(Call{Number: r.Uint32N(500), Arch: a.audit})
			check(Call{Number: a.numbers["openat"], Arch: r.Uint32()})
		}
	}
}
