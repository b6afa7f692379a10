//go:build linux

package attack

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	for name, run := range map[string]func(args []string) error{
		"private-dial":  dialAll,
		"private-power": seizeNetwork,
		"private-spoof": spoof,
		"private-hear":  hear,
		"private-flood": flood,
		"private-noise": noise,
		"private-ask":   askFor,
	} {
		testkit.AddHelper(name, run)
	}
}

// hasIPv6 reports whether runs on private networks have it.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// gateways6 are the gateway's own addresses of IPv6, and those that stand for names of nobody.
var gateways6 = []string{"fe80::1%eth0", "ff02::1%eth0", "fde0:6be0:7e22::c612:1", "fde0:6be0:7e22::c613:0", "fde0:6be0:7e22::c613:ffff"}

// over takes an address apart that may have a network before it, as "tcp6/db:80".
func over(network, at string) (string, string) {
	if n, rest, given := strings.Cut(at, "/"); given {
		return n, rest
	}
	return network, at
}

// dialAll fails if anything comes from any of the addresses.
func dialAll(to []string) error {
	for _, at := range to {
		network, at := over("tcp", at)
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
	var mu sync.Mutex
	var told []sandbox.Conn
	number := 39123
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
	behind.mu.Lock()
	defer behind.mu.Unlock()
	require.Empty(t, behind.had)
	require.GreaterOrEqual(t, len(told), len(addresses))
	for _, c := range told {
		require.NotEqual(t, sandbox.Allowed, c.Verdict, "%+v", c)
	}
}

// seizeNetwork tries what would give a run power over its network.
func seizeNetwork([]string) error {
	var errs []error
	must := func(what string, err error, want ...error) {
		for _, w := range want {
			if errors.Is(err, w) {
				return
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", what, errors.Join(err, errors.New("is not refused as it should be"))))
	}
	_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	must("AF_PACKET", err, unix.EPERM)
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	must("raw socket", err, unix.EPERM)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if s6, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0); err == nil {
		must("IPV6_TRANSPARENT", unix.SetsockoptInt(s6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1), unix.EPERM)
		must("extension headers", unix.SetsockoptString(s6, unix.SOL_IPV6, unix.IPV6_HOPOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"), unix.EPERM)
		_, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6) // for ND
		must("raw socket of IPv6", err, unix.EPERM)
		must("/proc/sys of IPv6", os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte("2"), 0), unix.EROFS, unix.EACCES)
	}
	must("IP_TRANSPARENT", unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.EPERM)
	must("SO_MARK", unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, 1), unix.EPERM)
	ifreq, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	if err := ifreq.SetInet4Addr([]byte{198, 18, 9, 9}); err != nil {
		return err
	}
	must("another address", unix.IoctlIfreq(s, unix.SIOCSIFADDR, ifreq), unix.EPERM)
	must("promiscuous", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifreq), unix.EPERM)
	must("/proc/sys", os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), unix.EROFS, unix.EACCES)
	must("a rule of netfilter", unix.SetsockoptString(s, unix.SOL_IP, 64 /* IPT_SO_SET_REPLACE */, strings.Repeat("x", 128)), unix.EPERM, unix.ENOPROTOOPT)
	must("routes", netlinkRequest(unix.AF_INET, unix.RTM_DELROUTE), unix.EPERM)
	must("routes of IPv6", netlinkRequest(unix.AF_INET6, unix.RTM_DELROUTE), unix.EPERM)
	return errors.Join(errs...)
}

// netlinkRequest asks for a change of the default route.
func netlinkRequest(family byte, kind uint16) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	b[0], b[4], b[5], b[6] = byte(len(b)), byte(kind), byte(kind>>8), unix.NLM_F_REQUEST|unix.NLM_F_ACK
	b[16], b[20] = family, unix.RT_TABLE_MAIN
	if err := unix.Sendto(s, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) == 0 {
		return errors.Join(err, errors.New("no answer"))
	}
	code := int32(binary.NativeEndian.Uint32(messages[0].Data))
	if code == 0 {
		return nil
	}
	return unix.Errno(-code)
}

// netPowers are all that a run can be given of its network.
var netPowers = []sandbox.Option{sandbox.WithUser(0, 0), sandbox.WithoutSeccomp(), sandbox.WithCapabilities("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE")}

func TestAttackRootlessPrivatePower(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	s := runs.Helper("private-power").With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithStderr(os.Stderr))
	for _, opts := range [][]sandbox.Option{
		nil,
		{sandbox.WithUser(0, 0), sandbox.WithoutSeccomp(), sandbox.WithCapabilities("CAP_NET_BIND_SERVICE")},
		netPowers,
	} {
		_, err := s.With(opts...).Run(testkit.Deadline(t))
		require.NoError(t, err)
	}
	_, err = s.With(sandbox.WithNetwork(sandbox.NetworkNone), sandbox.WithStderr(io.Discard)).With(netPowers...).Run(testkit.Deadline(t))
	runs.ExitError(t, err) // the control: a namespace of its own obeys
}

// hear prints from where datagrams come, until the last.
func hear([]string) error {
	udp, err := net.ListenPacket("udp", ":99")
	if err != nil {
		return err
	}
	fmt.Println("listening")
	b := make([]byte, 100)
	for {
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			return err
		}
		host, _, _ := net.SplitHostPort(from.String())
		fmt.Println(host, string(b[:n]))
		if string(b[:n]) == "last" {
			return nil
		}
	}
}

// spoof speaks to the victim as other addresses: its neighbour's, the gate's, one of the internet.
// Then it says the last word in its own.
func spoof(args []string) error {
	at := "victim:99"
	if len(args) > 0 {
		at = args[0]
	}
	victim, err := net.ResolveUDPAddr("udp4", at)
	if err != nil {
		return err
	}
	other, err := net.LookupHost("neighbour")
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: victim.Port, Addr: [4]byte(victim.IP.To4())}
	for _, as := range []string{other[0], "198.18.0.1", "198.19.0.1", "8.8.8.8"} {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		source := netip.MustParseAddr(as).As4()
		_ = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_FREEBIND, 1)
		_ = unix.Bind(s, &unix.SockaddrInet4{Addr: source})
		_ = unix.Sendto(s, []byte("as "+as), 0, to)
		pktinfo := unix.Inet4Pktinfo{Spec_dst: source}
		_, _ = unix.SendmsgN(s, []byte("as "+as), unix.PktInfo4(&pktinfo), to, 0)
	}
	spoof6(at)
	conn, err := net.Dial("udp4", at)
	if err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	fmt.Fprint(conn, "last")
	fmt.Println(strings.TrimSuffix(conn.LocalAddr().String(), fmt.Sprint(":", conn.LocalAddr().(*net.UDPAddr).Port)))
	return nil
}

// spoof6 is spoof over IPv6, in which any program may choose its source: to the victim, and to what
// is the gateway's by itself, as which it may be taken in before its source is looked at.
func spoof6(at string) {
	victim, err := net.ResolveUDPAddr("udp6", at)
	if err != nil {
		return
	}
	// The control, after which it knows the way: neighbours are asked for from an own address.
	if conn, err := net.DialUDP("udp6", nil, victim); err == nil {
		fmt.Fprint(conn, "own")
		conn.Close()
	}
	time.Sleep(100 * time.Millisecond)
	sources := []string{"fde0:6be0:7e22::c612:1", "fde0:6be0:7e22::c613:0", "fde0:6be0:7e22::c613:1", "2001:4860:4860::8888", "fe80::1"}
	if other, err := net.ResolveIPAddr("ip6", "neighbour"); err == nil {
		sources = append(sources, other.String())
	}
	for _, as := range sources {
		s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		if err != nil {
			return
		}
		source := netip.MustParseAddr(as).As16()
		_ = unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		zone := uint32(0)
		if eth0, err := net.InterfaceByName("eth0"); err == nil && source[0] == 0xfe {
			zone = uint32(eth0.Index)
		}
		if unix.Bind(s, &unix.SockaddrInet6{Addr: source, ZoneId: zone}) != nil {
			continue
		}
		for _, to := range []*net.UDPAddr{victim, {IP: net.ParseIP("fe80::1"), Port: victim.Port}, {IP: net.ParseIP("ff02::1"), Port: victim.Port}} {
			_ = unix.Sendto(s, []byte("as "+as), 0, &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16())})
		}
		_, _ = unix.SendmsgN(s, []byte("as "+as), unix.PktInfo6(&unix.Inet6Pktinfo{Addr: source}), &unix.SockaddrInet6{Port: victim.Port, Addr: [16]byte(victim.IP.To16())}, 0)
		unix.Close(s)
	}
}

// One run can't speak as another.
func TestAttackRootlessPrivateSpoof(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	r, w := io.Pipe()
	runs.Start(t, runs.Shell("sleep 1000", sandbox.WithNetwork(n.As("neighbour"))))
	victim := runs.Start(t, runs.Helper("private-hear").With(sandbox.WithNetwork(n.As("victim")), sandbox.WithStdout(w)))
	lines := bufio.NewScanner(r)
	require.True(t, lines.Scan())
	attacker := runs.Output(t, runs.Helper("private-spoof").With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithUser(0, 0), sandbox.WithoutSeccomp()))
	heard6 := false
	for lines.Scan() {
		from, word, _ := strings.Cut(lines.Text(), " ")
		if word == "own" {
			heard6 = true
			continue
		}
		require.Equal(t, attacker, from, word)
		if word == "last" {
			break
		}
	}
	require.Equal(t, hasIPv6(), heard6, "what it sends over IPv6 as itself arrives")
	_, err = victim.Wait()
	require.NoError(t, err)
}

// flood opens connections and keeps them, and prints how many stay open.
func flood(args []string) error {
	var held []net.Conn
	for range 200 {
		conn, err := net.Dial("tcp", args[0])
		if err == nil {
			held = append(held, conn)
		}
	}
	alive := 0
	for _, conn := range held {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			alive++
		}
	}
	fmt.Print(alive)
	return nil
}

// A run gets as many connections as MaxConns says, whatever it tries, and takes none from others.
func TestAttackRootlessPrivateFlood(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "x")
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.MaxConns(20))
	require.NoError(t, err)
	defer n.Close()
	s := runs.Helper("private-flood", fmt.Sprintf("one.test:%d", port)).With(sandbox.WithNetwork(n.As("attacker")))
	got := make(chan string)
	for range 2 {
		go func() {
			out, err := s.Output(testkit.Deadline(t))
			got <- fmt.Sprint(string(out), err)
		}()
	}
	require.Equal(t, "20<nil>", <-got)
	require.Equal(t, "20<nil>", <-got)
}

// noise sends the resolver what is no question, over UDP and TCP.
func noise([]string) error {
	udp, err := net.Dial("udp", "198.18.0.1:53")
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	b := make([]byte, 2000)
	for i := range 20000 {
		_, _ = random.Read(b)
		copy(b[2:], []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		_, _ = udp.Write(b[:i%len(b)])
	}
	for i := range 30 {
		conn, err := net.Dial("tcp", "198.18.0.1:53")
		if err != nil {
			return err
		}
		_, _ = conn.Write(b[:i]) // and stays
	}
	for i := range 10000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		_, _ = net.DefaultResolver.LookupHost(ctx, fmt.Sprintf("x%d.wild.test", i))
		cancel()
	}
	fmt.Println("done")
	time.Sleep(time.Hour) // not select: without cgo, Go ends a program that waits for nothing
	return nil
}

func askFor(names []string) error {
	fmt.Println(net.DefaultResolver.LookupNetIP(context.Background(), "ip4", names[0]))
	return nil
}

// A run that troubles the resolver troubles nobody else.
func TestAttackRootlessPrivateNoise(t *testing.T) {
	n, err := sandbox.NewNetwork(sandbox.AllowHost("*.wild.test", 80))
	require.NoError(t, err)
	defer n.Close()
	r, w := io.Pipe()
	p := runs.Start(t, runs.Helper("private-noise").With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithStdout(w)))
	ask := runs.Helper("private-ask", "a.wild.test").With(sandbox.WithNetwork(n.As("client")))
	require.Equal(t, "[198.19.0.1] <nil>", runs.Output(t, ask))
	_, err = bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "[198.19.0.1] <nil>", runs.Output(t, ask))
	require.NoError(t, p.Kill())
	_, _ = p.Wait()
}
