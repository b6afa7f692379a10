//go:build linux

package attack

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-first", sayFirst)
	testkit.AddHelper("private-datagrams", sendAll)
	testkit.AddHelper("private-sockets", manySockets)
	testkit.AddHelper("private-answered", answered)
}

// sayFirst connects to an address for each of the others, waits for a greeting, and sends what they
// are, in hexadecimal, in pieces that commas are between.
func sayFirst(args []string) error {
	for _, words := range args[1:] {
		conn, err := net.DialTimeout("tcp", args[0], 20*time.Second)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			return fmt.Errorf("no greeting: %w", err)
		}
		for piece := range strings.SplitSeq(words, ",") {
			b, err := hex.DecodeString(piece)
			if err != nil {
				return err
			}
			_, _ = conn.Write(b)
			time.Sleep(2 * time.Millisecond)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	return nil
}

// shared is a server of several sites, as those of large providers are.
type shared struct {
	mu    sync.Mutex
	asked []string // which site
}

func (s *shared) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprint(conn, "hi")
			r := bufio.NewReader(conn)
			if b, err := r.Peek(1); err == nil && b[0] == 22 {
				_ = tls.Server(buffered{conn, r}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
					s.add(h.ServerName)
					return nil, errors.New("seen")
				}}).Handshake()
			} else if request, err := http.ReadRequest(r); err == nil {
				s.add(request.Host)
			}
		}()
	}
}

type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func (s *shared) add(site string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, site)
}

// sites returns the sites that were asked for since the last time.
func (s *shared) sites() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.asked
	s.asked = nil
	slices.Sort(list)
	return slices.Compact(list)
}

// helloTo returns the first bytes of a client of TLS.
func helloTo(name string) []byte {
	near, far := net.Pipe()
	defer far.Close()
	go func() { _ = tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 8<<10)
	n, _ := far.Read(b)
	return b[:n]
}

func inPieces(b []byte, size int) string {
	var pieces []string
	for piece := range slices.Chunk(b, size) {
		pieces = append(pieces, hex.EncodeToString(piece))
	}
	return strings.Join(pieces, ",")
}

// A run that may reach one site of a server that has others too.
func TestAttackRootlessPrivateOtherSite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var server shared
	go server.serve(l)
	port := l.Addr().(*net.TCPAddr).Port
	other := helloTo("other.test")
	var attacks []string
	for _, b := range [][]byte{
		other,
		[]byte("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"),
		[]byte("\r\nBREW / HTTP/1.1\r\nX: y\r\nhost:other.test\r\n\r\n"),
		[]byte("GET http://other.test/ HTTP/1.1\r\nHost: one.test\r\n\r\n"),
		[]byte(strings.Repeat("x", 256) + " / HTTP/1.1\r\nHost: other.test\r\n\r\n"),
		slices.Concat([]byte{22, 1}, other[2:]),
	} {
		attacks = append(attacks, inPieces(b, len(b)), inPieces(b, len(b)/20), inPieces(b[:len(b)-1], len(b)))
	}
	record := append([]byte{22, 3, 1, 0, 1}, other[5])
	attacks = append(attacks, inPieces(slices.Concat(record, []byte{22, 3, 1, other[3], other[4] - 1}, other[6:]), 1<<10))

	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	refused := make(chan sandbox.Conn, 100)
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()),
		sandbox.NetworkObserver(func(c sandbox.Conn) {
			if c.Verdict == sandbox.Refused {
				refused <- c
			}
		}))
	require.NoError(t, err)
	defer n.Close()
	say := func(at string, words ...string) *sandbox.Sandbox {
		return runs.Helper("private-first", append([]string{fmt.Sprintf("%s:%d", at, port)}, words...)...)
	}
	private := sandbox.WithNetwork(n.As("attacker"))

	runs.Output(t, say("127.0.0.1", attacks...).With(sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Equal(t, []string{"other.test"}, server.sites(), "the attacks work")
	own := []byte("GET / HTTP/1.1\r\nHost: ONE.test.:80\r\n\r\n")
	runs.Output(t, say("one.test", inPieces(helloTo("one.test"), 50), inPieces(helloTo(""), 1<<10), inPieces(own, 4)).With(private))
	require.Equal(t, []string{"", "ONE.test.:80", "one.test"}, server.sites())
	require.Empty(t, refused)

	runs.Output(t, say("one.test", attacks...).With(private))
	require.Empty(t, server.sites())
	c := <-refused
	require.Equal(t, []any{"one.test", "one.test", "127.0.0.1"}, []any{c.Name, c.Rule, c.Address.Addr().String()})
	require.ErrorContains(t, c.Err, `"other.test", and not the name that was asked for`)
}

// sendAll sends a datagram to each address, again and again.
func sendAll(to []string) error {
	for {
		for _, at := range to {
			if conn, err := net.Dial("udp", at); err == nil {
				fmt.Fprint(conn, "x")
				conn.Close()
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// manySockets sends from 300 sockets to one address, as fast as it can.
func manySockets(to []string) error {
	var sockets []net.Conn
	for range 300 {
		conn, err := net.Dial("udp4", to[0])
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
func TestAttackRootlessPrivateDatagrams(t *testing.T) {
	behind := serveDatagrams(t, "udp", ":0")
	quic := serveDatagrams(t, "udp", "127.0.0.1:0")
	port := func(s *datagramServer, host string) string { return net.JoinHostPort(host, fmt.Sprint(s.port)) }
	zone := testkit.NewZone(t, map[string]string{"quic.test": "127.0.0.1", "other.test": "127.0.0.1"})
	var to []string
	addresses := []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "10.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		addresses = append(addresses, a.(*net.IPNet).IP.String())
	}
	for i, a := range addresses {
		zone.Set(fmt.Sprintf("x%d.test", i), a)
		to = append(to, port(behind, fmt.Sprintf("x%d.test", i)))
		if ip := netip.MustParseAddr(a); ip.Is6() && !ip.Is4In6() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && hasIPv6() {
			to = append(to, port(behind, a))
		}
	}
	to = append(to, port(behind, "169.254.169.254"), port(behind, "198.18.0.1"), port(behind, "198.19.255.1"), port(quic, "quic.test"), port(quic, "other.test"))
	told := make(chan sandbox.Conn, 10_000)
	n, err := sandbox.NewNetwork(sandbox.AllowHost("*", sandbox.UDP(behind.port)), sandbox.AllowCIDR("0.0.0.0/0", sandbox.UDP(behind.port)), sandbox.AllowCIDR("::/0", sandbox.UDP(behind.port)), sandbox.AllowHost("quic.test", quic.port),
		sandbox.AllowHost("other.test", sandbox.TCP(quic.port)), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(quic.port)), sandbox.AllowHost("third.test", sandbox.UDP(quic.port)),
		sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(func(c sandbox.Conn) { told <- c }))
	require.NoError(t, err)
	defer n.Close()

	control := runs.Start(t, runs.Helper("private-datagrams", port(behind, "127.0.0.1"), port(quic, "127.0.0.1")).With(sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Eventually(t, func() bool { return len(behind.senders()) > 0 && len(quic.senders()) > 0 }, 20*time.Second, 200*time.Millisecond, "they answer")
	require.NoError(t, control.Kill())
	_, _ = control.Wait()
	behind.senders()
	quic.senders()

	attacker := runs.Start(t, runs.Helper("private-datagrams", to...).With(sandbox.WithNetwork(n.As("attacker"))))
	refused := map[string]bool{}
	for len(refused) < len(to) {
		c := <-told
		require.NotEqual(t, sandbox.Allowed, c.Verdict, "%+v", c)
		if c.Port != 0 {
			require.True(t, c.UDP)
			refused[fmt.Sprint(c.Name, c.Address)] = true
		}
	}
	require.NoError(t, attacker.Kill())
	_, _ = attacker.Wait()
	require.Empty(t, behind.senders())
	require.Empty(t, quic.senders())
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
	flood := func(network sandbox.Network, address string) *sandbox.Process {
		r, w := io.Pipe()
		p := runs.Start(t, runs.Helper("private-sockets", to(address)).With(sandbox.WithNetwork(network), sandbox.WithStdout(w)))
		_, err := bufio.NewReader(r).ReadString('\n')
		require.NoError(t, err)
		return p
	}
	control := flood(sandbox.NetworkHost, "127.0.0.1")
	require.NoError(t, control.Kill())
	_, _ = control.Wait()
	require.Greater(t, len(server.senders()), 20)
	testkit.Eventually(t, "what the control has sent is there", func() bool {
		time.Sleep(200 * time.Millisecond)
		return len(server.senders()) == 0
	})

	attacker := flood(n.As("attacker"), "one.test")
	require.Equal(t, "answered", runs.Output(t, runs.Helper("private-answered", to("one.test")).With(sandbox.WithNetwork(n.As("client")))))
	require.LessOrEqual(t, len(server.senders()), 21)
	require.NoError(t, attacker.Kill())
	_, _ = attacker.Wait()
}

// answered sends until there is an answer.
func answered(to []string) error {
	conn, err := net.Dial("udp4", to[0])
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
