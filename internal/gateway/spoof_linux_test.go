package gateway

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
)

// memberSockets makes a socket for datagrams of each family in the member's namespace. Those of a
// port take them there, the others may be sent from any address, which a run's may not over IPv4.
func memberSockets(t *testing.T, c *cell.Cell, m *Member, port uint16) []*os.File {
	files, err := c.InNetwork(m.ns.file, func(b *program.Builder) (made []program.Slot) {
		for _, family := range families() {
			s := socket(b, family, unix.SOCK_DGRAM, 0)
			any, level, transparent, name := anywhere.Addr(), unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
			if family == unix.AF_INET6 {
				any, level, transparent, name = everywhere.Addr(), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
				option(b, s, unix.SOL_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY")
			}
			if port != 0 {
				bind(b, s, netip.AddrPortFrom(any, port))
			} else {
				option(b, s, level, transparent, name)
			}
			made = append(made, s)
		}
		return made
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	return files
}

// sendAs sends a datagram to port 99 of an address, with another as its source, which it contains.
func sendAs(t *testing.T, f *os.File, as, to netip.Addr) {
	var info []byte
	if as.Is4() {
		info = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: as.As4()})
	} else {
		info = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: as.As16()})
	}
	_, err := unix.SendmsgN(int(f.Fd()), []byte(as.String()), info, sockaddr(family(to), netip.AddrPortFrom(to, 99)), 0)
	require.NoError(t, err, as)
}

// The gateway's kernel takes from a member no address but its own, whatever it may send.
func TestRootlessForged(t *testing.T) {
	t.Parallel()
	g, c := booted(t)
	var members []*Member
	for _, name := range []string{"attacker", "victim", "neighbour"} {
		m, err := g.take(&spec.Member{Name: name}, "")
		require.NoError(t, err)
		defer m.disconnect()
		members = append(members, m)
	}
	attacker, victim, neighbour := members[0], members[1], members[2]
	from, to := memberSockets(t, c, attacker, 0), memberSockets(t, c, victim, 99)
	heard := func(i int) (sources []string) {
		own, others := attacker.address, []netip.Addr{neighbour.address, resolver, nameRange.Addr().Next(), netip.MustParseAddr("8.8.8.8")}
		at := victim.address
		if families()[i] == unix.AF_INET6 {
			own, at = in6(own), in6(at)
			others = []netip.Addr{in6(neighbour.address), in6(resolver), gateway6, netip.MustParseAddr("2001:4860:4860::8888")}
		}
		for _, as := range append(others, own) {
			sendAs(t, from[i], as, at)
		}
		udp, err := net.FilePacketConn(to[i])
		require.NoError(t, err)
		defer udp.Close()
		require.NoError(t, udp.SetReadDeadline(time.Now().Add(testkit.Patience)))
		b := make([]byte, 100)
		for {
			n, at, err := udp.ReadFrom(b)
			require.NoError(t, err)
			source := at.(*net.UDPAddr).AddrPort().Addr().String()
			require.Equal(t, source, string(b[:n]))
			if source == own.String() {
				return sources
			}
			sources = append(sources, source)
		}
	}
	for i := range families() {
		require.Empty(t, heard(i))
	}
	// The control: without the settings and rules all of them arrive.
	files, err := c.InNetwork(g.ns.file, func(b *program.Builder) []program.Slot {
		for _, of := range []string{"all", attacker.linkName()} {
			set(b, "ipv4/conf/"+of+"/rp_filter", "0")
			set(b, "ipv4/conf/"+of+"/accept_local", "1")
		}
		return []program.Slot{socket(b, unix.AF_INET, unix.SOCK_DGRAM, 0)}
	})
	require.NoError(t, err)
	files[0].Close()
	if slices.Contains(families(), unix.AF_INET6) {
		var x batch
		x.rule(unix.RTM_NEWRULE, makeNew, rule{priority: fromGateway, family: unix.AF_INET6, iif: attacker.linkName(), table: unix.RT_TABLE_MAIN})
		require.NoError(t, g.change(&x))
	}
	for i := range families() {
		require.Len(t, heard(i), 4)
	}
}
