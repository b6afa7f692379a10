package gateway

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// reach is to whom a member may send, if that is limited. The gateway forwards what comes from the
// member's interface by two routing tables of its own, before the one that is for all: ip-rule(8).
type reach struct {
	names  []string
	open   uint32             // table of those to whom it may open connections
	answer uint32             // table of those whom it may answer
	routes map[*Member]uint32 // the table that has a route to a member
}

// The ports from which programs connect, if they don't choose one, in every namespace that is new:
// ip_local_port_range in Documentation/networking/ip-sysctl.rst.
const firstOwnPort, lastOwnPort = 32768, 60999

// firstTable is above those that the kernel has.
const firstTable = 1000

// The order of the rules, after the gateway's own addresses (priority 0), before the main table.
const (
	openFirst = 100 + iota
	answerTCP
	answerUDP
	answerICMP
	elseNothing
)

// mayOpen reports whether the member may open connections to another, or is it.
func (m *Member) mayOpen(to *Member) bool {
	return m == to || m.reach == nil || slices.Contains(m.reach.names, to.name)
}

// tableFor returns the table in which the member has a route to another, 0 for none.
func (m *Member) tableFor(to *Member) uint32 {
	switch {
	case m == to || m.reach == nil:
		return 0
	case m.mayOpen(to):
		return m.reach.open
	case to.mayOpen(m):
		return m.reach.answer
	}
	return 0
}

// admit lets a member with a name and a reach in among the others: it gets the routes to them that
// it may have, and they those to it.
func (g *gateway) admit(m *Member) error {
	g.reachMu.Lock()
	defer g.reachMu.Unlock()
	var x batch
	if r := m.reach; r != nil {
		r.routes = map[*Member]uint32{}
		r.open, r.answer = g.takeTables()
		m.rules(&x, unix.RTM_NEWRULE, makeNew)
		for _, o := range g.admitted {
			m.routeTo(o, &x)
		}
	}
	for _, o := range g.admitted {
		o.routeTo(m, &x)
	}
	g.admitted = append(g.admitted, m)
	if len(x.whats) == 0 {
		return nil
	}
	if err := g.change(&x); err != nil {
		return fmt.Errorf("what Reaches allows: %w", err)
	}
	return nil
}

// routeTo adds the route to another member, if there is to be one.
func (m *Member) routeTo(o *Member, x *batch) {
	if table := m.tableFor(o); table != 0 {
		m.reach.routes[o] = table
		x.routeIn(table, unix.RTM_NEWROUTE, makeNew, o)
	}
}

// dismiss takes the member's interface away, and with it the routes to it; then what was its own.
func (g *gateway) dismiss(m *Member) {
	g.reachMu.Lock()
	defer g.reachMu.Unlock()
	var x batch
	x.remove(m.link())
	if g.noIPv6 == nil {
		m.ruleIPv6(&x, unix.RTM_DELRULE, 0)
	}
	g.admitted = slices.DeleteFunc(g.admitted, func(o *Member) bool { return o == m })
	for _, o := range g.admitted {
		if o.reach != nil {
			delete(o.reach.routes, m)
		}
	}
	r := m.reach
	if r == nil {
		_ = g.change(&x) // it may be gone already
		return
	}
	m.rules(&x, unix.RTM_DELRULE, 0)
	for o, table := range r.routes {
		x.routeIn(table, unix.RTM_DELROUTE, 0, o)
	}
	if g.change(&x) == nil {
		g.tables = append(g.tables, r.open) // as empty as new ones
	}
}

// takeTables returns the numbers of two tables that are empty.
func (g *gateway) takeTables() (open, answer uint32) {
	if n := len(g.tables); n > 0 {
		open, g.tables = g.tables[n-1], g.tables[:n-1]
	} else {
		open = firstTable + g.lastTable
		g.lastTable += 2
	}
	return open, open + 1
}

// rules adds or removes the rules for what comes from the member.
func (m *Member) rules(x *batch, kind, flags int) {
	ports := make([]byte, 4)
	nl.NativeEndian().PutUint16(ports, firstOwnPort)
	nl.NativeEndian().PutUint16(ports[2:], lastOwnPort)
	for _, own := range m.addresses() {
		r := rule{family: family(own), iif: m.linkName()}
		others, icmp := runRange, byte(unix.IPPROTO_ICMP)
		if own.Is6() {
			r.from, others, icmp = own, netip.PrefixFrom(in6(runRange.Addr()), 96+runRange.Bits()), unix.IPPROTO_ICMPV6
		}
		add := func(priority, table uint32, more ...nl.NetlinkRequestData) {
			r.priority, r.table = priority, table
			x.rule(kind, flags, r, more...)
		}
		add(openFirst, m.reach.open)
		add(answerTCP, m.reach.answer, nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{unix.IPPROTO_TCP}), nl.NewRtAttr(nl.FRA_DPORT_RANGE, ports))
		add(answerUDP, m.reach.answer, nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{unix.IPPROTO_UDP}), nl.NewRtAttr(nl.FRA_DPORT_RANGE, ports))
		add(answerICMP, m.reach.answer, nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{icmp}))
		r.to = others
		add(elseNothing, 0)
	}
}

// routeIn adds or removes the routes to a member.
func (x *batch) routeIn(table uint32, kind, flags int, to *Member) {
	for _, a := range to.addresses() {
		m := nl.NewRtMsg()
		m.Family, m.Dst_len, m.Type, m.Scope = uint8(family(a)), uint8(a.BitLen()), unix.RTN_UNICAST, unix.RT_SCOPE_LINK
		m.Table, m.Protocol = unix.RT_TABLE_UNSPEC, unix.RTPROT_STATIC
		x.add(kind, flags, fmt.Sprintf("route to %v in table %d", a, table), m, nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)),
			nl.NewRtAttr(unix.RTA_DST, a.AsSlice()), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(to.link()))))
	}
}
