package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// IPv6 within a network. Every address of ours has one of IPv6 too (in6), for which the same holds.
// But IPv6 has no rp_filter, and any program may choose its source (ipv6(7), IPV6_FREEBIND). So
// rules of routing take from each run's interface its own address alone. The kernel's first rule is
// before them and can't be removed everywhere (FIB_RULE_PERMANENT), so its table, of what is local
// by itself, has link-local and multicast addresses alone, and what arrives there is dropped
// (sender). The gateway's link-local address has no prefix: with that it would look for neighbours
// that a run makes up, of which there may be as many on the whole machine as in one namespace
// (gc_thresh3).

var (
	everywhere = netip.MustParsePrefix("::/0")
	gateway6   = in6(nameRange.Addr())                // for no name, in no rule
	linkLocal  = netip.MustParsePrefix("fe80::1/128") // the gateway's, on every link
)

// The order of IPv6's rules, after those of Reaches.
const (
	fromRun = 200 + iota // one of each member
	fromGateway
	fromOthers
)

// kernelIPv6 returns an error if new namespaces have no IPv6.
func kernelIPv6() error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return errors.New("the kernel has no IPv6, or it is switched off at boot (ipv6.disable=1)")
	}
	return nil
}

// setUpIPv6 is for every namespace: interfaces get no address by themselves, and ask nobody for
// one.
func setUpIPv6(b *program.Builder) {
	if kernelIPv6() != nil {
		return
	}
	for _, s := range [][2]string{{"all/disable_ipv6", "0"}, {"default/disable_ipv6", "0"}, {"default/addr_gen_mode", "1"}, {"default/accept_ra", "0"}, {"default/accept_dad", "0"}} {
		set(b, "ipv6/conf/"+s[0], s[1])
	}
}

// addIPv6 gives the gateway IPv6, and returns why it can't.
func (g *gateway) addIPv6() error {
	if err := kernelIPv6(); err != nil {
		return err
	}
	var x batch
	x.route(route{to: everywhere, index: loopback, kind: unix.RTN_LOCAL})
	x.rule(unix.RTM_NEWRULE, makeNew, rule{priority: fromGateway, family: unix.AF_INET6, iif: "lo", table: unix.RT_TABLE_MAIN})
	x.rule(unix.RTM_NEWRULE, makeNew, rule{priority: fromOthers, family: unix.AF_INET6})
	if err := g.change(&x); err != nil {
		return fmt.Errorf("IPv6 in the gateway, which takes CONFIG_IPV6_MULTIPLE_TABLES: %w", err)
	}
	return nil
}

// connectIPv6 adds what the gateway and the member need to reach each other by IPv6, at once: what
// an address brings by itself, its route and that its neighbours get answers, comes from a queue of
// the kernel's (net/ipv6/addrconf.c, addrconf_dad_work), which waits for a lock that all namespaces
// share, for seconds where many come and go. So neither end asks for its neighbour.
func (m *Member) connectIPv6(gateways, members *batch) {
	own := netip.PrefixFrom(in6(m.address), 128)
	gateways.address(m.link(), linkLocal)
	gateways.route(route{to: own, index: m.link(), kind: unix.RTN_UNICAST})
	gateway, run := m.hardware()
	gateways.neighbour(m.link(), own.Addr(), run)
	m.ruleIPv6(gateways, unix.RTM_NEWRULE, makeNew)
	// The C library prefers IPv4 only to an address that leads away from such a one
	// (getaddrinfo(3), RFC 6724, rule 3).
	members.address(runLink, own, deprecated())
	members.route(route{to: own, index: runLink, kind: unix.RTN_LOCAL, local: true})
	members.neighbour(runLink, linkLocal.Addr(), gateway)
	members.route(route{to: everywhere, index: runLink, via: linkLocal.Addr(), kind: unix.RTN_UNICAST})
}

// ruleIPv6 adds or removes the rule that takes the member's own address from its interface.
func (m *Member) ruleIPv6(x *batch, kind, flags int) {
	x.rule(kind, flags, rule{priority: fromRun, family: unix.AF_INET6, iif: m.linkName(), from: in6(m.address), table: unix.RT_TABLE_MAIN})
}

// sender returns the member that has sent something to an address, or nil if that can't be known.
func (g *gateway) sender(from, to netip.Addr) *Member {
	if to.Is6() && (to.IsLinkLocalUnicast() || to.IsMulticast()) {
		return nil
	}
	return g.member(from)
}

// sockaddr is for a socket of a family. One of IPv6 takes both.
func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
