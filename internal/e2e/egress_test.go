//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("exchange", exchangeHelper)
	testkit.AddHelper("burst", burstHelper)
	testkit.AddHelper("datagrams", datagramsHelper)
}

// exchangeHelper sends a mebibyte to an echo and waits until it is back.
func exchangeHelper(args []string) error {
	conn, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	go func() { _, _ = conn.Write(make([]byte, 1<<20)) }()
	_, err = io.ReadFull(conn, make([]byte, 1<<20))
	return err
}

// burstHelper connects many times, one after the other, and prints how often somebody answered.
func burstHelper(args []string) error {
	n := 0
	for range 100 {
		if strings.HasPrefix(reach(args[0]), "one:") {
			n++
		}
	}
	fmt.Println(n)
	return nil
}

// datagramsHelper sends a few datagrams to each address, over one socket each, and prints what
// comes back from there within a time.
func datagramsHelper(args []string) error {
	wait, err := time.ParseDuration(args[0])
	for _, at := range args[1:] {
		fmt.Println(datagramsTo(at, wait))
	}
	return err
}

func datagramsTo(at string, wait time.Duration) string {
	network, at := runs.Over("udp4", at)
	conn, err := net.Dial(network, at)
	if err != nil {
		return "no: " + err.Error()
	}
	defer conn.Close()
	got := ""
	for _, size := range []int{1, 1000, 60000} {
		if _, err := conn.Write(make([]byte, size)); err != nil {
			return got + "no: " + err.Error()
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(make([]byte, 1<<16))
		if err != nil {
			return got + "no: " + err.Error()
		}
		got += fmt.Sprintf("%d ", n)
	}
	return got
}

// datagramEcho answers datagrams at a port of an address of this machine.
func datagramEcho(t *testing.T, address string) (port int) {
	udp, err := net.ListenPacket("udp", net.JoinHostPort(address, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { udp.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(b[:n], from)
		}
	}()
	return udp.LocalAddr().(*net.UDPAddr).Port
}

// What comes back comes from the address that the run sent to, or its connected socket would not
// take it.
func TestRootlessPrivateDatagrams(t *testing.T) {
	t.Parallel()
	port, other := datagramEcho(t, "127.0.0.1"), datagramEcho(t, "127.0.0.1")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "two.test": "127.0.0.1"})
	var seen observer
	opts := []sandbox.NetworkOption{sandbox.AllowHost("one.test", sandbox.UDP(port), sandbox.TCP(1)), sandbox.AllowHost("two.test", other), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP(port)),
		sandbox.AllowCIDR("192.0.2.1", sandbox.UDP(other, 53)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell)}
	own, ok := ownAddress()
	to := []string{at("one.test", port)}
	if ok {
		byAddress := datagramEcho(t, own.String())
		opts = append(opts, sandbox.AllowCIDR(own.String(), sandbox.UDP(byAddress)))
		to = append(to, at(own.String(), byAddress))
	}
	n := newNetwork(t, opts...)
	sending := func(wait string, to ...string) []string {
		s := runs.Helper("datagrams", append([]string{wait}, to...)...)
		return strings.Split(runs.Output(t, s.With(sandbox.WithNetwork(n.As("client")))), "\n")
	}
	for _, text := range sending("20s", to...) {
		require.Equal(t, "1 1000 60000", strings.TrimSpace(text))
	}
	for i, text := range sending("300ms", at("one.test", other), at("two.test", other), at("one.test", 1)) {
		require.Contains(t, text, []string{"timeout", "timeout", "connection refused"}[i])
	}
	c := seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name != "" && c.Verdict == sandbox.Allowed })
	require.Equal(t, []any{true, "one.test", "one.test", uint16(port), int64(61001), int64(61001)}, []any{c.UDP, c.Name, c.Rule, c.Port, c.Sent, c.Received})
	refused := func(c sandbox.Conn) bool { return c.Name == "two.test" && c.Verdict == sandbox.Refused }
	require.ErrorContains(t, seen.await(t, "two.test", refused).Err, "the port is not listed for the name")
}

// local returns options with which runs reach a port of this machine's loopback as one.test.
func local(t *testing.T, port int) []sandbox.NetworkOption {
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	return []sandbox.NetworkOption{sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver())}
}

// What nobody takes is told, each once.
func TestRootlessPrivateUnlisted(t *testing.T) {
	t.Parallel()
	var seen observer
	n := newNetwork(t, sandbox.AllowHost("one.test", 443), sandbox.AllowCIDR("192.0.2.0/24", sandbox.TCP(443)), sandbox.NetworkObserver(seen.tell))
	client := held(t, sandbox.WithNetwork(n.As("client")))
	to := append(runs.OverEach("tcp", "one.test:80"), "192.0.2.1:80")
	want := []string{"one.test:80 TCP", "one.test:443 UDP", "one.test:0 ping", "192.0.2.1:80 TCP", "192.0.2.1:53 UDP"}
	if runs.HasIPv6() {
		to, want = append(to, "[2001:db8::1]:80"), append(want, "[2001:db8::1]:80 TCP")
	}
	for range 2 {
		for _, got := range reachingIn(t, client, to...) {
			require.Contains(t, got, "connection refused")
		}
		printedIn(t, client, "datagrams", append([]string{"10ms", "192.0.2.1:53"}, runs.OverEach("udp", "one.test:443")...)...)
		printedIn(t, client, "ping-to", append([]string{"10ms"}, runs.OverEach("ip", "one.test")...)...)
	}
	require.NoError(t, n.Close(), "waits until all is told")
	var told []string
	for _, c := range seen.all {
		require.Equal(t, []any{"client", sandbox.Refused, ""}, []any{c.Run, c.Verdict, c.Rule}, "%+v", c)
		require.Error(t, c.Err)
		host, over := c.Name, map[bool]string{true: "UDP", false: "TCP"}[c.UDP]
		if host == "" {
			host = strings.TrimSuffix(c.Address.String(), fmt.Sprint(":", c.Port))
		}
		if c.Ping {
			over = "ping"
		}
		told = append(told, fmt.Sprintf("%s:%d %s", host, c.Port, over))
	}
	require.ElementsMatch(t, want, told)
}

// Both ways at once, for one run and for several together, from the first byte on.
func TestRootlessPrivateBandwidth(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	for _, test := range []struct {
		limit sandbox.NetworkOption
		runs  int
		least time.Duration
	}{
		{sandbox.RunBandwidth(2 << 20), 2, 500 * time.Millisecond},
		{sandbox.Bandwidth(4 << 20), 2, 500 * time.Millisecond},
	} {
		n := newNetwork(t, append(local(t, port), test.limit)...)
		s := runs.Helper("exchange", at("one.test", port)).With(sandbox.WithNetwork(n.As("client")))
		ends := make(chan error)
		begin := time.Now()
		for range test.runs {
			go func() {
				_, err := s.Run(testkit.Deadline(t))
				ends <- err
			}()
		}
		for range test.runs {
			require.NoError(t, <-ends)
		}
		require.Greater(t, time.Since(begin), test.least*9/10)
	}
}

func TestRootlessPrivateNewConns(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	var seen observer
	n := newNetwork(t, append(local(t, port), sandbox.MaxNewConns(2), sandbox.NetworkObserver(seen.tell))...)
	begin := time.Now()
	var got int
	_, err := fmt.Sscan(runs.Output(t, runs.Helper("burst", at("one.test", port)).With(sandbox.WithNetwork(n.As("client")))), &got)
	require.NoError(t, err)
	require.GreaterOrEqual(t, got, 2)
	require.LessOrEqual(t, got, 3+int(2*time.Since(begin).Seconds()))
	require.ErrorContains(t, seen.await(t, "the others", func(c sandbox.Conn) bool { return c.Verdict == sandbox.Refused }).Err, "MaxNewConns")
}

// More ports than there may be listeners, of all kinds of destinations; what runs send each other
// stays theirs.
func TestRootlessPrivateAllPorts(t *testing.T) {
	testkit.Need(t, "nft_tproxy")
	t.Parallel()
	one, two := echoServer(t, "127.0.0.1", "one"), echoServer(t, "127.0.0.1", "two")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "some.test": "127.0.0.1"})
	first := min(one, 65535-300)
	last := first + 300
	n := newNetwork(t, sandbox.AllowHost("one.test", sandbox.TCP()), sandbox.AllowHost("some.test", sandbox.TCPRange(first, last)), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP()), sandbox.NetworkResolver(zone.Resolver()))
	web := listening(t, "web", "0.0.0.0:80", sandbox.WithNetwork(n.As("web")), sandbox.WithPublish("127.0.0.1:0", 80))
	require.Equal(t, "web: hello", reach(web.Published()[0].String()))
	got := reaching(t, n, "client", at("one.test", one), at("one.test", two), at("some.test", one), "web:80", "web:81", "198.18.0.1:80", at("some.test", last+1), "8.8.8.8:80")
	require.Equal(t, []string{"one: hello", "two: hello", "one: hello", "web: hello"}, got[:4])
	for i, text := range got[4:] {
		require.Regexp(t, []string{"refused", "refused", "reset|EOF", "reset|EOF"}[i], text)
	}
	if runs.HasIPv6() {
		require.Equal(t, []string{"one: hello", "web: hello"}, reaching(t, n, "client", at("tcp6/one.test", one), "tcp6/web:80"))
	}
	some := newNetwork(t, sandbox.AllowHost("some.test", sandbox.TCPRange(first, last)), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP()), sandbox.NetworkResolver(zone.Resolver()))
	require.Equal(t, "one: hello", reaching(t, some, "client", at("some.test", one))[0])

	_, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", sandbox.UDP(), sandbox.TCPRange(2, 1)))
	require.ErrorContains(t, err, "2 to 1: the first port comes first")
}

// The same of UDP: answers come from the port and the address that were asked.
func TestRootlessPrivateAllDatagrams(t *testing.T) {
	testkit.Need(t, "nft_tproxy")
	t.Parallel()
	one, two := datagramEcho(t, "127.0.0.1"), datagramEcho(t, "127.0.0.1")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "single.test": "127.0.0.1"})
	var seen observer
	n := newNetwork(t, sandbox.AllowHost("one.test", sandbox.UDP()), sandbox.AllowHost("single.test", sandbox.UDP(one)), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP()), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	r, w := io.Pipe()
	runs.Start(t, runs.Helper("listen-udp", "dns", ":53").With(sandbox.WithNetwork(n.As("dns")), sandbox.WithStdout(w)))
	_, err := io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	client := held(t, sandbox.WithNetwork(n.As("client")))
	to := []string{at("one.test", one), at("one.test", two), at("single.test", one)}
	if runs.HasIPv6() {
		to = append(to, at("udp6/one.test", one))
	}
	for i, got := range printedIn(t, client, "datagrams", append([]string{"20s"}, to...)...) {
		require.Equal(t, "1 1000 60000 ", got, to[i])
	}
	require.Equal(t, "12 110 110 ", printedIn(t, client, "datagrams", "20s", "dns:53")[0], "what runs send each other is theirs")
	for _, got := range printedIn(t, client, "datagrams", "300ms", at("single.test", two), at("8.8.8.8", two)) {
		require.Contains(t, got, "timeout")
	}
	c := seen.await(t, "the port", func(c sandbox.Conn) bool { return c.Name == "single.test" && c.Verdict == sandbox.Refused })
	require.Equal(t, uint16(two), c.Port)
	require.Contains(t, reaching(t, n, "client", at("one.test", one))[0], "refused", "TCP is not listed")
}
