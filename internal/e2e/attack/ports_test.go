//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// With all ports of everything listed: what is not the internet's, the ports that a name does not
// have, those of the gateway itself and of nobody's names, and of a neighbour whom Reaches leaves
// out; while another listens where the gateway does.
func TestAttackRootlessPrivateAllPorts(t *testing.T) {
	testkit.Need(t, "nft_tproxy")
	var behind, real guarded
	const port = "39124"
	behind.serve(t, ":"+port)
	one := real.serve(t, "127.0.0.1:0")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "single.test": "127.0.0.1"})
	opts := []sandbox.NetworkOption{sandbox.AllowHost("one.test", sandbox.TCP()), sandbox.AllowHost("single.test", 1), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(one)),
		sandbox.AllowCIDR("0.0.0.0/0", sandbox.TCP()), sandbox.AllowCIDR("::/0", sandbox.TCP()), sandbox.NetworkResolver(zone.Resolver())}
	n, err := sandbox.NewNetwork(opts...)
	require.NoError(t, err)
	defer n.Close()
	victim := strings.Fields(answering(t, n.As("victim")))
	started(t, runs.Helper("private-steal", fmt.Sprintf(":%d", one), ":53", "198.19.0.1:53").With(sandbox.WithNetwork(n.As("thief"))).With(netPowers...))

	at := fmt.Sprintf("one.test:%d", one)
	to := []string{at, "one.test:" + port, fmt.Sprintf("single.test:%d", one), "victim:80", "thief:53"}
	for _, a := range append(victim, "169.254.169.254", "10.0.0.1", "198.18.0.1", "198.19.255.1") {
		to = append(to, net.JoinHostPort(a, "80"), net.JoinHostPort(a, port))
	}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		if ip := netip.MustParsePrefix(a.String()).Addr(); !ip.IsLoopback() {
			to = append(to, net.JoinHostPort(ip.String(), port))
		}
	}
	if runs.HasIPv6() {
		to = append(to, "tcp6/"+at, "tcp6/one.test:"+port)
		for _, a := range append(gateways6, "fd00:ec2::254", "64:ff9b::7f00:1", "2002:7f00:1::") {
			to = append(to, net.JoinHostPort(a, port))
		}
	}
	for i, got := range strings.Split(runs.Output(t, runs.Helper("private-fetch", to...).With(sandbox.WithNetwork(n.As("attacker", sandbox.Reaches())))), "\n") {
		if to[i] == at || to[i] == "tcp6/"+at {
			require.Equal(t, "secret", got, "what is listed")
		} else if got != "nothing" {
			require.Empty(t, got, to[i])
		}
	}
	require.Empty(t, behind.had)

	control, err := sandbox.NewNetwork(append(opts, sandbox.AllowCIDR("127.0.0.1", sandbox.TCP()))...)
	require.NoError(t, err)
	defer control.Close()
	require.Equal(t, "secret", runs.Output(t, runs.Helper("private-fetch", "one.test:"+port).With(sandbox.WithNetwork(control.As("client")))))
	require.Equal(t, "x\nstolen", runs.Output(t, runs.Helper("private-fetch", net.JoinHostPort(victim[0], "80"), "thief:53").With(sandbox.WithNetwork(n.As("friend")))))
}
