package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/spec"
)

// Member is a run's place on a network.
type Member struct {
	gateway *gateway
	name    string
	known   []string // the names by which others find it
	own     string   // the name that it has itself, found by no others
	reach   *reach   // nil if it is not limited
	index   int
	address netip.Addr
	ns      namespace
	names   names
	out, in *share
	pings   *bucket
	peers   *peers       // that send to what is published of UDP
	ready   *atomic.Bool // nil if it is ready at once
	ctx     context.Context
	leave   context.CancelFunc

	// What passes, each way.
	sent, received limits

	sending atomic.Int32 // connections over which the run may still send
	crowded atomic.Bool  // that there are too many is being told

	flowsMu sync.Mutex
	flows   map[ends]*flow

	mu        sync.Mutex
	listeners []io.Closer // for what is published
}

// take returns a new member: the one that was made ahead, if there is one.
func (g *gateway) take(place *spec.Member, hostname string) (m *Member, err error) {
	m, err = g.takeAhead()
	if err != nil {
		return nil, err
	}
	defer g.busy.Done()
	if m == nil {
		if m, err = g.join(); err != nil {
			return nil, err
		}
	}
	g.roster.name(m, place, hostname)
	if names, limited := place.Limits(); limited {
		m.reach = &reach{names: names}
	}
	if err := g.roster.admit(m); err != nil {
		m.disconnect()
		return nil, err
	}
	return m, nil
}

// takeAhead returns the member that was made ahead, or nil. The gateway is not closed before
// busy.Done is called, so that all who are on the network are known by then.
func (g *gateway) takeAhead() (m *Member, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.closed:
	case !g.cell.Alive():
		return nil, g.cell.Lost()
	default:
		return nil, errClosed()
	}
	g.busy.Add(1)
	m, g.ahead = g.ahead, nil
	g.joins++
	return m, nil
}

// makeAhead makes a member for the next run, from a network's second run on. It takes some of what
// the start of a run takes too, so it waits until that is over.
func (g *gateway) makeAhead() {
	g.mu.Lock()
	more := g.joins > 1 && g.ahead == nil && !g.making
	g.making = g.making || more
	g.mu.Unlock()
	if !more {
		return
	}
	g.begin(func() {
		m, err := g.join()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.making = false; err == nil {
			g.ahead = m
		}
	})
}

// join makes a member, with its namespace and its way to the gateway.
func (g *gateway) join() (_ *Member, err error) {
	m := &Member{gateway: g, names: names{hasIPv6: g.noIPv6 == nil}, out: newShare(g.config), in: newShare(g.config), peers: newPeers(g.config), pings: newBucket(pingRate, time.Second)}
	m.names.inUse = m.flowing
	m.sent = append(newLimits(g.config.RunBandwidth), g.roster.sent.forRun()...)
	m.received = append(newLimits(g.config.RunBandwidth), g.roster.received.forRun()...)
	m.ctx, m.leave = context.WithCancel(g.ctx)
	if err := g.roster.add(m); err != nil {
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

// ReadyWhen has what is for all of the member's name go to others, if there are such, until ready
// is set. It is called before Publish and Announce.
func (m *Member) ReadyWhen(ready *atomic.Bool) { m.ready = ready }

func (m *Member) isReady() bool { return m.ready == nil || m.ready.Load() }

// Announce lets others find the member by its name, as its run is about to begin.
func (m *Member) Announce() {
	m.gateway.roster.announce(m)
	m.gateway.makeAhead()
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
	m.gateway.roster.hide(m)
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
// passed on, or told of.
func (m *Member) Leave() {
	m.awaitSent()
	m.gateway.unlisted.drain()
	m.disconnect()
}

// lingering is how long the kernel has to remove an interface whose namespace has ended.
const lingering = time.Second

// disconnect takes the interface down, after which nothing gets through, and leaves its removal to
// the kernel: that waits for several grace periods of RCU, and removes what is gone meanwhile at
// once. The address is free when the interface is known to be gone, as a namespace does not end
// while somebody has a descriptor of it.
func (m *Member) disconnect() {
	m.leave()
	g := m.gateway
	g.roster.dismiss(m)
	m.ns.close()
	if !g.begin(func() {
		var x batch
		x.remove(m.link())
		for {
			select {
			case <-time.After(lingering):
			case <-g.ctx.Done():
				return // with the gateway's namespace all of its interfaces go
			}
			// Most often it is gone. Else the kernel is asked again.
			if err := g.change(&x); err == nil || errors.Is(err, unix.ENODEV) {
				g.roster.remove(m)
				return
			}
		}
	}) {
		g.roster.remove(m)
	}
}

// member returns the gateway's own that has an address, or nil.
func (g *gateway) member(a netip.Addr) *Member {
	if m := g.roster.member(a); m != nil && m.gateway == g {
		return m
	}
	return nil
}

// addresses returns those of the member.
func (m *Member) addresses() []netip.Addr {
	if m.gateway.noIPv6 != nil {
		return []netip.Addr{m.address}
	}
	return []netip.Addr{m.address, in6(m.address)}
}
