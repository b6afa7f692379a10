package forkserver

import (
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// TestLastWord has a peer that sends one message and exits, which the kernel may report in reverse
// order. Both sides spin, so that the two moments meet.
func TestLastWord(t *testing.T) {
	word := program.Event{Kind: program.Finished}.Marshal()
	var peer atomic.Int64
	go func() {
		for {
			switch fd := int(peer.Load()); fd {
			case 0:
			case -1:
				return
			default:
				_ = unix.Send(fd, word, unix.MSG_NOSIGNAL)
				unix.Close(fd)
				peer.Store(0)
			}
		}
	}()
	defer peer.Store(-1)
	tries := 50000 // without the second look, more often than not one of them fails
	if os.Getenv("VM_GUEST") == "1" || runtime.GOMAXPROCS(0) == 1 {
		tries = 500 // emulation is slow, and the moments hardly meet
	}
	for range tries {
		conn, end := newConn(t)
		peer.Store(int64(end))
		m, err := conn.Next()
		require.NoError(t, err)
		require.Equal(t, program.Finished, m.Kind)
		_, err = conn.Next()
		require.Equal(t, io.EOF, err)
		require.NoError(t, conn.Close())
		for peer.Load() != 0 {
		}
	}
}

// What a peer has sent arrives even if it ends without reading what it was sent.
func TestLastWordOfOneWhoDoesNotListen(t *testing.T) {
	conn, end := newConn(t)
	defer conn.Close()
	require.NoError(t, conn.Go())
	require.NoError(t, unix.Send(end, program.Event{Kind: program.Finished}.Marshal(), unix.MSG_NOSIGNAL))
	unix.Close(end)
	m, err := conn.Next()
	require.NoError(t, err)
	require.Equal(t, program.Finished, m.Kind)
	_, err = conn.Next()
	require.Equal(t, io.EOF, err)
}

// newConn returns a Conn and the descriptor of its other end.
func newConn(t testing.TB) (*Conn, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	require.NoError(t, prepare(fds))
	return &Conn{sock: os.NewFile(uintptr(fds[0]), "run")}, fds[1]
}
