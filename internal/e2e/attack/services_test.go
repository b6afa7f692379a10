//go:build linux

package attack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
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
	testkit.AddHelper("private-steal", steal)
	testkit.AddHelper("private-fetch", fetch)
	testkit.AddHelper("private-group", hearGroup)
	testkit.AddHelper("private-shout", shout)
	testkit.AddHelper("private-keep", keep)
}

// freeBind listens also at addresses that are not there.
var freeBind = net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
}}

// steal listens at all of its addresses and at others', on ports over TCP, and answers "stolen".
func steal(args []string) error {
	for _, at := range args {
		network, at := runs.Over("tcp4", at)
		l, err := freeBind.Listen(context.Background(), network, at)
		if err != nil {
			// The port is taken by the one for all addresses.
			fmt.Fprintln(os.Stderr, at, err)
			continue
		}
		go func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
				fmt.Fprint(conn, "stolen")
				conn.Close()
			}
		}()
	}
	fmt.Println("listening")
	select {}
}

// fetch prints what comes from each address, which a name may stand for.
func fetch(args []string) error {
	for _, at := range args {
		network, at := runs.Over("tcp", at)
		conn, err := net.DialTimeout(network, at, 20*time.Second)
		if err != nil {
			fmt.Println("nothing")
			continue
		}
		b, _ := io.ReadAll(conn)
		conn.Close()
		fmt.Println(string(b))
	}
	return nil
}

// started starts a run and waits for its first line.
func started(t *testing.T, s *sandbox.Sandbox) (*sandbox.Process, *bufio.Scanner) {
	r, w := io.Pipe()
	p := runs.Start(t, s.With(sandbox.WithStdout(w)))
	go func() {
		_, _ = p.Wait()
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	require.True(t, lines.Scan(), "it has ended without a word")
	return p, lines
}

// A run that listens on the ports and at the addresses of the gateway and of others gets nothing
// that is not for itself: neither what its neighbours send, nor what comes to a port published for
// another of its name.
func TestAttackRootlessPrivateSteal(t *testing.T) {
	real, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer real.Close()
	go func() {
		for conn, err := real.Accept(); err == nil; conn, err = real.Accept() {
			fmt.Fprint(conn, "real")
			conn.Close()
		}
	}()
	port := real.Addr().(*net.TCPAddr).Port
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()))
	require.NoError(t, err)
	defer n.Close()
	p, _ := started(t, runs.Shell("echo; exec sleep 1000", sandbox.WithNetwork(n.As("web")), sandbox.WithPublish("127.0.0.1:0", 80)))
	one := fmt.Sprintf("one.test:%d", port)
	started(t, runs.Helper("private-steal", fmt.Sprintf("198.19.0.1:%d", port), "198.18.0.1:53", "198.18.0.2:80", "198.18.0.3:80", ":81",
		fmt.Sprintf("tcp6/[fde0:6be0:7e22::c613:1]:%d", port), "tcp6/[fde0:6be0:7e22::c612:1]:53", "tcp6/[fde0:6be0:7e22::c612:2]:80").With(sandbox.WithNetwork(n.As("web"))).With(netPowers...))
	started(t, runs.Helper("private-steal", fmt.Sprintf(":%d", port), ":53", ":80", fmt.Sprintf("tcp6/[::]:%d", port), "tcp6/[::]:80").With(sandbox.WithNetwork(n.As("thief")), sandbox.WithPublish("127.0.0.1:0", 80)).With(netPowers...))
	client := sandbox.WithNetwork(n.As("client"))
	require.Equal(t, "real\nstolen", runs.Output(t, runs.Helper("private-fetch", one, "thief:80").With(client)), "and its own port, the control")
	if runs.HasIPv6() {
		require.Equal(t, "real\nstolen", runs.Output(t, runs.Helper("private-fetch", "tcp6/"+one, "tcp6/thief:80").With(client)))
	}
	// Without an error; otherwise it was reset at once.
	if conn, err := net.Dial("tcp", p.Published()[0].String()); err == nil {
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		require.Empty(t, b, "nobody listens there")
	}
}

// hearGroup prints what comes to multicast groups and by broadcast, until the last word.
func hearGroup([]string) error {
	udp, err := net.ListenMulticastUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 99})
	if err != nil {
		return err
	}
	for _, group := range []string{"ff02::fb", "ff05::fb", "ff0e::fb"} {
		udp6, err := net.ListenMulticastUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP(group), Port: 99})
		if err != nil {
			continue // no IPv6
		}
		go func() {
			b := make([]byte, 100)
			for n, _, err := udp6.ReadFrom(b); err == nil; n, _, err = udp6.ReadFrom(b) {
				fmt.Println(string(b[:n]))
			}
		}()
	}
	fmt.Println("listening")
	b := make([]byte, 100)
	for {
		n, _, err := udp.ReadFrom(b)
		if err != nil {
			return err
		}
		if fmt.Println(string(b[:n])); string(b[:n]) == "last" {
			return nil
		}
	}
}

// everybody is the addresses that shout sends to.
var (
	everybody  = []string{"224.0.0.251", "224.0.0.1", "255.255.255.255", "198.18.255.255", "198.19.255.255"}
	everybody6 = []string{"ff02::fb%eth0", "ff02::1%eth0", "ff05::fb", "ff0e::fb"}
)

// shout sends each of these addresses to it, also by raw sockets, and then the last word to the
// victim.
func shout([]string) error {
	for _, all := range everybody {
		to := &unix.SockaddrInet4{Port: 99, Addr: netip.MustParseAddr(all).As4()}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		_ = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_MULTICAST_TTL, 255)
		_ = unix.Sendto(s, []byte(all), 0, to)
		if raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP); err == nil {
			word := "raw " + all
			_ = unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			_ = unix.Sendto(raw, append([]byte{0, 99, 0, 99, 0, byte(8 + len(word)), 0, 0}, word...), 0, &unix.SockaddrInet4{Addr: to.Addr})
		}
	}
	for _, all := range everybody6 {
		if conn, err := net.Dial("udp6", net.JoinHostPort(all, "99")); err == nil {
			fmt.Fprint(conn, all)
		}
	}
	conn, err := net.Dial("udp4", "victim:99")
	if err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	_, err = conn.Write([]byte("last"))
	return err
}

// What a run sends to all reaches none, whatever it may do in a namespace of its own.
func TestAttackRootlessPrivateShout(t *testing.T) {
	var want, heard []string
	for _, all := range everybody {
		want = append(want, all, "raw "+all)
	}
	if runs.HasIPv6() {
		want = append(want, everybody6...)
	}
	for control := onPlainLink(t, "private-group", "private-shout"); control.Scan(); {
		heard = append(heard, control.Text())
	}
	require.Subset(t, heard, append(want, "last"), "the control")

	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	victim, lines := started(t, runs.Helper("private-group").With(sandbox.WithNetwork(n.As("victim"))))
	_, err = runs.Helper("private-shout").With(sandbox.WithNetwork(n.As("attacker"))).With(netPowers...).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.True(t, lines.Scan())
	require.Equal(t, "last", lines.Text())
	_, err = victim.Wait()
	require.NoError(t, err)
}

// keep opens connections to each address in turn, which all answer, and leaves them open.
func keep(to []string) error {
	var all []net.Conn
	for i := range 40 {
		network, at := runs.Over("tcp", to[i%len(to)])
		conn, err := net.Dial(network, at)
		if err == nil && strings.HasPrefix(network, "udp") {
			_, err = conn.Write([]byte("x"))
		}
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			return err
		}
		all = append(all, conn)
	}
	fmt.Println(len(all))
	select {}
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(all)
}

// A run that ends with all of its connections open leaves nothing in the gateway or this process.
func TestAttackRootlessPrivateLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ended := make(chan bool, 100)
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go func() {
				fmt.Fprint(conn, "x")
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
				ended <- true
			}()
		}
	}()
	tcp, udp := l.Addr().(*net.TCPAddr).Port, serveDatagrams(t, "udp4", "127.0.0.1:0").port
	ports := []sandbox.Ports{sandbox.TCP(tcp), sandbox.UDP(udp)}
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", ports...), sandbox.AllowCIDR("127.0.0.1", ports...), sandbox.NetworkResolver(zone.Resolver()))
	require.NoError(t, err)
	defer n.Close()
	to := append(runs.OverEach("tcp", fmt.Sprintf("one.test:%d", tcp)), runs.OverEach("udp", fmt.Sprintf("one.test:%d", udp))...)
	// The first run makes what stays for all runs.
	runs.Output(t, runs.Shell("", sandbox.WithNetwork(n.As("first"))))
	// What is made ahead for the next run.
	const slack = 10
	before := descriptors(t)
	for range 2 {
		p, lines := started(t, runs.Helper("private-keep", to...).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithPublish("127.0.0.1:0", 80), sandbox.WithPublish("127.0.0.1:0/udp", 80)))
		require.Equal(t, "40", lines.Text())
		require.Greater(t, descriptors(t), before+2*20+20, "two of each connection, and one of each socket for datagrams")
		require.NoError(t, p.Kill())
		_, _ = p.Wait()
		for range 20 {
			<-ended
		}
		testkit.Eventually(t, "its descriptors are closed", func() bool { return descriptors(t) <= before+slack })
	}
}
