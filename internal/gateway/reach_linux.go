package gateway

import (
	"errors"
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

// changes is those of several gateways.
type changes map[*gateway]*batch

func (x changes) of(g *gateway) *batch {
	if x[g] == nil {
		x[g] = new(batch)
	}
	return x[g]
}

// make makes all of them.
func (x changes) make() (err error) {
	for g, b := range x {
		if len(b.whats) > 0 {
			err = errors.Join(err, g.change(b))
		}
	}
	return err
}

// routesTo adds the routes by cable to a member, of gateways other than its own.
func (x changes) routesTo(m *Member, from ...*gateway) {
	for _, g := range from {
		if g != m.gateway {
			x.of(g).routeIn(unix.RT_TABLE_MAIN, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, g, m)
		}
	}
}

// admit lets a member with a name and a reach in among the others: it gets the routes to them that
// it may have, and they those to it.
func (r *roster) admit(m *Member) error {
	r.reachMu.Lock()
	defer r.reachMu.Unlock()
	x := changes{}
	if own := m.reach; own != nil {
		own.routes = map[*Member]uint32{}
		own.open, own.answer = m.gateway.takeTables()
		m.rules(x.of(m.gateway), unix.RTM_NEWRULE, makeNew)
		for _, o := range r.admitted {
			m.routeTo(o, x)
		}
	}
	x.routesTo(m, r.gateways...)
	for _, o := range r.admitted {
		o.routeTo(m, x)
	}
	r.admitted = append(r.admitted, m)
	if err := x.make(); err != nil {
		return fmt.Errorf("what Reaches allows: %w", err)
	}
	return nil
}

// routeTo adds the route to another member, if there is to be one.
func (m *Member) routeTo(o *Member, x changes) {
	if table := m.tableFor(o); table != 0 {
		m.reach.routes[o] = table
		x.of(m.gateway).routeIn(table, unix.RTM_NEWROUTE, makeNew, m.gateway, o)
	}
}

// dismiss takes the member's interface down, and with it the routes to it; then what was its own.
func (r *roster) dismiss(m *Member) {
	r.reachMu.Lock()
	defer r.reachMu.Unlock()
	there, x := changes{}, changes{}
	own := x.of(m.gateway)
	own.down(m.link())
	if m.gateway.noIPv6 == nil {
		m.ruleIPv6(own, unix.RTM_DELRULE, 0)
	}
	if !slices.Contains(r.admitted, m) {
		_ = x.make() // it may be gone already
		return
	}
	r.admitted = slices.DeleteFunc(r.admitted, func(o *Member) bool { return o == m })
	for _, g := range r.gateways {
		if g != m.gateway {
			there.of(g).routeIn(unix.RT_TABLE_MAIN, unix.RTM_DELROUTE, 0, g, m)
		}
	}
	for _, o := range r.admitted {
		if o.reach == nil {
			continue
		}
		if table := o.reach.routes[m]; table != 0 && o.gateway != m.gateway {
			there.of(o.gateway).routeIn(table, unix.RTM_DELROUTE, 0, o.gateway, m)
		}
		delete(o.reach.routes, m)
	}
	_ = there.make()
	if m.reach == nil {
		_ = x.make()
		return
	}
	m.rules(own, unix.RTM_DELRULE, 0)
	for o, table := range m.reach.routes {
		own.routeIn(table, unix.RTM_DELROUTE, 0, m.gateway, o)
	}
	if x.make() == nil {
		m.gateway.tables = append(m.gateway.tables, m.reach.open) // as empty as new ones
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

// routeIn adds or removes a gateway's routes to a member, which is one of its own or at the other
// end of its cable.
func (x *batch) routeIn(table uint32, kind, flags int, g *gateway, to *Member) {
	for _, a := range to.addresses() {
		if a.Is6() && g.noIPv6 != nil {
			continue
		}
		m := nl.NewRtMsg()
		m.Family, m.Dst_len, m.Type, m.Scope = uint8(family(a)), uint8(a.BitLen()), unix.RTN_UNICAST, unix.RT_SCOPE_LINK
		m.Table, m.Protocol = unix.RT_TABLE_UNSPEC, unix.RTPROT_STATIC
		x.add(kind, flags, fmt.Sprintf("route to %v in table %d", a, table), m, nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)),
			nl.NewRtAttr(unix.RTA_DST, a.AsSlice()), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(g.linkTo(to)))))
	}
}
