//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("look-up", func(args []string) error {
		found, err := net.ResolveIPAddr("ip6", args[0])
		fmt.Println(found)
		return err
	})
}

// ownAddress6 returns an address of IPv6 that this machine has on a link, if it has one.
func ownAddress6() (netip.Addr, bool) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsGlobalUnicast() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func TestRootlessPrivateIPv6(t *testing.T) {
	testkit.Need(t, "IPv6")
	t.Parallel()
	port, datagrams := echoServer(t, "::1", "one"), datagramEcho(t, "::1")
	own, ok := ownAddress6()
	zone := testkit.NewZone(t, map[string]string{"one.test": "::1"})
	var seen observer
	opts := []sandbox.NetworkOption{sandbox.AllowHost("one.test", sandbox.TCP(port, 53), sandbox.UDP(datagrams)), sandbox.AllowCIDR("::1", sandbox.TCP(port), sandbox.UDP(datagrams)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell)}
	// Of the machine's address this prefix has only what is named by itself.
	opts = append(opts, sandbox.AllowCIDR("fd00::/8", sandbox.TCP(port)))
	to := []string{at("one.test", port), at("tcp4/one.test", port), at("tcp6/one.test", port), at("tcp6/[2001:4860:4860::8888]", port), at("tcp6/[fe80::1%eth0]", port), "tcp6/one.test:9"}
	if ok {
		byAddress := echoServer(t, own.String(), "own")
		opts = append(opts, sandbox.AllowCIDR(own.String(), sandbox.TCP(byAddress)))
		to = append(to, netip.AddrPortFrom(own, uint16(byAddress)).String(), netip.AddrPortFrom(own, uint16(port)).String())
	}
	n := newNetwork(t, opts...)
	got := reaching(t, n, "client", to...)
	for i := range 3 {
		require.Equal(t, "one: hello", got[i], to[i])
	}
	require.Regexp(t, "reset|EOF", got[3], "an address that is not listed")
	require.Regexp(t, "reset|EOF", got[4], "the gateway's own")
	require.Contains(t, got[5], "connection refused", "a port that is not listed")
	if ok {
		require.Equal(t, "own: hello", got[6])
		require.Regexp(t, "reset|EOF", got[7])
		require.Equal(t, own.String()+"/128", seen.await(t, "own", func(c sandbox.Conn) bool { return c.Address.Addr() == own && c.Verdict == sandbox.Allowed }).Rule)
	}
	require.Equal(t, sandbox.Refused, seen.await(t, "unlisted", func(c sandbox.Conn) bool { return c.Address.Addr() == netip.MustParseAddr("2001:4860:4860::8888") }).Verdict)
	on := sandbox.WithNetwork(n.As("client"))
	for _, network := range []string{"udp4/", "udp6/"} {
		require.Equal(t, "1 1000 60000", strings.TrimSpace(runs.Output(t, runs.Helper("datagrams", "20s", at(network+"one.test", datagrams)).With(on))))
	}
}

// Runs find and reach each other, and are published, if they listen at IPv6 alone.
func TestRootlessServicesIPv6(t *testing.T) {
	testkit.Need(t, "IPv6")
	t.Parallel()
	n := newNetwork(t)
	on := func(name string, reaches ...string) sandbox.Option {
		return sandbox.WithNetwork(n.As(name, sandbox.Reaches(reaches...)))
	}
	db := listening(t, "db", "tcp6/[::]:80", on("db"), sandbox.WithPublish("127.0.0.1:0", 80), sandbox.WithPublish("[::1]:0", 80))
	for _, p := range db.Published() {
		require.Equal(t, "db: hello", reach(p.String()))
	}
	listening(t, "other", "[::]:80", on("other"))
	free := held(t, sandbox.WithNetwork(n.As("free")))
	require.Equal(t, []string{"db: hello", "db: hello", "other: hello", "other: hello"}, reachingIn(t, free, "db:80", "tcp6/db.internal:80", "tcp4/other:80", "tcp6/other:80"))
	web := held(t, on("web", "db"))
	other6 := printedIn(t, free, "look-up", "other")[0]
	got := reachingIn(t, web, "tcp6/db:80", "tcp6/other:80", "tcp6/["+other6+"]:80")
	require.Equal(t, "db: hello", got[0])
	require.Contains(t, got[1], "no such host")
	require.Regexp(t, "permission denied|no route to host", got[2])
}
