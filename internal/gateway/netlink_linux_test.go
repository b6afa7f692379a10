package gateway

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What was answered to earlier changes, and not read, is not taken for the answer to later ones.
func TestOldAnswers(t *testing.T) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	socket := os.NewFile(uintptr(s), "")
	defer socket.Close()
	var wrong, right batch
	wrong.remove(1 << 30)
	right.add(unix.RTM_GETLINK, 0, "loopback", link(loopback))
	require.ErrorContains(t, wrong.send(socket), "interface 1073741824 gone: ")
	for range 3 {
		require.NoError(t, unix.Sendto(s, wrong.messages[0], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	}
	require.NoError(t, right.send(socket))
}
