package console

// What goes between this program's terminal and a command's. Each direction has a thread that waits
// in poll(2), so a key wakes one thread of this program and its echo another one. By the runtime's
// poller it would be its thread, those of both directions, and one that looks for other work.

import "golang.org/x/sys/unix"

const (
	relaySize = 32 << 10

	// maxLeft bounds what is read after the command's end: a terminal holds less, but what the
	// command has left in the background may go on writing.
	maxLeft = 1 << 20
)

// relay copies from one descriptor to another until there is no more or nobody takes it, or until
// over, if it is not -1, is readable or hung up, and then as much of what is there as left says.
// The descriptors may be blocking or not.
func relay(to, from, over int, left int) {
	for b := make([]byte, relaySize); ; {
		fds := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(over), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		ended, readable := fds[1].Revents != 0, fds[0].Revents != 0
		if ended && (!readable || left <= 0) {
			return
		}
		if !readable {
			continue // EINTR
		}
		n, err := unix.Read(from, b)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		// EIO: nobody has the terminal open any more.
		case err != nil || n == 0 || !writeAll(to, b[:n]):
			return
		case ended:
			left -= n
		}
	}
}

// writeAll reports whether all was written. It waits for room.
func writeAll(to int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Write(to, b)
		switch err {
		case nil:
			b = b[n:]
		case unix.EAGAIN:
			// Write finds what is wrong.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(to), Events: unix.POLLOUT}}, -1)
		case unix.EINTR:
		default:
			return false
		}
	}
	return true
}
