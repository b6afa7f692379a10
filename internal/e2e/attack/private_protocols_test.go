//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-protocols", func(args []string) error {
		for _, at := range args {
			if name, _, _ := strings.Cut(at, "/"); speakProtocol(at) == nil {
				fmt.Println(name)
			}
		}
		return nil
	})
}

// otherProtocols are those with ports that a kernel may have, besides TCP, over IPv4 and, with 6
// after their names, IPv6.
var otherProtocols = map[string]struct{ kind, number int }{
	"sctp":    {unix.SOCK_STREAM, unix.IPPROTO_SCTP},
	"dccp":    {unix.SOCK_DCCP, unix.IPPROTO_DCCP},
	"udplite": {unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
	"udp":     {unix.SOCK_DGRAM, unix.IPPROTO_UDP},
}

// speakProtocol succeeds if there is an answer over a protocol at an address: "udp/one.test:80".
func speakProtocol(at string) error {
	name, at, _ := strings.Cut(at, "/")
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	name, over6 := strings.CutSuffix(name, "6")
	network := "ip4"
	if over6 {
		network = "ip6"
	}
	to, err := net.ResolveIPAddr(network, host)
	if err != nil {
		return err
	}
	a, _ := netip.AddrFromSlice(to.IP)
	p := otherProtocols[name]
	return answers(p.kind, p.number, a.Unmap(), number, "hello", nil)
}

// answerProtocol answers at an address over a protocol, and returns the port, or 0 if this machine
// does not have that protocol.
func answerProtocol(t *testing.T, name string, at netip.Addr) int {
	p := otherProtocols[name]
	family, local := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: at.As16()})
	if at.Is4() {
		family, local = unix.AF_INET, &unix.SockaddrInet4{Addr: at.As4()}
	}
	s, err := unix.Socket(family, p.kind|unix.SOCK_CLOEXEC, p.number)
	if err != nil {
		return 0
	}
	wait := unix.NsecToTimeval(int64(answerTime) / 10) // so that it ends
	require.NoError(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	require.NoError(t, unix.Bind(s, local))
	bound, err := unix.Getsockname(s)
	require.NoError(t, err)
	listens := p.kind != unix.SOCK_DGRAM
	if listens {
		require.NoError(t, unix.Listen(s, 10))
	}
	end, ended := make(chan bool), make(chan bool)
	t.Cleanup(func() {
		close(end)
		<-ended
		unix.Close(s)
	})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
			}
			if listens {
				if conn, _, err := unix.Accept(s); err == nil {
					_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
					_, _ = unix.Read(conn, make([]byte, 100)) // or the other side may not write any more
					_, _ = unix.Write(conn, []byte("x"))
					unix.Close(conn)
				}
			} else if _, from, err := unix.Recvfrom(s, make([]byte, 100), 0); err == nil {
				_ = unix.Sendto(s, []byte("x"), 0, from)
			}
		}
	}()
	if at.Is4() {
		return bound.(*unix.SockaddrInet4).Port
	}
	return bound.(*unix.SockaddrInet6).Port
}

// Protocols other than TCP, UDP and echo requests lead nowhere, with the ports that the servers
// have listed, whatever the run may do in its namespace.
func TestAttackRootlessPrivateProtocols(t *testing.T) {
	zone := testkit.NewZone(t, nil)
	opts := []sandbox.NetworkOption{sandbox.NetworkResolver(zone.Resolver())}
	var to, want []string
	for name := range otherProtocols {
		for i, local := range testkit.Loopbacks() {
			port := answerProtocol(t, name, netip.MustParseAddr(local))
			if port == 0 {
				t.Logf("this machine does not have %s at %s", name, local)
				continue
			}
			over, host := []string{name, name + "6"}[i], fmt.Sprintf("%s%d.test", name, i)
			ports := []sandbox.Ports{sandbox.TCP(port), sandbox.UDP(port)}
			zone.Set(host, local)
			opts = append(opts, sandbox.AllowCIDR(local, ports...), sandbox.AllowHost(host, ports...))
			require.NoError(t, speakProtocol(over+"/"+net.JoinHostPort(local, fmt.Sprint(port))), "the control: %s", over)
			to = append(to, fmt.Sprintf("%s/%s:%d", over, host, port))
			if name == "udp" {
				want = append(want, over)
			}
		}
	}
	require.NotEmpty(t, want)
	n, err := sandbox.NewNetwork(opts...)
	require.NoError(t, err)
	defer n.Close()
	for _, powers := range [][]sandbox.Option{nil, netPowers} {
		require.Equal(t, strings.Join(want, "\n"), runs.Output(t, runs.Helper("private-protocols", to...).With(sandbox.WithNetwork(n.As("attacker"))).With(powers...)))
	}
}
