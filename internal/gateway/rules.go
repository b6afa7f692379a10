// Package gateway is the way from runs to other hosts and to each other: a network namespace
// without an uplink, whose listeners this process holds. What a run may reach is decided here, when
// it is asked for by name and again when the address is dialed.
package gateway

import (
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
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

	over   protocol              // of which the rules are asked for
	inject map[string]*injection // by names
	// Roots is for tests: nil is the authorities that this machine trusts.
	Roots *x509.CertPool
}

// Host is names that runs may connect to.
type Host struct {
	Pattern string // lower case; "*.example.org" for all below, "*" for all
	Ports   Ports
}

// CIDR is addresses that runs may connect to.
type CIDR struct {
	Prefix netip.Prefix
	Ports  Ports
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
func (c *Config) AllowHost(pattern string, ports Ports) {
	h := Host{Ports: ports}
	ascii, err := inASCII(pattern)
	if err == nil {
		h.Pattern = canonical(ascii)
		err = checkPattern(h.Pattern)
	}
	if err == nil {
		err = ports.check()
	}
	if err != nil {
		c.Wrong = append(c.Wrong, fault.Option("AllowHost", "%q: %w", pattern, err))
		return
	}
	c.Hosts = append(c.Hosts, h)
}

// AllowCIDR adds addresses.
func (c *Config) AllowCIDR(text string, ports Ports) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(text); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		} else {
			err = errors.New(`it is neither like "10.2.0.0/16" nor like "10.2.0.1", without a zone`)
		}
	}
	r := CIDR{p.Masked(), ports}
	switch {
	case err != nil:
	case p.Addr().Is4In6():
		err = errors.New("write IPv4 as IPv4")
	default:
		err = ports.check()
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
	all := c.all()
	if n := len(all.TCP) + len(all.UDP); n > maxPorts && c.isWide() {
		errs = append(errs, fault.Option("NewNetwork", "%d ranges of ports with gaps between them are allowed, at most %d are possible: allow what is between them, too", n, maxPorts))
	}
	return errors.Join(errs...)
}

func checkBandwidth(option string, rate int64) error {
	if rate < 0 || rate > 0 && rate < minBandwidth {
		return fault.Option(option, "%d bytes per second: the least is %d, and 0 is no limit", rate, minBandwidth)
	}
	return nil
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
	if !spec.IsName(name) {
		return errNoName
	}
	return nil
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

// covers reports whether the pattern is for a name. Those with * are not for the names of the
// network's own runs: who can't be found must not be looked for outside.
func (h *Host) covers(name string, own bool) bool {
	if below, ok := strings.CutPrefix(h.Pattern, "*"); ok {
		return !own && strings.HasSuffix(name, below)
	}
	return name == h.Pattern
}

// isListed reports whether any port of a name, which may be one of the network's own, is allowed.
func (c *Config) isListed(name string, own bool) bool {
	return slices.ContainsFunc(c.Hosts, func(h Host) bool { return h.covers(name, own) })
}

// ruleForName returns the pattern that allows a connection to a name, as isListed.
func (c *Config) ruleForName(name string, own bool, port uint16) (rule string, ok bool) {
	for _, h := range c.Hosts {
		if h.covers(name, own) && h.Ports.have(c.over, port) {
			return h.Pattern, true
		}
	}
	return "", false
}

// of returns the same rules for a protocol.
func (c *Config) of(over protocol) *Config {
	u := *c
	u.over = over
	return &u
}
