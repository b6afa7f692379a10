package cell

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestOwnSockets leaves out what other namespaces change.
func TestOwnSockets(t *testing.T) {
	text := func(used, inuse, orphan, tw, alloc, mem, frags string) []byte {
		return ownSockets([]byte("sockets: used " + used + "\nTCP: inuse " + inuse + " orphan " + orphan + " tw " + tw + " alloc " + alloc + " mem " + mem +
			"\nUDP: inuse 0 mem " + mem + "\nFRAG: inuse " + frags + " memory 0\n"))
	}
	born := text("0", "0", "0", "0", "1", "23", "0")
	require.Equal(t, "sockets: used 0 \nTCP: inuse 0 tw 0 \nUDP: inuse 0 \nFRAG: inuse 0 memory 0 \n", string(born))
	require.Equal(t, born, text("0", "0", "7", "0", "1234", "99999", "0"))
	for _, other := range [][]byte{text("1", "0", "0", "0", "1", "23", "0"), text("0", "1", "0", "0", "1", "23", "0"), text("0", "0", "0", "1", "1", "23", "0"), text("0", "0", "0", "0", "1", "23", "1")} {
		require.NotEqual(t, born, other)
	}
}

// TestNetworks keeps namespaces that come back as they were, and makes fewer where none does.
func TestNetworks(t *testing.T) {
	s := networks{score: maxScore, all: 1}
	n := &Network{of: &s}
	s.give(n)
	require.Equal(t, []*Network{n}, s.idle)
	for range maxScore {
		s.all++
		s.drop(&Network{of: &s})
	}
	require.Zero(t, s.score)
	require.Equal(t, 1, s.all)
	s.close()
	s.give(&Network{of: &s})
	require.Empty(t, s.idle, "the cell has ended")
}

// TestTryNetwork says why none could serve again: here, as where this user's watches are used up.
func TestTryNetwork(t *testing.T) {
	c, err := Boot(Config{})
	require.NoError(t, err)
	defer c.Close(context.Background())
	require.NoError(t, c.TryNetwork())
	noWatches, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	c.networks.procs.close()
	c.networks.procs.events = noWatches
	require.ErrorContains(t, c.TryNetwork(), "inotify_add_watch: invalid argument (sysctl fs.inotify.max_user_watches)")
}

// TestNetworkLeavesQuietly joins a group on an interface that is not the loopback one, as there may
// be of tunnels, and leaves it. Later than Give looks, the kernel must say nothing of it.
func TestNetworkLeavesQuietly(t *testing.T) {
	testkit.Need(t, "IPv6")
	c, err := Boot(Config{})
	require.NoError(t, err)
	defer c.Close(context.Background())
	n, err := c.networks.make()
	require.NoError(t, err)
	defer n.close()
	ns, err := n.Open()
	require.NoError(t, err)
	files, err := c.InNetwork(ns, func(b *program.Builder) (made []program.Slot) {
		for _, s := range [][3]int{{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, {unix.AF_INET6, unix.SOCK_DGRAM, 0}} {
			made = append(made, b.CallTo("socket", unix.SYS_SOCKET, program.Int(s[0]), program.Int(s[1]|unix.SOCK_CLOEXEC), program.Int(s[2])))
		}
		return made
	})
	require.NoError(t, err)
	require.NoError(t, ns.Close())
	at := addInterface(t, int(files[0].Fd()), int(files[1].Fd()))
	before := sent(t, n)
	left := &unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 2, 15: 77}, Interface: at}
	require.NoError(t, unix.SetsockoptIPv6Mreq(int(files[1].Fd()), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, left))
	for _, f := range files {
		require.NoError(t, f.Close())
	}
	time.Sleep(time.Second)
	require.Equal(t, before, sent(t, n))
}

func sent(t *testing.T, n *Network) string {
	b, err := n.read(slices.Index(counters[:], "snmp6"))
	require.NoError(t, err)
	return string(b)
}

// addInterface makes one that is down, and returns its index, by two sockets of its namespace.
func addInterface(t *testing.T, netlink, other int) (index uint32) {
	r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("other")))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	r.AddData(info)
	require.NoError(t, unix.Sendto(netlink, r.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	ifr, err := unix.NewIfreq("other")
	require.NoError(t, err)
	require.NoError(t, unix.IoctlIfreq(other, unix.SIOCGIFINDEX, ifr))
	return ifr.Uint32()
}
