package gateway

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cellkit/sandbox/internal/spec"
)

// roster is who is on a network, whichever cell the run is of.
type roster struct {
	sent, received limits // of all runs

	mu      sync.Mutex
	members map[netip.Addr]*Member
	named   map[string][]*Member // those that can be found
	past    map[string]int       // names with a dot that no run has any more, by order of their ends
	ends    int                  // how many of these there were
	last    int                  // index of the latest member

	// reachMu is held while it is decided who reaches whom, and set.
	reachMu  sync.Mutex
	admitted []*Member
	gateways []*gateway // of each cell one

	frontsMu sync.Mutex
	fronts   map[frontKey]*front
}

func newRoster(config *Config) *roster {
	return &roster{sent: newLimits(config.Bandwidth), received: newLimits(config.Bandwidth), members: map[netip.Addr]*Member{}, named: map[string][]*Member{}, past: map[string]int{}, fronts: map[frontKey]*front{}, last: firstRun - 1}
}

// add makes m a member, with an address that no other has.
func (r *roster) add(m *Member) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.members) == maxRuns {
		return errors.New("no address is left: too many runs are on the network")
	}
	for {
		r.last++
		if r.last == firstRun+maxRuns {
			r.last = firstRun
		}
		m.index, m.address = r.last, nth(runRange, r.last)
		if r.members[m.address] == nil {
			r.members[m.address] = m
			return nil
		}
	}
}

// remove takes the address of a member away.
func (r *roster) remove(m *Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members[m.address] == m {
		delete(r.members, m.address)
	}
}

// member returns the one that has an address, or nil.
func (r *roster) member(a netip.Addr) *Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members[in4(a)]
}

// of returns the members of a gateway.
func (r *roster) of(g *gateway) (list []*Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.members {
		if m.gateway == g {
			list = append(list, m)
		}
	}
	return list
}

// name gives a member its names. Others may ask for that of its address already (nameOf).
func (r *roster) name(m *Member, place *spec.Member, hostname string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m.name, m.known, m.own = place.Name, nil, strings.TrimSuffix(canonical(hostname), internal)
	for _, name := range place.Names() {
		if name = strings.TrimSuffix(name, internal); !slices.Contains(m.known, name) {
			m.known = append(m.known, name)
		}
	}
}

// announce lets others find a member by its names.
func (r *roster) announce(m *Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range m.known {
		r.named[name] = append(r.named[name], m)
		delete(r.past, name)
	}
}

// hide is the opposite of announce.
func (r *roster) hide(m *Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range m.known {
		had := len(r.named[name]) > 0
		rest := slices.DeleteFunc(r.named[name], func(o *Member) bool { return o == m })
		if r.named[name] = rest; len(rest) == 0 {
			delete(r.named, name)
			if had && strings.Contains(name, ".") {
				r.remember(name)
			}
		}
	}
}

// maxPast is how many names that no run has any more are remembered.
const maxPast = 4096

// remember has a name stay the network's own. If there are too many, it takes the place of the one
// whose last run ended first.
func (r *roster) remember(name string) {
	r.ends++
	r.past[name] = r.ends
	if len(r.past) <= maxPast {
		return
	}
	first, end := name, r.ends
	for other, n := range r.past {
		if n < end {
			first, end = other, n
		}
	}
	delete(r.past, first)
}

// isOwn reports whether a name is one of the network's own, as those are that As gives, also with
// .internal after it: whoever has it may be down, or be yet to come.
func (r *roster) isOwn(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.has(strings.TrimSuffix(name, internal))
}

// has is isOwn for a name without .internal. r.mu must be held.
func (r *roster) has(name string) bool {
	return !strings.Contains(name, ".") || len(r.named[name]) > 0 || r.past[name] > 0
}

// reachable returns the addresses of the members of a name that m may reach, in any order: of those
// that are ready, if there are any. The name that m has itself leads to m first, as it may bind
// that, unless it is another's alone. It reports whether the name is one of the network's own.
func (m *Member) reachable(name string) (list []netip.Addr, own bool) {
	r := m.gateway.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	var others []netip.Addr
	for _, o := range r.named[name] {
		switch {
		case !m.mayOpen(o):
		case o.isReady():
			list = append(list, o.address)
		default:
			others = append(others, o.address)
		}
	}
	if len(list) == 0 {
		list = others
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if name == m.own && (len(list) == 0 || slices.Contains(m.known, name)) {
		list = slices.DeleteFunc(list, func(a netip.Addr) bool { return a == m.address })
		list = slices.Insert(list, 0, m.address)
	}
	return list, r.has(name)
}

// nameOf returns the name of the member that has an address, if m may find it by that, or is it;
// else "".
func (m *Member) nameOf(a netip.Addr) string {
	r := m.gateway.roster
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.members[a]
	if o == nil || !m.mayOpen(o) {
		return ""
	}
	for _, name := range o.known {
		if slices.Contains(r.named[name], o) {
			return name
		}
	}
	if o == m {
		return m.own
	}
	return ""
}

// enter adds the gateway of a further cell. From the second on they are connected by cables.
func (r *roster) enter(g *gateway) error {
	r.reachMu.Lock()
	defer r.reachMu.Unlock()
	if len(r.gateways) > 0 {
		for _, o := range append(r.gateways, g) {
			if err := o.addCable(); err != nil {
				return err
			}
		}
		x := changes{}
		for _, m := range r.admitted {
			x.routesTo(m, g)
		}
		if err := x.make(); err != nil {
			return err
		}
	}
	r.gateways = append(r.gateways, g)
	return nil
}

// leave removes a gateway that is closed, and all who are still there. Runs that go on have no
// interface any more when it returns.
func (r *roster) leave(g *gateway) {
	var x batch
	for _, m := range r.of(g) {
		m.Retire()
		r.dismiss(m)
		x.remove(m.link())
		r.remove(m)
	}
	_ = g.change(&x) // some are gone already
	r.reachMu.Lock()
	defer r.reachMu.Unlock()
	r.gateways = slices.DeleteFunc(r.gateways, func(o *gateway) bool { return o == g })
}
