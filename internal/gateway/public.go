package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// The addresses that no name leads to: those of the registries of special-purpose addresses, IANA,
// iana-ipv4-special-registry and iana-ipv6-special-registry, and multicast.
var (
	special = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"168.63.129.16/32", // of Azure, as 169.254.169.254 elsewhere
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "fc00::/7", "fe80::/10", "ff00::/8")
	unicast6 = netip.MustParsePrefix("2000::/3") // all that is given out of IPv6
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

// plain returns the address that a packet to one arrives at, if that is another: by NAT64.
func plain(a netip.Addr) netip.Addr {
	if !nat64.Contains(a) {
		return a
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// blockOf returns the special addresses to which one belongs, written as it is.
func blockOf(a netip.Addr) (block netip.Prefix, ok bool) {
	if nat64.Contains(a) {
		block, ok = blockOf(plain(a))
		return netip.PrefixFrom(a, nat64.Bits()+block.Bits()).Masked(), ok
	}
	if i := slices.IndexFunc(special, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		return special[i], true
	}
	if a.Is6() && !unicast6.Contains(a) {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

// isOwn reports whether an address leads to this machine itself.
func isOwn(a netip.Addr) (bool, error) {
	if a.IsLoopback() || a.IsUnspecified() {
		return true, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("looking for the machine's own addresses: %w", err)
	}
	return slices.ContainsFunc(addrs, func(own net.Addr) bool {
		n, ok := own.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == a
	}), nil
}

// ruleFor returns the rule that allows a connection to an address, "" if there is none that names
// addresses, and an error if nothing may go there. A rule for the whole internet, or a part of it,
// names neither what is special in it nor this machine.
func (c *Config) ruleFor(to netip.AddrPort) (rule string, err error) {
	a := to.Addr().Unmap()
	if !a.IsValid() || a.Zone() != "" {
		return "", &refusal{fmt.Sprintf("%v belongs to a link of this machine", a)}
	}
	own, err := isOwn(plain(a))
	if err != nil {
		return "", err
	}
	block, special := blockOf(a)
	for _, r := range c.CIDRs {
		switch {
		case !r.Prefix.Contains(a) || !r.Ports.have(c.over, to.Port()):
		case own && !r.Prefix.IsSingleIP():
		case special && !own && (r.Prefix.Bits() < block.Bits()):
		default:
			return r.Prefix.String(), nil
		}
	}
	switch {
	case own:
		return "", &refusal{fmt.Sprintf("%v is an address of this machine, which AllowCIDR has to name by itself", a)}
	case special:
		return "", &refusal{fmt.Sprintf("%v is not an address of the internet: AllowCIDR has to name it, or a part of its block", a)}
	}
	return "", nil
}

// checkFar refuses a connection to this machine itself by an address that no interface has, as
// routes can make them: its own end has the same address. It may be one that a rule names by
// itself.
func (c *Config) checkFar(near netip.Addr, far netip.AddrPort) error {
	if near != far.Addr() {
		return nil
	}
	rule, err := c.ruleFor(far)
	if p, parseErr := netip.ParsePrefix(rule); err == nil && parseErr == nil && p.IsSingleIP() {
		return nil
	}
	return &refusal{fmt.Sprintf("%v is an address of this machine, which AllowCIDR has to name by itself", far.Addr())}
}

// refusal is an error that a rule is the reason of.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }
