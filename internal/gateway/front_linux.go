package gateway

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/cellkit/sandbox/internal/spec"
)

// front is an address of this machine at which several members of one name are published. Each
// connection goes to one of them, in turn.
type front struct {
	of   *roster
	key  frontKey
	l    *net.TCPListener
	port uint16 // of the members

	// By the roster's frontsMu.
	members []*Member
	next    uint
}

// frontKey is what members must have in common to share an address.
type frontKey struct {
	name    string
	address string
	port    int
}

// share is Publish for an address that others of the member's name have too.
func (m *Member) share(p spec.Published) (netip.AddrPort, error) {
	f, err := m.gateway.roster.addToFront(m, p)
	if err != nil {
		return netip.AddrPort{}, err
	}
	m.keep(frontPlace{f, m})
	return addrPort(f.l.Addr()), nil
}

// addToFront makes m a member of a front, which is made if it is the first.
func (r *roster) addToFront(m *Member, p spec.Published) (*front, error) {
	key := frontKey{m.name, p.Address, p.Port}
	r.frontsMu.Lock()
	defer r.frontsMu.Unlock()
	f := r.fronts[key]
	if f == nil {
		l, err := net.Listen("tcp", p.Address)
		if err != nil {
			return nil, err
		}
		f = &front{of: r, key: key, l: l.(*net.TCPListener), port: uint16(p.Port)}
		go takeIn(f.l, f.spread) // until the last of its members leaves
		r.fronts[key] = f
	}
	f.members = append(f.members, m)
	return f, nil
}

// frontPlace is a member's part of a front.
type frontPlace struct {
	f *front
	m *Member
}

// Close takes the member from the front, which ends with its last one.
func (p frontPlace) Close() error {
	f := p.f
	f.of.frontsMu.Lock()
	defer f.of.frontsMu.Unlock()
	f.members = slices.DeleteFunc(f.members, func(o *Member) bool { return o == p.m })
	if len(f.members) > 0 || f.of.fronts[f.key] != f {
		return nil
	}
	delete(f.of.fronts, f.key)
	return f.l.Close()
}

// inTurn returns the members that a connection is offered to, one after the other: those first that
// are ready.
func (f *front) inTurn() []*Member {
	f.of.frontsMu.Lock()
	defer f.of.frontsMu.Unlock()
	var ready, others []*Member
	for _, m := range f.members {
		if m.isReady() {
			ready = append(ready, m)
		} else {
			others = append(others, m)
		}
	}
	f.next++
	return append(from(f.next, ready), from(f.next, others)...)
}

// from returns the members with the n-th, of as many rounds as it takes, as the first.
func from(n uint, members []*Member) []*Member {
	if len(members) == 0 {
		return nil
	}
	n %= uint(len(members))
	return slices.Concat(members[n:], members[:n])
}

// spread passes a connection to one of the members.
func (f *front) spread(conn *net.TCPConn) {
	c := Conn{Published: true, Port: f.port, Address: addrPort(conn.RemoteAddr()), Begin: time.Now()}
	f.offer(conn, c, f.inTurn())
}

// offer passes a connection to the first of the members that takes it, of those whose gateway is
// still there. It does not wait.
func (f *front) offer(conn *net.TCPConn, c Conn, members []*Member) {
	for n, m := range members {
		others := members[n+1:]
		if len(others) == 0 {
			m.limited(m.in, conn, c, m.passIn)
			return
		}
		if m.in.take() != nil {
			continue
		}
		if m.serve(m.in, conn, c, func(conn *net.TCPConn, c *Conn, o *outgoing) {
			near, err := m.dialIn(c.Port)
			if err != nil {
				c.elsewhere = true
				f.offer(conn, Conn{Published: true, Port: c.Port, Address: c.Address, Begin: c.Begin}, others)
				return
			}
			m.relay(near, conn, c, o)
		}) {
			return
		}
	}
	reset(conn) // all have ended since
}
