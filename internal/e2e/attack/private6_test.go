//go:build linux

package attack

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-neighbours", seekNeighbours) }

// seekNeighbours sends to many addresses of its link that nobody has, and prints how many it could
// send.
func seekNeighbours([]string) error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	n := 0
	for i := range 3000 {
		to := [16]byte{0: 0xfe, 1: 0x80, 13: 1, 14: byte(i >> 8), 15: byte(i)}
		if unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet6{Port: 99, Addr: to, ZoneId: 64}) == nil {
			n++
		}
	}
	fmt.Println(n)
	return nil
}

// neighbours6 returns how many neighbours of IPv6 the kernel has, of all namespaces.
func neighbours6(t *testing.T) (n int) {
	b, err := os.ReadFile("/proc/net/stat/ndisc_cache")
	require.NoError(t, err)
	_, err = fmt.Sscanf(strings.Split(string(b), "\n")[1], "%x", &n)
	require.NoError(t, err)
	return n
}

// The gateway looks for no neighbours that a run makes up: there is one table of them for the whole
// machine (gc_thresh3 in Documentation/networking/ip-sysctl.rst).
func TestAttackRootlessPrivateNeighbours(t *testing.T) {
	testkit.Need(t, "IPv6")
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	before := neighbours6(t)
	require.Equal(t, "3000", runs.Output(t, runs.Helper("private-neighbours").With(sandbox.WithNetwork(n.As("attacker")))))
	require.Less(t, neighbours6(t), before+300)
}
