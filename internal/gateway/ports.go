package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Ports is what of a host or of addresses may be reached.
type Ports struct {
	TCP, UDP []Span
	Ping     bool
}

// Span is ports from the first to the last.
type Span struct{ First, Last int }

// AllPorts is the span of all.
var AllPorts = Span{1, 65535}

// Spans returns those of single ports.
func Spans(ports ...int) (list []Span) {
	for _, p := range ports {
		list = append(list, Span{p, p})
	}
	return list
}

// Add adds more.
func (p *Ports) Add(more Ports) {
	p.TCP, p.UDP, p.Ping = append(p.TCP, more.TCP...), append(p.UDP, more.UDP...), p.Ping || more.Ping
}

func (p *Ports) check() error {
	if len(p.TCP)+len(p.UDP) == 0 && !p.Ping {
		return errors.New("name the ports too")
	}
	for _, s := range slices.Concat(p.TCP, p.UDP) {
		switch {
		case s.First < 1:
			return fmt.Errorf("%d: ports go from 1 to 65535", s.First)
		case s.Last > 65535:
			return fmt.Errorf("%d: ports go from 1 to 65535", s.Last)
		case s.Last < s.First:
			return fmt.Errorf("%d to %d: the first port comes first", s.First, s.Last)
		}
	}
	return nil
}

// protocol is what a connection is made of.
type protocol int

const (
	overTCP protocol = iota
	overUDP
	overPing // whose port is 0
)

// have reports whether a port of a protocol is among them.
func (p *Ports) have(over protocol, port uint16) bool {
	spans := p.TCP
	switch over {
	case overUDP:
		spans = p.UDP
	case overPing:
		return p.Ping
	}
	return slices.ContainsFunc(spans, func(s Span) bool { return s.First <= int(port) && int(port) <= s.Last })
}

// all returns what is allowed anywhere: spans in their order, with a gap between them.
func (c *Config) all() (p Ports) {
	for _, h := range c.Hosts {
		p.Add(h.Ports)
	}
	for _, r := range c.CIDRs {
		p.Add(r.Ports)
	}
	p.TCP, p.UDP = merged(p.TCP), merged(p.UDP)
	return p
}

func merged(spans []Span) (list []Span) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.First, b.First) })
	for _, s := range spans {
		if n := len(list); n > 0 && s.First <= list[n-1].Last+1 {
			list[n-1].Last = max(list[n-1].Last, s.Last)
		} else {
			list = append(list, s)
		}
	}
	return list
}

// isWide reports whether the ports are more than there may be listeners for.
func (c *Config) isWide() bool {
	all := c.all()
	return count(all.TCP)+count(all.UDP) > maxPorts
}

// count returns how many ports spans have.
func count(spans []Span) (n int) {
	for _, s := range spans {
		n += s.Last - s.First + 1
	}
	return n
}

// each returns the ports of spans.
func each(spans []Span) (list []uint16) {
	for _, s := range spans {
		for p := s.First; p <= s.Last; p++ {
			list = append(list, uint16(p))
		}
	}
	return list
}
