//go:build linux

package attack

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// public is a server at an address that may be reached, and returns its port.
func public(t *testing.T, address, text string) int {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			fmt.Fprint(conn, text)
			conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// verdicts counts the connections that an observer is called for, by verdict.
type verdicts struct {
	mu    sync.Mutex
	count map[sandbox.Verdict]int
}

func (v *verdicts) tell(c sandbox.Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.count == nil {
		v.count = map[sandbox.Verdict]int{}
	}
	if c.Port != 0 {
		v.count[c.Verdict]++
	}
}

// A name whose addresses change with each question, between one that may be reached and one that
// may not: whoever asks, checks, and asks again when it connects, is led to the other.
func TestAttackRootlessPrivateRebinding(t *testing.T) {
	for _, local := range testkit.Loopbacks() {
		t.Run(local, func(t *testing.T) { rebind(t, local) })
	}
}

func rebind(t *testing.T, local string) {
	port := public(t, local, "public")
	var behind guarded
	require.Equal(t, port, behind.serve(t, fmt.Sprintf("127.0.0.2:%d", port)))
	zone := testkit.NewZone(t, nil)
	const name = "turning.test"
	if local == "127.0.0.1" {
		zone.Turn(name, local, "127.0.0.2")
	} else {
		zone.Turn(name, local, "::ffff:127.0.0.2")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	checked, err := zone.Resolver().LookupHost(ctx, name)
	require.NoError(t, err)
	require.Equal(t, []string{local}, checked)
	conn, err := (&net.Dialer{Resolver: zone.Resolver()}).DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", name, port))
	require.NoError(t, err)
	conn.Close()
	testkit.Eventually(t, "the control reaches it", func() bool {
		behind.mu.Lock()
		defer behind.mu.Unlock()
		return len(behind.had) > 0
	})
	behind.mu.Lock()
	behind.had = nil
	behind.mu.Unlock()

	var seen verdicts
	n, err := sandbox.NewNetwork(sandbox.AllowHost(name, port), sandbox.AllowCIDR(local, sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	require.NoError(t, err)
	defer n.Close()
	to := slices.Repeat(runs.OverEach("tcp", fmt.Sprintf("%s:%d", name, port)), 20)
	out := runs.Output(t, runs.Helper("private-fetch", to...).With(sandbox.WithNetwork(n.As("attacker"))))
	require.NotContains(t, out, "secret")
	require.Contains(t, out, "public")
	require.NoError(t, n.Close())
	require.Positive(t, seen.count[sandbox.Refused], "both addresses were found: %v", seen.count)
	require.Positive(t, seen.count[sandbox.Allowed])
	require.Empty(t, behind.had)
}

// A listed name that is an alias (CNAME) leads to what may be reached of the other name's addresses
// alone, and makes that name none that is listed.
func TestAttackRootlessPrivateAlias(t *testing.T) {
	port := public(t, "127.0.0.1", "public")
	var behind guarded
	require.Equal(t, port, behind.serve(t, fmt.Sprintf("127.0.0.2:%d", port)))
	zone := testkit.NewZone(t, map[string]string{"metadata.internal": "127.0.0.2", "other.test": "127.0.0.1"})
	zone.Alias("inner.evil.test", "metadata.internal")
	zone.Alias("outer.evil.test", "other.test")
	found, err := zone.Resolver().LookupHost(testkit.Deadline(t), "inner.evil.test")
	require.NoError(t, err)
	require.Equal(t, []string{"127.0.0.2"}, found, "the control")
	n, err := sandbox.NewNetwork(sandbox.AllowHost("*.evil.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()))
	require.NoError(t, err)
	defer n.Close()
	at := func(name string) string { return fmt.Sprintf("%s:%d", name, port) }
	to := []string{at("outer.evil.test"), at("inner.evil.test"), at("metadata.internal"), at("other.test")}
	// The connection that is reset may be so before or after the run knows that it has one.
	want := "public\n(nothing)?\nnothing\nnothing"
	if runs.HasIPv6() {
		to, want = append(to, at("tcp6/outer.evil.test"), at("tcp6/inner.evil.test"), at("tcp6/other.test")), want+"\npublic\n(nothing)?\nnothing"
	}
	require.Regexp(t, "^"+want+"$", runs.Output(t, runs.Helper("private-fetch", to...).With(sandbox.WithNetwork(n.As("attacker")))))
	require.Empty(t, behind.had)
}
