//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
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

// otherProtocols are those with ports that a kernel may have, besides TCP.
var otherProtocols = map[string]struct{ kind, number int }{
	"sctp":    {unix.SOCK_STREAM, unix.IPPROTO_SCTP},
	"dccp":    {unix.SOCK_DCCP, unix.IPPROTO_DCCP},
	"udplite": {unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
	"udp":     {unix.SOCK_DGRAM, unix.IPPROTO_UDP},
}

// speakProtocol succeeds if there is an answer over a protocol at an address: "udp/one.test:80".
func speakProtocol(at string) error {
	name, at, _ := strings.Cut(at, "/")
	host, port, _ := strings.Cut(at, ":")
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	to, err := net.ResolveIPAddr("ip4", host)
	if err != nil {
		return err
	}
	p := otherProtocols[name]
	return answers(p.kind, p.number, netip.AddrFrom4([4]byte(to.IP.To4())), number, "hello", nil)
}

// answerProtocol answers at 127.0.0.1 over a protocol, and returns the port, or 0 if this machine
// does not have that protocol.
func answerProtocol(t *testing.T, name string) int {
	p := otherProtocols[name]
	s, err := unix.Socket(unix.AF_INET, p.kind|unix.SOCK_CLOEXEC, p.number)
	if err != nil {
		return 0
	}
	wait := unix.NsecToTimeval(int64(answerTime) / 10) // so that it ends
	require.NoError(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	require.NoError(t, unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	at, err := unix.Getsockname(s)
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
					_, _ = unix.Write(conn, []byte("x"))
					unix.Close(conn)
				}
			} else if _, from, err := unix.Recvfrom(s, make([]byte, 100), 0); err == nil {
				_ = unix.Sendto(s, []byte("x"), 0, from)
			}
		}
	}()
	return at.(*unix.SockaddrInet4).Port
}

// Protocols other than TCP, UDP and echo requests lead nowhere, with the ports that the servers
// have listed, whatever the run may do in its namespace.
func TestAttackRootlessPrivateProtocols(t *testing.T) {
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	opts := []sandbox.NetworkOption{sandbox.NetworkResolver(zone.Resolver())}
	var to []string
	for name := range otherProtocols {
		port := answerProtocol(t, name)
		if port == 0 {
			t.Logf("this machine does not have %s", name)
			continue
		}
		ports := []sandbox.Ports{sandbox.TCP(port), sandbox.UDP(port)}
		opts = append(opts, sandbox.AllowCIDR("127.0.0.1", ports...), sandbox.AllowHost("one.test", ports...))
		require.NoError(t, speakProtocol(fmt.Sprintf("%s/127.0.0.1:%d", name, port)), "the control: %s", name)
		to = append(to, fmt.Sprintf("%s/one.test:%d", name, port))
	}
	require.True(t, slices.ContainsFunc(to, func(at string) bool { return strings.HasPrefix(at, "udp/") }))
	n, err := sandbox.NewNetwork(opts...)
	require.NoError(t, err)
	defer n.Close()
	for _, powers := range [][]sandbox.Option{nil, netPowers} {
		require.Equal(t, "udp", runs.Output(t, runs.Helper("private-protocols", to...).With(sandbox.WithNetwork(n.As("attacker"))).With(powers...)))
	}
}
