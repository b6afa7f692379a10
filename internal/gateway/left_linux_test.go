package gateway

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// booted returns a gateway in a cell of its own, and that.
func booted(t *testing.T) (*gateway, *cell.Cell) {
	c, err := cell.Boot(cell.Config{Runtime: spec.DefaultRuntime})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close(testkit.Deadline(t))) })
	config := &Config{MaxConns: 1, MaxNewConns: 1}
	g, err := newGateway(config, newRoster(config), c)
	require.NoError(t, err)
	t.Cleanup(g.close)
	return g, c
}

// has lists what is in the gateway's namespace: links, addresses, routes and rules of all tables,
// and neighbours, each with its family and what tells it from others (rtnetlink(7)).
func (g *gateway) has(t *testing.T) (list []string) {
	g.netlinkMu.Lock()
	defer g.netlinkMu.Unlock()
	for _, of := range []struct {
		name       string
		kind, head int
		attributes []uint16
	}{
		{"link", unix.RTM_GETLINK, unix.SizeofIfInfomsg, []uint16{unix.IFLA_IFNAME}},
		{"address", unix.RTM_GETADDR, unix.SizeofIfAddrmsg, []uint16{unix.IFA_ADDRESS}},
		{"route", unix.RTM_GETROUTE, unix.SizeofRtMsg, []uint16{unix.RTA_DST, unix.RTA_OIF, unix.RTA_TABLE}},
		{"rule", unix.RTM_GETRULE, unix.SizeofRtMsg, []uint16{nl.FRA_PRIORITY, nl.FRA_IIFNAME, nl.FRA_SRC, nl.FRA_TABLE}},
		{"neighbour", unix.RTM_GETNEIGH, unix.SizeofNdMsg, []uint16{unix.NDA_DST}},
	} {
		r := nl.NewNetlinkRequest(of.kind, unix.NLM_F_DUMP)
		r.AddRawData(make([]byte, of.head))
		_, err := g.ns.netlink.Write(r.Serialize())
		require.NoError(t, err)
		for done := false; !done; {
			b := make([]byte, 64<<10)
			require.NoError(t, g.ns.netlink.SetReadDeadline(time.Now().Add(testkit.Patience)))
			n, err := g.ns.netlink.Read(b)
			require.NoError(t, err)
			messages, err := syscall.ParseNetlinkMessage(b[:n])
			require.NoError(t, err)
			for _, m := range messages {
				if done = m.Header.Type == unix.NLMSG_DONE; done {
					break
				}
				require.NotEqualValues(t, unix.NLMSG_ERROR, m.Header.Type, of.name)
				line := fmt.Sprint(of.name, " of family ", m.Data[0])
				attributes, err := nl.ParseRouteAttr(m.Data[of.head:])
				require.NoError(t, err)
				for _, a := range attributes {
					if slices.Contains(of.attributes, a.Attr.Type) {
						line += fmt.Sprintf(" %d:%q", a.Attr.Type, a.Value)
					}
				}
				list = append(list, line)
			}
		}
	}
	slices.Sort(list)
	return list
}

// Members that have left leave nothing in the gateway's namespace, and all that they had is used
// again, also if the kernel could not be asked for a while.
func TestRootlessMembersLeaveNothing(t *testing.T) {
	t.Parallel()
	g, _ := booted(t)
	before := g.has(t)
	members := testkit.Scale(10, 2)
	comeAndGo := func() {
		var all []*Member
		for i := range members {
			place := &spec.Member{Name: fmt.Sprint("run", i), Limited: i%2 == 0, Reaches: "run1,run2,"}
			m, err := g.take(place, "")
			require.NoError(t, err)
			g.roster.announce(m)
			all = append(all, m)
		}
		// A link and a route of each, and five rules of half of them.
		require.Greater(t, len(g.has(t)), len(before)+members*4)
		for _, m := range all {
			m.Retire()
			m.Leave()
		}
	}
	comeAndGo()
	// As if the kernel refused to remove the interfaces for a while.
	closed, err := os.Open("/dev/null")
	require.NoError(t, err)
	closed.Close()
	replace := func(with *os.File) (was *os.File) {
		g.netlinkMu.Lock()
		defer g.netlinkMu.Unlock()
		was, g.ns.netlink = g.ns.netlink, with
		return was
	}
	was := replace(closed)
	time.Sleep(lingering + lingering/5)
	replace(was)
	testkit.Eventually(t, "their addresses are free", func() bool { return len(g.roster.of(g)) == 0 })
	require.Equal(t, before, g.has(t))
	require.Empty(t, g.roster.named)
	require.Empty(t, g.roster.admitted)
	tables := g.lastTable
	comeAndGo()
	require.Equal(t, tables, g.lastTable)
}
