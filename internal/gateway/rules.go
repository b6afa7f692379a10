// Package gateway is the way from runs to other hosts and to each other: a network namespace
// without an uplink, whose listeners this process holds. What a run may reach is decided here, when
// it is asked for by name and again when the address is dialed.
package gateway

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/cellkit/sandbox/internal/fault"
)

// Config is what the options of a network set. Wrong holds what is wrong with them.
type Config struct {
	Hosts    []Host
	CIDRs    []CIDR
	MaxConns int // of one run at a time
	// MaxNewConns is how many of them may begin in a second.
	MaxNewConns int
	// In bytes per second, each way: of all runs, and of each.
	Bandwidth, RunBandwidth int64

	Resolver *net.Resolver
	Observe  func(Conn)
	Wrong    []error

	inject map[string]*injection // by names
	// Roots is for tests: nil is the authorities that this machine trusts.
	Roots *x509.CertPool
}

// Host is names that runs may connect to.
type Host struct {
	Pattern string   // lower case; "*.example.org" for all below, "*" for all
	Ports   []uint16 // of TCP
	UDP     []uint16
}

// CIDR is addresses that runs may connect to.
type CIDR struct {
	Prefix netip.Prefix
	Ports  []uint16 // of TCP
	UDP    []uint16
}

const (
	// DefaultMaxConns is how many connections a run may have at a time.
	DefaultMaxConns = 256
	maxMaxConns     = 1 << 16
	// DefaultMaxNewConns is how many of them may begin in a second.
	DefaultMaxNewConns = 1000
	maxMaxNewConns     = 1_000_000
	minBandwidth       = 1 << 10
	// maxPorts bounds the listeners of a gateway, whose descriptors come in one message.
	maxPorts = 200
)

// AllowHost adds a name.
func (c *Config) AllowHost(pattern string, tcp []int, udp ...int) {
	var h Host
	ascii, err := inASCII(pattern)
	if err == nil {
		h.Pattern = canonical(ascii)
		err = checkPattern(h.Pattern)
	}
	if err == nil {
		h.Ports, h.UDP, err = checkPorts(tcp, udp)
	}
	if err != nil {
		c.Wrong = append(c.Wrong, fault.Option("AllowHost", "%q: %w", pattern, err))
		return
	}
	c.Hosts = append(c.Hosts, h)
}

// AllowCIDR adds addresses.
func (c *Config) AllowCIDR(text string, tcp []int, udp ...int) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(text); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		} else {
			err = errors.New(`it is neither like "10.2.0.0/16" nor like "10.2.0.1", without a zone`)
		}
	}
	r := CIDR{Prefix: p.Masked()}
	switch {
	case err != nil:
	case p.Addr().Is4In6():
		err = errors.New("write IPv4 as IPv4")
	default:
		r.Ports, r.UDP, err = checkPorts(tcp, udp)
	}
	if err != nil {
		c.Wrong = append(c.Wrong, fault.Option("AllowCIDR", "%q: %w", text, err))
		return
	}
	c.CIDRs = append(c.CIDRs, r)
}

// Check returns all that is wrong.
func (c *Config) Check() error {
	errs := slices.Clone(c.Wrong)
	if c.MaxConns < 1 || c.MaxConns > maxMaxConns {
		errs = append(errs, fault.Option("MaxConns", "%d is not between 1 and %d", c.MaxConns, maxMaxConns))
	}
	if c.MaxNewConns < 1 || c.MaxNewConns > maxMaxNewConns {
		errs = append(errs, fault.Option("MaxNewConns", "%d is not between 1 and %d", c.MaxNewConns, maxMaxNewConns))
	}
	errs = append(errs, checkBandwidth("Bandwidth", c.Bandwidth), checkBandwidth("RunBandwidth", c.RunBandwidth))
	if n := len(c.ports()) + len(c.forUDP().ports()); n > maxPorts {
		errs = append(errs, fault.Option("NewNetwork", "%d different ports are allowed, at most %d are possible", n, maxPorts))
	}
	return errors.Join(errs...)
}

func checkBandwidth(option string, rate int64) error {
	if rate < 0 || rate > 0 && rate < minBandwidth {
		return fault.Option(option, "%d bytes per second: the least is %d, and 0 is no limit", rate, minBandwidth)
	}
	return nil
}

func checkPorts(tcp, udp []int) (overTCP, overUDP []uint16, err error) {
	if len(tcp)+len(udp) == 0 {
		return nil, nil, errors.New("name the ports too")
	}
	for i, p := range slices.Concat(tcp, udp) {
		switch {
		case p < 1 || p > 65535:
			return nil, nil, fmt.Errorf("%d: ports go from 1 to 65535", p)
		case i < len(tcp):
			overTCP = append(overTCP, uint16(p))
		default:
			overUDP = append(overUDP, uint16(p))
		}
	}
	return overTCP, overUDP, nil
}

// inASCII returns a pattern as names are looked up, with xn-- for what is not ASCII: RFC 5891,
// section 5.
func inASCII(pattern string) (string, error) {
	if !strings.ContainsFunc(pattern, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return pattern, nil
	}
	name, below := strings.CutPrefix(pattern, "*.")
	name, err := idna.Lookup.ToASCII(name)
	if err != nil || !utf8.ValidString(pattern) {
		return "", errNoName
	}
	if below {
		name = "*." + name
	}
	return name, nil
}

var errNoName = errors.New("that is no host name, nor one with *. before it")

func checkPattern(p string) error {
	if p == "*" {
		return nil
	}
	name := strings.TrimPrefix(p, "*.")
	if _, err := netip.ParseAddr(strings.Trim(p, "[]")); err == nil {
		return errors.New("that is an address: use AllowCIDR")
	}
	if !isName(name) {
		return errNoName
	}
	return nil
}

// isName reports whether name, in lower case, is a host name, in which underscores are allowed.
func isName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}

// canonical returns a name in lower case, without the root's dot.
func canonical(name string) string {
	lower := []byte(name)
	for i, b := range lower {
		if 'A' <= b && b <= 'Z' {
			lower[i] = b + 'a' - 'A'
		}
	}
	return strings.TrimSuffix(string(lower), ".")
}

// covers reports whether the pattern is for a name.
func (h *Host) covers(name string) bool {
	if below, ok := strings.CutPrefix(h.Pattern, "*"); ok {
		return strings.HasSuffix(name, below)
	}
	return name == h.Pattern
}

// isListed reports whether any port of the name is allowed.
func (c *Config) isListed(name string) bool {
	return slices.ContainsFunc(c.Hosts, func(h Host) bool { return h.covers(name) })
}

// ruleForName returns the pattern that allows a connection to a name.
func (c *Config) ruleForName(name string, port uint16) (rule string, ok bool) {
	for _, h := range c.Hosts {
		if h.covers(name) && slices.Contains(h.Ports, port) {
			return h.Pattern, true
		}
	}
	return "", false
}

// forUDP returns the same with the ports of UDP in place of those of TCP.
func (c *Config) forUDP() *Config {
	u := *c
	u.Hosts, u.CIDRs = slices.Clone(c.Hosts), slices.Clone(c.CIDRs)
	for i := range u.Hosts {
		u.Hosts[i].Ports = u.Hosts[i].UDP
	}
	for i := range u.CIDRs {
		u.CIDRs[i].Ports = u.CIDRs[i].UDP
	}
	return &u
}

// ports returns all ports that are allowed anywhere, sorted.
func (c *Config) ports() (list []uint16) {
	for _, h := range c.Hosts {
		list = append(list, h.Ports...)
	}
	for _, r := range c.CIDRs {
		list = append(list, r.Ports...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
