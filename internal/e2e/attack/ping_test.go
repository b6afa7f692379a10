//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-echo", echoAll)
	testkit.AddHelper("private-echoes", echoMany)
}

// echoAll prints which addresses answer an echo request, all at the same time.
func echoAll(to []string) error {
	got := make(chan string)
	for _, at := range to {
		go func() {
			network, name := runs.Over("ip", at)
			ip, err := net.ResolveIPAddr(network, name)
			if err == nil {
				a, _ := netip.AddrFromSlice(ip.IP)
				protocol, request := unix.IPPROTO_ICMPV6, "\x80"
				if a = a.Unmap(); a.Is4() {
					protocol, request = unix.IPPROTO_ICMP, "\x08"
				}
				err = sent(protocol, a, 0, request+"\x00\x00\x00\x00\x00\x00\x01secret", nil)
			}
			if err != nil {
				at = ""
			}
			got <- at
		}()
	}
	for range to {
		if at := <-got; at != "" {
			fmt.Println(at)
		}
	}
	return nil
}

// echoMany sends many echo requests at once, and prints how many answers come.
func echoMany(to []string) error {
	ip, err := net.ResolveIPAddr(runs.Over("ip", to[0]))
	if err != nil {
		return err
	}
	family, protocol, kind, at := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128), unix.Sockaddr(&unix.SockaddrInet6{Addr: [16]byte(ip.IP.To16())})
	if four := ip.IP.To4(); four != nil {
		family, protocol, kind, at = unix.AF_INET, unix.IPPROTO_ICMP, 8, &unix.SockaddrInet4{Addr: [4]byte(four)}
	}
	s, err := unix.Socket(family, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return err
	}
	for range 5 {
		for i := range 1000 {
			_ = unix.Sendto(s, []byte{kind, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}, 0, at)
		}
		time.Sleep(20 * time.Millisecond)
	}
	n := 0
	for end := unix.NsecToTimeval(int64(answerTime)); unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &end) == nil; n++ {
		if _, err := unix.Read(s, make([]byte, 100)); err != nil {
			break
		}
	}
	fmt.Println(n)
	return nil
}

// Echo requests to what is not the internet's, with everything listed for ping, and to what is
// listed for other protocols; and more than may be.
func TestAttackRootlessPrivatePing(t *testing.T) {
	testkit.Need(t, "ping")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "tcp.test": "127.0.0.3"})
	addresses := []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254", "fe80::1", "198.18.0.1"}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		addresses = append(addresses, a.(*net.IPNet).IP.String())
	}
	to := append([]string{"198.18.0.1", "198.19.0.1", "198.19.255.1", "169.254.169.254", "tcp.test"}, gateways6...)
	for i, a := range addresses {
		name := fmt.Sprintf("x%d.test", i)
		zone.Set(name, a)
		to = append(to, "ip4/"+name, "ip6/"+name)
		if ip := netip.MustParseAddr(a); !ip.IsLoopback() && !ip.IsUnspecified() && !ip.Unmap().IsLoopback() {
			to = append(to, a) // the run's own loopback answers
		}
	}
	all := []sandbox.NetworkOption{sandbox.AllowCIDR("0.0.0.0/0", sandbox.Ping()), sandbox.AllowCIDR("::/0", sandbox.Ping()), sandbox.AllowHost("tcp.test", 80), sandbox.AllowCIDR("127.0.0.3", sandbox.TCP(80)),
		sandbox.NetworkResolver(zone.Resolver())}
	for i := range addresses {
		all = append(all, sandbox.AllowHost(fmt.Sprintf("x%d.test", i), sandbox.Ping()))
	}
	n, err := sandbox.NewNetwork(all...)
	require.NoError(t, err)
	defer n.Close()
	require.Empty(t, runs.Output(t, runs.Helper("private-echo", to...).With(sandbox.WithNetwork(n.As("attacker")))))
	control, err := sandbox.NewNetwork(append(all, sandbox.AllowCIDR("127.0.0.1", sandbox.Ping()))...)
	require.NoError(t, err)
	defer control.Close()
	answered := strings.Fields(runs.Output(t, runs.Helper("private-echo", to...).With(sandbox.WithNetwork(control.As("attacker")))))
	require.Contains(t, answered, "ip4/x0.test")
	require.NotContains(t, answered, "ip4/x1.test")

	for _, at := range runs.OverEach("ip", "x0.test") {
		var many int
		_, err = fmt.Sscan(runs.Output(t, runs.Helper("private-echoes", at).With(sandbox.WithNetwork(control.As("attacker")))), &many)
		require.NoError(t, err)
		require.Positive(t, many, at)
		require.Less(t, many, 1000, "of 5000 in a moment")
	}
}
