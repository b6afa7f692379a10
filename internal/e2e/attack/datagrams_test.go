//go:build linux

package attack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-datagrams", sendAll)
	testkit.AddHelper("private-sockets", manySockets)
	testkit.AddHelper("private-answered", answered)
}

// sendAll sends a datagram to each address, again and again.
func sendAll(to []string) error {
	for {
		for _, at := range to {
			if conn, err := runs.Dial("udp", at); err == nil {
				fmt.Fprint(conn, "x")
				conn.Close()
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// manySockets sends from 300 sockets to the addresses, in turn, as fast as it can. It says when it
// is at it, and had an answer.
func manySockets(to []string) error {
	var sockets []net.Conn
	for i := range 300 {
		conn, err := runs.Dial("udp", to[i%len(to)])
		if err != nil {
			return err
		}
		sockets = append(sockets, conn)
	}
	for i := 0; ; i++ {
		for _, conn := range sockets {
			_, _ = conn.Write(make([]byte, 100))
		}
		if i == 20 {
			_ = sockets[0].SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := sockets[0].Read(make([]byte, 1)); err != nil {
				return err
			}
			fmt.Println("at it")
		}
	}
}

// datagramServer answers datagrams at an address, and knows from where they came.
type datagramServer struct {
	port int
	mu   sync.Mutex
	from map[string]string
}

func serveDatagrams(t *testing.T, network, address string) *datagramServer {
	udp, err := net.ListenPacket(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { udp.Close() })
	s := &datagramServer{port: udp.LocalAddr().(*net.UDPAddr).Port, from: map[string]string{}}
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.from[from.String()] = string(b[:n])
			s.mu.Unlock()
			_, _ = udp.WriteTo(b[:n], from)
		}
	}()
	return s
}

// senders returns what came, and forgets it.
func (s *datagramServer) senders() (said []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.from {
		said = append(said, text)
	}
	clear(s.from)
	return said
}

// Datagrams to what is not the internet's, with everything listed, and to ports that are listed for
// TCP or for others alone: QUIC, say.
func TestAttackRootlessPrivateDatagrams(t *testing.T) { sendDatagrams(t) }

// The same where all ports are led to one socket.
func TestAttackRootlessPrivateAllDatagrams(t *testing.T) {
	testkit.Need(t, "nft_tproxy")
	sendDatagrams(t, sandbox.AllowHost("many.test", sandbox.UDPRange(1, 300)))
}

func sendDatagrams(t *testing.T, more ...sandbox.NetworkOption) {
	behind := serveDatagrams(t, "udp", ":0")
	quic := serveDatagrams(t, "udp", "127.0.0.1:0")
	port := func(s *datagramServer, host string) string { return net.JoinHostPort(host, fmt.Sprint(s.port)) }
	zone := testkit.NewZone(t, map[string]string{"quic.test": "127.0.0.1", "other.test": "127.0.0.1"})
	names, to := []string{port(quic, "quic.test"), port(quic, "other.test")}, []string{port(behind, "169.254.169.254"), port(behind, "198.19.255.1")}
	addresses := []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "10.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1"}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		addresses = append(addresses, a.(*net.IPNet).IP.String())
	}
	for i, a := range addresses {
		zone.Set(fmt.Sprintf("x%d.test", i), a)
		names = append(names, port(behind, fmt.Sprintf("x%d.test", i)))
		if ip := netip.MustParseAddr(a); ip.Is6() && !ip.Is4In6() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsMulticast() && runs.HasIPv6() {
			to = append(to, port(behind, a))
		}
	}
	told := make(chan sandbox.Conn, 10_000)
	n, err := sandbox.NewNetwork(append(more, sandbox.AllowHost("*", sandbox.UDP(behind.port)), sandbox.AllowCIDR("0.0.0.0/0", sandbox.UDP(behind.port)), sandbox.AllowCIDR("::/0", sandbox.UDP(behind.port)), sandbox.AllowHost("quic.test", quic.port),
		sandbox.AllowHost("other.test", sandbox.TCP(quic.port)), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(quic.port)), sandbox.AllowHost("third.test", sandbox.UDP(quic.port)),
		sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(func(c sandbox.Conn) { told <- c }))...)
	require.NoError(t, err)
	defer n.Close()

	control := runs.Start(t, runs.Helper("private-datagrams", port(behind, "127.0.0.1"), port(quic, "127.0.0.1")).With(sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Eventually(t, func() bool { return len(behind.senders()) > 0 && len(quic.senders()) > 0 }, 20*time.Second, 200*time.Millisecond, "they answer")
	require.NoError(t, control.Kill())
	_, _ = control.Wait()
	behind.senders()
	quic.senders()

	for i, network := range runs.OverEach("udp", "") {
		to := slices.Clone(to)
		for _, name := range names {
			to = append(to, network+name)
		}
		as := fmt.Sprint("attacker", i)
		// What is sent to the gateway itself is not told where rules lead to the socket.
		const itself = "198.18.0.1"
		attacker := runs.Start(t, runs.Helper("private-datagrams", append(to, port(behind, itself))...).With(sandbox.WithNetwork(n.As(as))))
		refused := map[string]bool{}
		for len(refused) < len(to) {
			c := <-told
			require.NotEqual(t, sandbox.Allowed, c.Verdict, "%+v", c)
			if c.Port != 0 && c.Run == as && c.Address.Addr().String() != itself {
				require.True(t, c.UDP)
				refused[fmt.Sprint(c.Name, c.Address)] = true
			}
		}
		require.NoError(t, attacker.Kill())
		_, _ = attacker.Wait()
		require.Empty(t, behind.senders())
		require.Empty(t, quic.senders())
	}
}

// A range that is listed has addresses at which one datagram reaches this machine, and all others
// on its link.
func TestAttackRootlessPrivateDatagramBroadcast(t *testing.T) {
	server := serveDatagrams(t, "udp4", ":0")
	all, one := fmt.Sprintf("127.255.255.255:%d", server.port), fmt.Sprintf("all.test:%d", server.port)
	conn, err := net.Dial("udp4", all)
	require.NoError(t, err)
	defer conn.Close()
	require.Eventually(t, func() bool {
		_, _ = conn.Write([]byte("control"))
		return len(server.senders()) > 0
	}, 20*time.Second, 50*time.Millisecond, "it is reached")

	zone := testkit.NewZone(t, map[string]string{"all.test": "127.255.255.255"})
	told := make(chan sandbox.Conn, 100)
	n, err := sandbox.NewNetwork(sandbox.AllowHost("all.test", sandbox.UDP(server.port)), sandbox.AllowCIDR("127.255.255.255", sandbox.UDP(server.port)), sandbox.NetworkResolver(zone.Resolver()),
		sandbox.NetworkObserver(func(c sandbox.Conn) { told <- c }))
	require.NoError(t, err)
	defer n.Close()
	runs.Start(t, runs.Helper("private-datagrams", one).With(sandbox.WithNetwork(n.As("attacker"))))
	became := ""
	for became == "" {
		select {
		case c := <-told:
			became = c.Verdict.String()
		case <-time.After(10 * time.Millisecond):
			if slices.Contains(server.senders(), "x") {
				became = "passed on"
			}
		}
	}
	require.Equal(t, "failed", became)
}

// Datagrams that lead out are the sender's, whatever their source says.
func TestAttackRootlessPrivateDatagramSpoof(t *testing.T) {
	requireSpoofs(t)
	server := serveDatagrams(t, "udp", "127.0.0.1:0")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	told := make(chan sandbox.Conn, 100)
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", sandbox.UDP(server.port)), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP(server.port)), sandbox.NetworkResolver(zone.Resolver()),
		sandbox.NetworkObserver(func(c sandbox.Conn) { told <- c }))
	require.NoError(t, err)
	defer n.Close()
	runs.Start(t, runs.Shell("sleep 1000", sandbox.WithNetwork(n.As("neighbour"))))
	s := runs.Helper("private-spoof", fmt.Sprintf("one.test:%d", server.port)).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithUser(0, 0), sandbox.WithoutSeccomp())
	var came []string
	for range 20 { // what is sent at a run's end may be lost
		runs.Output(t, s)
		if came = server.senders(); slices.Contains(came, "last") {
			break
		}
	}
	came = slices.DeleteFunc(came, func(word string) bool { return word == "own" })
	require.Equal(t, []string{"last"}, slices.Compact(came), "of each run")
	require.Equal(t, "attacker", (<-told).Run)
}

// What is refused at a port that no option lists is told as the sender's, whatever its source says.
func TestAttackRootlessPrivateUnlistedSpoof(t *testing.T) {
	requireSpoofs(t)
	var mu sync.Mutex
	told := map[string]int{}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", 80), sandbox.NetworkObserver(func(c sandbox.Conn) {
		mu.Lock()
		defer mu.Unlock()
		told[fmt.Sprint(c.Run, " ", c.Name, " ", c.Port)]++
	}))
	require.NoError(t, err)
	defer n.Close()
	runs.Start(t, runs.Shell("sleep 1000", sandbox.WithNetwork(n.As("neighbour"))))
	runs.Output(t, runs.Helper("private-spoof", "one.test:99").With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithUser(0, 0), sandbox.WithoutSeccomp()))
	require.NoError(t, n.Close(), "waits until all is told")
	require.Equal(t, map[string]int{"attacker one.test 99": 1}, told)
}

// A flood of datagrams from many ports gets as many sockets of this process as MaxConns says, and a
// neighbour still gets through.
func TestAttackRootlessPrivateDatagramFlood(t *testing.T) {
	server := serveDatagrams(t, "udp", "127.0.0.1:0")
	to := func(host string) string { return fmt.Sprintf("%s:%d", host, server.port) }
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", sandbox.UDP(server.port)), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP(server.port)), sandbox.NetworkResolver(zone.Resolver()),
		sandbox.MaxConns(20))
	require.NoError(t, err)
	defer n.Close()
	flood := func(network sandbox.Network, to ...string) *sandbox.Process {
		p, _ := started(t, runs.Helper("private-sockets", to...).With(sandbox.WithNetwork(network)))
		return p
	}
	control := flood(sandbox.NetworkHost, to("127.0.0.1"))
	require.NoError(t, control.Kill())
	_, _ = control.Wait()
	require.Greater(t, len(server.senders()), 20)
	testkit.Eventually(t, "what the control has sent is there", func() bool {
		time.Sleep(200 * time.Millisecond)
		return len(server.senders()) == 0
	})

	each := runs.OverEach("udp", to("one.test"))
	attacker := flood(n.As("attacker"), each...)
	for _, at := range each {
		require.Equal(t, "answered", runs.Output(t, runs.Helper("private-answered", at).With(sandbox.WithNetwork(n.As("client")))), at)
	}
	require.LessOrEqual(t, len(server.senders()), 20+len(each))
	require.NoError(t, attacker.Kill())
	_, _ = attacker.Wait()
}

// The same flood to a run of another cell: a neighbour still gets through to that cell.
func TestAttackRootlessPrivateCableFlood(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	cell, err := sandbox.NewCell()
	require.NoError(t, err)
	defer cell.Close()
	answering(t, n.As("sink"))
	answering(t, n.As("db"))
	attacker, _ := started(t, runs.Helper("private-sockets", runs.OverEach("udp", "sink:99")...).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithCell(cell)))
	for _, at := range runs.OverEach("udp", "db:99") {
		ask := runs.Helper("private-answered", at).With(sandbox.WithNetwork(n.As("client")), sandbox.WithCell(cell))
		require.Equal(t, "answered", runs.Output(t, ask), at)
	}
	require.NoError(t, attacker.Kill())
	_, _ = attacker.Wait()
}

// answered sends until there is an answer.
func answered(to []string) error {
	conn, err := runs.Dial("udp", to[0])
	if err != nil {
		return err
	}
	for {
		_, _ = conn.Write([]byte("x"))
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			fmt.Print("answered")
			return nil
		}
	}
}
