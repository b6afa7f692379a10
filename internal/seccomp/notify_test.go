//go:build linux

package seccomp

import (
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
	next <- true
	n := receive()
	require.NoError(t, Refuse(fd, n.ID, f.Errno(n.Call)))
	<-results
	receive()
	require.NoError(t, unix.Close(fd)) // while mount waits
	require.Equal(t, unix.ENOSYS, <-results)
	next <- true
	require.Equal(t, unix.ENOSYS, <-results)
	require.Equal(t, unix.ENOSYS, <-results, "which the filter refuses with EPERM")
}
