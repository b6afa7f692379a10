//go:build linux

package attack

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
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
	testkit.AddHelper("private-spoof", spoof)
	testkit.AddHelper("private-hear", hear)
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

// spoofed are the addresses that a spoofer speaks as, besides its neighbour's: the gateway's, one
// that stands for a name, one of the internet.
var (
	spoofed  = []string{"198.18.0.1", "198.19.0.1", "8.8.8.8"}
	spoofed6 = []string{"fde0:6be0:7e22::c612:1", "fde0:6be0:7e22::c613:0", "fde0:6be0:7e22::c613:1", "2001:4860:4860::8888", "fe80::1"}
)

// spoof speaks to the victim as other addresses.
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
	for _, as := range append([]string{other[0]}, spoofed...) {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		source := netip.MustParseAddr(as).As4()
		// Without the last, it can bind another's address, and the kernel sends nothing.
		_ = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_FREEBIND, 1)
		_ = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
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
	sources := slices.Clone(spoofed6)
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

// requireSpoofs fails unless what spoof sends on a plain link is heard as from others.
func requireSpoofs(t *testing.T) {
	var want, heard []string
	others := append([]string{"198.18.0.4"}, spoofed...)
	if runs.HasIPv6() {
		others = append(append(others, "fde0:6be0:7e22::c612:4"), spoofed6...)
	}
	for _, other := range others {
		want = append(want, other+" as "+other)
	}
	for control := onPlainLink(t, "private-hear", "private-spoof"); control.Scan(); {
		from, word, _ := strings.Cut(control.Text(), " ")
		from, _, _ = strings.Cut(from, "%")
		heard = append(heard, from+" "+word)
	}
	require.Subset(t, heard, want, "the control")
}

// One run can't speak as another, of its own cell or another one.
func TestAttackRootlessPrivateSpoof(t *testing.T) {
	requireSpoofs(t)
	other, err := sandbox.NewCell()
	require.NoError(t, err)
	defer other.Close()
	spoofVictim(t)
	spoofVictim(t, sandbox.WithCell(other))
}

func spoofVictim(t *testing.T, of ...sandbox.Option) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	r, w := io.Pipe()
	runs.Start(t, runs.Shell("sleep 1000", sandbox.WithNetwork(n.As("neighbour"))))
	victim := runs.Start(t, runs.Helper("private-hear").With(sandbox.WithNetwork(n.As("victim")), sandbox.WithStdout(w)).With(of...))
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
	require.Equal(t, runs.HasIPv6(), heard6, "what it sends over IPv6 as itself arrives")
	_, err = victim.Wait()
	require.NoError(t, err)
}
