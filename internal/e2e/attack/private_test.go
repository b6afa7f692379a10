//go:build linux

package attack

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-dial", dialAll) }

// gateways6 are the gateway's own addresses of IPv6, and those that stand for names of nobody.
var gateways6 = []string{"fe80::1%eth0", "ff02::1%eth0", "fde0:6be0:7e22::c612:1", "fde0:6be0:7e22::c613:0", "fde0:6be0:7e22::c613:ffff"}

// dialAll fails if anything comes from any of the addresses.
func dialAll(to []string) error {
	for _, at := range to {
		network, at := runs.Over("tcp", at)
		conn, err := net.DialTimeout(network, at, 20*time.Second)
		if err != nil {
			continue
		}
		b, _ := io.ReadAll(conn)
		conn.Close()
		if len(b) > 0 {
			return fmt.Errorf("%s: %q", at, b)
		}
	}
	return nil
}

// guarded is an address with a server that nothing may reach, and the connections that it had.
type guarded struct {
	mu  sync.Mutex
	had []string
}

// serve returns the port.
func (g *guarded) serve(t *testing.T, address string) int {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return 0 // not one of this machine's
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.had = append(g.had, conn.LocalAddr().String())
			g.mu.Unlock()
			fmt.Fprint(conn, "secret")
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// take returns the connections that it had, and forgets them.
func (g *guarded) take() (had []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	had, g.had = g.had, nil
	return had
}

// Names that lead to what is not the internet's, in all the ways in which a name server can say it,
// also where everything is listed.
func TestAttackRootlessPrivateNames(t *testing.T) {
	const port = "39123"
	var behind guarded
	behind.serve(t, ":"+port)
	addresses := []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "64:ff9b::7f00:1", "169.254.169.254", "::ffff:169.254.169.254",
		"fd00:ec2::254", "fe80::1", "10.0.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		addresses = append(addresses, a.(*net.IPNet).IP.String())
	}
	zone := testkit.NewZone(t, nil)
	to := []string{"169.254.169.254:" + port, "198.18.0.1:" + port, "198.19.0.1:" + port, "localhost.:" + port}
	for _, a := range append(addresses, gateways6...) { // by itself
		if netip.MustParseAddr(a).Is6() {
			to = append(to, net.JoinHostPort(a, port))
		}
	}
	for i, a := range addresses {
		zone.Set(fmt.Sprintf("x%d.test", i), a)
		to = append(to, fmt.Sprintf("x%d.test:%s", i, port), fmt.Sprintf("tcp6/x%d.test:%s", i, port))
	}
	zone.Set("all.test", addresses...)
	to = append(to, "all.test:"+port)
	number := 39123
	// Where its address is listed, both ways lead to it.
	listed, err := sandbox.NewNetwork(sandbox.AllowHost("*", number), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(number)), sandbox.NetworkResolver(zone.Resolver()))
	require.NoError(t, err)
	defer listed.Close()
	for _, at := range runs.OverEach("tcp", "x0.test:"+port) {
		_, err = runs.Helper("private-dial", at).With(sandbox.WithNetwork(listed.As("control"))).Output(testkit.Deadline(t))
		require.Contains(t, string(runs.ExitError(t, err).Stderr), "secret", at)
	}
	require.Len(t, behind.take(), len(runs.OverEach("tcp", "")), "the control")

	var mu sync.Mutex
	var told []sandbox.Conn
	n, err := sandbox.NewNetwork(sandbox.AllowHost("*", number), sandbox.AllowCIDR("0.0.0.0/0", sandbox.TCP(number)), sandbox.AllowCIDR("::/0", sandbox.TCP(number)),
		sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(func(c sandbox.Conn) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, c)
		}))
	require.NoError(t, err)
	defer n.Close()
	_, err = runs.Helper("private-dial", to...).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithStderr(os.Stderr)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.NoError(t, n.Close(), "waits until all is told")
	require.Empty(t, behind.take())
	require.GreaterOrEqual(t, len(told), len(addresses))
	for _, c := range told {
		require.NotEqual(t, sandbox.Allowed, c.Verdict, "%+v", c)
	}
}
