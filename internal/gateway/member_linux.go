package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellkit/sandbox/internal/spec"
)

// Member is a run's place on a network.
type Member struct {
	gateway *gateway
	name    string
	reach   *reach // nil if it is not limited
	index   int
	address netip.Addr
	ns      namespace
	names   names
	out, in *share
	pings   *bucket
	peers   *share // that send to what is published of UDP
	ctx     context.Context
	leave   context.CancelFunc
	retired bool // by the gateway's mu

	// What passes, each way.
	sent, received buckets

	sending atomic.Int32 // connections over which the run may still send
	crowded atomic.Bool  // that there are too many is being told

	flowsMu sync.Mutex
	flows   map[ends]*flow

	mu        sync.Mutex
	listeners []io.Closer // for what is published
}

// take returns a new member: the one that was made ahead, if there is one. From the second on, one
// is made for the next run.
func (g *gateway) take(place *spec.Member) (m *Member, err error) {
	g.mu.Lock()
	m, g.ahead = g.ahead, nil
	g.joins++
	more := g.joins > 1 && !g.making
	g.making = g.making || more
	g.mu.Unlock()
	if more {
		g.begin(g.makeAhead)
	}
	if m == nil {
		if m, err = g.join(); err != nil {
			return nil, err
		}
	}
	m.name = place.Name
	if names, limited := place.Limits(); limited {
		m.reach = &reach{names: names}
	}
	if err := g.admit(m); err != nil {
		m.disconnect()
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active++
	return m, nil
}

func (g *gateway) makeAhead() {
	m, err := g.join()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.making = false; err == nil {
		g.ahead = m
	}
}

// join makes a member, with its namespace and its way to the gateway.
func (g *gateway) join() (_ *Member, err error) {
	m := &Member{gateway: g, names: names{hasIPv6: g.noIPv6 == nil}, out: newShare(g.config), in: newShare(g.config), peers: newShare(g.config), pings: newBucket(pingRate, time.Second)}
	m.sent = append(newBuckets(g.config.RunBandwidth), g.sent...)
	m.received = append(newBuckets(g.config.RunBandwidth), g.received...)
	m.ctx, m.leave = context.WithCancel(g.ctx)
	if err := g.add(m); err != nil {
		m.leave()
		return nil, err
	}
	defer func() {
		if err != nil {
			m.disconnect()
		}
	}()
	if m.ns, err = newNamespace(g.cell, setUpMember(g.cell)); err != nil {
		return nil, fmt.Errorf("the run's network namespace: %w", err)
	}
	if err := g.connect(m); err != nil {
		return nil, fmt.Errorf("the way to the gateway: %w", err)
	}
	return m, nil
}

// Namespace returns the member's network namespace.
func (m *Member) Namespace() *os.File { return m.ns.file }

// Err returns an error if the network was taken away from the member.
func (m *Member) Err() error {
	if m.ctx.Err() != nil {
		return errClosed()
	}
	return nil
}

// Announce lets others find the member by its name.
func (m *Member) Announce() {
	g := m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	g.named[m.name] = append(g.named[m.name], m)
}

// Retire is for a run that has ended: it can't be found any more, and lets go of the addresses at
// which it was published.
func (m *Member) Retire() {
	m.mu.Lock()
	for _, l := range m.listeners {
		l.Close()
	}
	m.listeners = nil
	m.mu.Unlock()
	g := m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	if !m.retired {
		m.retired = true
		g.active--
	}
	rest := slices.DeleteFunc(g.named[m.name], func(o *Member) bool { return o == m })
	if g.named[m.name] = rest; len(rest) == 0 {
		delete(g.named, m.name)
	}
}

// drain is how long what a run sent before its end may take to be passed on.
const drain = time.Second

// awaitSent waits until what the run has sent is passed on, but not long. It looks twice, as a
// connection may be on its way from the listener to those that are counted.
func (m *Member) awaitSent() {
	quiet := 0
	for end := time.Now().Add(drain); quiet < 2 && time.Now().Before(end) && m.ctx.Err() == nil; {
		if quiet++; m.sending.Load() > 0 || m.gateway.hasWaiting() {
			quiet = 0
		}
		time.Sleep(drain / 200)
	}
}

// Leave takes the connections and the interface of a retired member away, once what it has sent is
// passed on.
func (m *Member) Leave() {
	m.awaitSent()
	m.disconnect()
}

func (m *Member) disconnect() {
	m.leave()
	g := m.gateway
	g.dismiss(m)
	m.ns.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.members, m.address)
}

// add makes m a member, with an address that no other has.
func (g *gateway) add(m *Member) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.members) == maxRuns {
		return errors.New("no address is left: too many runs are on the network")
	}
	for {
		g.last++
		if g.last == firstRun+maxRuns {
			g.last = firstRun
		}
		m.index, m.address = g.last, nth(runRange, g.last)
		if g.members[m.address] == nil {
			g.members[m.address] = m
			return nil
		}
	}
}

// isEmpty reports whether no run is on the network, except for those that have ended.
func (g *gateway) isEmpty() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active == 0
}

// member returns the one that has an address, or nil.
func (g *gateway) member(a netip.Addr) *Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[in4(a)]
}

// addresses returns those of the member.
func (m *Member) addresses() []netip.Addr {
	if m.gateway.noIPv6 != nil {
		return []netip.Addr{m.address}
	}
	return []netip.Addr{m.address, in6(m.address)}
}

// reachable returns the addresses of the members of a name that m may reach, in any order.
func (m *Member) reachable(name string) (list []netip.Addr) {
	g := m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range g.named[name] {
		if m.mayOpen(o) {
			list = append(list, o.address)
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}
