//go:build linux

package attack

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-neighbours", seekNeighbours) }

// seekNeighbours sends to so many addresses of its link that nobody has, and prints how many it
// could send.
func seekNeighbours(args []string) error {
	most, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	n, s := 0, -1
	for i := range most {
		if i%100 == 0 { // what waits for a neighbour fills the socket that sent it
			unix.Close(s)
			if s, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0); err != nil {
				return err
			}
		}
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
	before := 0
	testkit.Eventually(t, "there is room for the control's, as the kernel has for 1024", func() bool {
		before = neighbours6(t)
		return before < 500
	})
	control := onPlainLink(t, "private-hear", "private-neighbours", "400")
	require.True(t, control.Scan())
	require.Equal(t, "400", control.Text())
	require.Greater(t, neighbours6(t), before+300, "the control")

	before = neighbours6(t)
	require.Equal(t, "3000", runs.Output(t, runs.Helper("private-neighbours", "3000").With(sandbox.WithNetwork(n.As("attacker")))))
	require.Less(t, neighbours6(t), before+300)
}
