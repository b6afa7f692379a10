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

// The order of the rules. The main table's priority is 32766.
const (
	ownFirst  = 1
	localLast = 40000
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
		if !g.ordered {
			x.localLast()
		}
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
	g.ordered = g.ordered || m.reach != nil
	return nil
}

// localLast moves the table of local addresses behind the main one, except for the gateway's own
// address, and has it know that every address is local. The kernel looks there, and nowhere else,
// for whether it may answer as an address (__ip_dev_find, net/ipv4/devinet.c). Without rules both
// tables are one, in which the longest prefix wins (fib_unmerge, net/ipv4/fib_frontend.c).
func (x *batch) localLast() {
	own := netip.PrefixFrom(resolver, resolver.BitLen())
	x.ruleFor(unix.RTM_NEWRULE, makeNew, ownFirst, unix.RT_TABLE_LOCAL, own)
	x.ruleFor(unix.RTM_NEWRULE, makeNew, localLast, unix.RT_TABLE_LOCAL, netip.Prefix{})
	x.ruleFor(unix.RTM_DELRULE, 0, 0, unix.RT_TABLE_LOCAL, netip.Prefix{})
	x.route(route{to: anywhere, index: loopback, kind: unix.RTN_LOCAL, scope: unix.RT_SCOPE_HOST, table: unix.RT_TABLE_LOCAL})
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
	for priority, protocol := range map[uint32]uint8{answerTCP: unix.IPPROTO_TCP, answerUDP: unix.IPPROTO_UDP} {
		x.rule(m, kind, flags, priority, m.reach.answer, nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{protocol}), nl.NewRtAttr(nl.FRA_DPORT_RANGE, ports))
	}
	x.rule(m, kind, flags, openFirst, m.reach.open)
	x.rule(m, kind, flags, answerICMP, m.reach.answer, nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{unix.IPPROTO_ICMP}))
	x.rule(m, kind, flags, elseNothing, 0)
}

// rule adds or removes a rule for what comes from a member: look into a table, or, with table 0,
// refuse what goes to other runs.
func (x *batch) rule(from *Member, kind, flags int, priority, table uint32, more ...nl.NetlinkRequestData) {
	to := netip.Prefix{}
	if table == 0 {
		to = runRange
	}
	x.ruleFor(kind, flags, priority, table, to, append(more, nl.NewRtAttr(nl.FRA_IIFNAME, nl.ZeroTerminated(from.linkName())))...)
}

// ruleFor adds or removes a rule for what goes to some addresses, if they are valid, else to any.
func (x *batch) ruleFor(kind, flags int, priority, table uint32, to netip.Prefix, more ...nl.NetlinkRequestData) {
	h := nl.NewRtMsg() // as fib_rule_hdr
	h.Family, h.Table, h.Type, h.Scope, h.Protocol = unix.AF_INET, unix.RT_TABLE_UNSPEC, nl.FR_ACT_TO_TBL, 0, 0
	parts := []nl.NetlinkRequestData{h, nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(priority))}
	if to.IsValid() {
		h.Dst_len = uint8(to.Bits())
		parts = append(parts, nl.NewRtAttr(nl.FRA_DST, to.Addr().AsSlice()))
	}
	if table == 0 {
		h.Type = nl.FR_ACT_PROHIBIT
	} else {
		parts = append(parts, nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(table)))
	}
	x.add(kind, flags, fmt.Sprintf("rule %d", priority), append(parts, more...)...)
}

// routeIn adds or removes a route to a member.
func (x *batch) routeIn(table uint32, kind, flags int, to *Member) {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Type, m.Scope = unix.AF_INET, 32, unix.RTN_UNICAST, unix.RT_SCOPE_LINK
	m.Table, m.Protocol = unix.RT_TABLE_UNSPEC, unix.RTPROT_STATIC
	x.add(kind, flags, fmt.Sprintf("route to %v in table %d", to.address, table), m, nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)),
		nl.NewRtAttr(unix.RTA_DST, to.address.AsSlice()), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(to.link()))))
}
