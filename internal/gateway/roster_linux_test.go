package gateway

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// named returns a member of a name and an alias, which is not announced.
func named(r *roster, name, alias string) *Member {
	m := new(Member)
	r.name(m, &spec.Member{Name: name, Aliases: alias + ","}, "")
	return m
}

// The address that a run has for a name leads outside by no pattern once that is a run's own, by
// whatever rule and whenever the resolver gave it.
func TestOwnWhenConnecting(t *testing.T) {
	r := newRoster(&Config{})
	m := standIn(t, r)
	config := m.gateway.config
	config.AllowHost("*", Ports{TCP: Spans(443)})
	config.AllowHost("db.example.org", Ports{TCP: Spans(5432)})
	m.gateway.rules[overTCP] = config.of(overTCP)
	mayReach := func(name string, port uint16) bool {
		a, ok := m.names.addressOf(name)
		require.True(t, ok)
		_, err := m.target(netip.AddrPortFrom(a, port), &Conn{})
		return err == nil
	}
	require.True(t, mayReach("db.example.org", 443), "no run has it")
	db := named(r, "db", "db.example.org")
	r.announce(db)
	for _, when := range []string{"up", "down"} {
		require.False(t, mayReach("db.example.org", 443), when)
		require.True(t, mayReach("db.example.org", 5432), when)
		require.True(t, mayReach("www.example.org", 443), when)
		r.hide(db)
	}
	require.False(t, mayReach("wiki.internal", 443))
	require.True(t, mayReach("wiki.corp.internal", 443))
}

// Names with a dot stay the network's own after their runs, the latest of them, and are so only if
// a run could be found by them.
func TestPastNames(t *testing.T) {
	r := newRoster(&Config{})
	never, up := named(r, "never", "never.example"), named(r, "up", "up.example")
	r.hide(never)
	require.False(t, r.isOwn("never.example"))
	r.announce(up)
	for i := range maxPast + 1 {
		m := named(r, "x", fmt.Sprintf("x%d.example", i))
		r.announce(m)
		r.hide(m)
	}
	require.False(t, r.isOwn("x0.example"), "too many others had their ends since")
	require.True(t, r.isOwn("x1.example"))
	require.True(t, r.isOwn("up.example"), "a run has it")
	r.hide(up)
	require.True(t, r.isOwn("up.example"))
	require.False(t, r.isOwn("x1.example"))
	require.Len(t, r.past, maxPast)
}
