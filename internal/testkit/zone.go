//go:build linux

package testkit

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// Zone is a name server on this machine's loopback, with names that nobody else knows.
type Zone struct {
	at string

	mu      sync.Mutex
	names   map[string][]netip.Addr
	aliases map[string]string
	turning map[string]int // how often an address was asked for, of names whose addresses take turns
	asked   []string
}

// NewZone returns a zone with an address for each name, until the end of the test.
func NewZone(t testing.TB, names map[string]string) *Zone {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { udp.Close() })
	z := &Zone{at: udp.LocalAddr().String(), names: map[string][]netip.Addr{}, aliases: map[string]string{}, turning: map[string]int{}}
	for name, address := range names {
		z.Set(name, address)
	}
	go z.serve(udp)
	return z
}

// Set changes the addresses of a name.
func (z *Zone) Set(name string, addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = nil
	for _, a := range addresses {
		z.names[name] = append(z.names[name], netip.MustParseAddr(a))
	}
}

// Turn has each question for a name answered by the next of its addresses, which are all of IPv4 or
// all of IPv6.
func (z *Zone) Turn(name string, addresses ...string) {
	z.Set(name, addresses...)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.turning[name] = 0
}

// Alias makes a name one for another, by CNAME.
func (z *Zone) Alias(name, of string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.aliases[name] = of
}

// Asked returns the names that were asked for, each once, sorted.
func (z *Zone) Asked() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	list := slices.Clone(z.asked)
	slices.Sort(list)
	return slices.Compact(list)
}

// Forget empties what Asked returns.
func (z *Zone) Forget() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = nil
}

// Address returns where the zone is asked.
func (z *Zone) Address() string { return z.at }

// Resolver returns a resolver that asks the zone.
func (z *Zone) Resolver() *net.Resolver { return ResolverAt(z.at) }

// ResolverAt returns a resolver that asks the zone of another process.
func ResolverAt(address string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", address)
	}}
}

func (z *Zone) serve(udp net.PacketConn) {
	b := make([]byte, 512)
	for {
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		z.answer(&m)
		if reply, err := m.Pack(); err == nil {
			_, _ = udp.WriteTo(reply, from)
		}
	}
}

func (z *Zone) answer(m *dnsmessage.Message) {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	z.asked = append(z.asked, name)
	m.Response, m.Additionals = true, nil
	if of, is := z.aliases[name]; is {
		to := dnsmessage.MustNewName(of + ".")
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeCNAME, Class: q.Class, TTL: 1}, Body: &dnsmessage.CNAMEResource{CNAME: to}})
		name, q.Name = of, to
	}
	if z.names[name] == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
	addresses := z.names[name]
	if n, turns := z.turning[name]; turns && addresses[0].Is4() == (q.Type == dnsmessage.TypeA) {
		addresses = addresses[n%len(addresses):][:1]
		z.turning[name]++
	}
	for _, a := range addresses {
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
}
