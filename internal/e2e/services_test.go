//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("address", addressHelper)
	testkit.AddHelper("listen-udp", listenUDPHelper)
}

// Each run has a network of its own, whose description is used many times at once.
func TestRootlessPrivateAlone(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	var seen observer
	alone := sandbox.Private(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	web := listening(t, "web", "0.0.0.0:80", sandbox.WithNetwork(alone), sandbox.WithPublish("127.0.0.1:0", 80))
	require.Equal(t, "web: hello", reach(web.Published()[0].String()))
	got := runs.Output(t, runs.Helper("reach", at("one.test", port), "198.18.0.2:80", "198.18.0.3:80").With(sandbox.WithNetwork(alone)))
	require.Regexp(t, `^one: hello\nno: .* refused\nno: .* refused$`, got, "the other has the same address, on a network of its own")
	require.Equal(t, "run", seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name == "one.test" }).Run)

	s := runs.Prepared(t, 2, append(runs.HelperOptions(), sandbox.WithNetwork(alone))...)
	for range 3 {
		require.NoError(t, s.Prepare(testkit.Deadline(t)))
		r, w := io.Pipe()
		p := runs.StartPrepared(t, runs.HelperOf(s, "listen", "web", "0.0.0.0:80").With(sandbox.WithStdout(w), sandbox.WithPublish("127.0.0.1:0", 80)))
		_, err := io.ReadFull(r, make([]byte, 10))
		require.NoError(t, err)
		require.Equal(t, "web: hello", reach(p.Published()[0].String()))
	}
	_, err := work.Call(testkit.Deadline(t), job{Do: "see", Text: "tcp:198.18.0.1:53"}, sandbox.WithNetwork(alone))
	require.NoError(t, err, "functions are runs")

	_, err = runs.Shell("", sandbox.WithNetwork(sandbox.Private(sandbox.AllowHost("127.0.0.1", 80), sandbox.MaxConns(0)))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "sandbox: AllowHost: ")
	require.ErrorContains(t, err, "sandbox: MaxConns: ")
}

// held starts a run without a command of its own, in which others can be executed.
func held(t *testing.T, opts ...sandbox.Option) *sandbox.Process {
	t.Helper()
	return runs.Start(t, sandbox.New(append(runs.HelperOptions(), sandbox.WithHold())...).With(opts...))
}

// reachingIn returns what a live run gets from each address.
func reachingIn(t *testing.T, p *sandbox.Process, to ...string) []string {
	t.Helper()
	return printedIn(t, p, "reach", to...)
}

// addressOf returns the address of a live run, with a port.
func addressOf(t *testing.T, p *sandbox.Process, port int) string {
	t.Helper()
	return at(printedIn(t, p, "address")[0], port)
}

func addressHelper([]string) error {
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	own, err := eth0.Addrs()
	fmt.Println(own[0].(*net.IPNet).IP)
	return err
}

// printedIn returns the lines that a helper prints in a live run.
func printedIn(t *testing.T, p *sandbox.Process, helper string, args ...string) []string {
	t.Helper()
	var out bytes.Buffer
	x, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("/helper", testkit.HelperArgs(helper, args...)...), sandbox.WithEnv(testkit.HelperEnv), sandbox.WithStdout(&out))
	require.NoError(t, err)
	_, err = x.Wait()
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// A run with Reaches opens connections to those that it names, whenever they come, and answers all
// that may open connections to it. Whom it does not find is not looked for outside.
func TestRootlessReaches(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n := newNetwork(t, sandbox.AllowHost("*", 80, port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()))
	on := func(name string, reaches ...string) sandbox.Option {
		return sandbox.WithNetwork(n.As(name, sandbox.Reaches(reaches...)))
	}
	free := held(t, sandbox.WithNetwork(n.As("client")))
	web := held(t, on("web", "db"))
	other := addressOf(t, listening(t, "web", "0.0.0.0:80", on("web", "db")), 80)
	db := listening(t, "db", "0.0.0.0:80", on("db"))
	require.Equal(t, []string{"db: hello", "web: hello"}, reachingIn(t, free, "db:80", other), "they answer")
	for _, p := range []*sandbox.Process{free, web} {
		require.Equal(t, "one: hello", reachingIn(t, p, at("one.test", port))[0], "outside is as it was")
	}
	got := reachingIn(t, web, addressOf(t, db, 80), "db:80", "client:80", addressOf(t, free, 80), other)
	require.Equal(t, []string{"db: hello", "db: hello"}, got[:2])
	require.Contains(t, got[2], "no such host")
	require.Contains(t, got[3], "no route to host", "in place of being refused, as nobody listens")
	require.Contains(t, got[4], "no route to host", "others of its own name have to be named too")
	require.Contains(t, reachingIn(t, held(t, on("none")), "db:80")[0], "no such host", "without names, none")

	require.NoError(t, db.Kill())
	_, _ = db.Wait()
	require.Contains(t, reachingIn(t, web, "db:80")[0], "no such host")
	db = listening(t, "db again", "0.0.0.0:80", sandbox.WithNetwork(n.As("db")))
	require.Equal(t, "db again: hello", reachingIn(t, web, "db:80")[0])
	require.NoError(t, db.Kill())
	_, _ = db.Wait()
	require.Contains(t, reachingIn(t, web, "db.internal:80")[0], "no such host")
	require.Equal(t, []string{"one.test"}, zone.Asked())

	_, err := runs.Shell("", on("web", "db", "A.b")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, `Reaches: "A.b" is no name on a network`)
}

// A run is found by its aliases, too, by those who reach it by its name, and until it ends. It
// finds itself by its hostname at the address that others use, and no other by that. A hostname
// that is another's name leads to that.
func TestRootlessPrivateAliases(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, sandbox.AllowHost("*.org", 80))
	db := listening(t, "db", "own.host:80", sandbox.WithNetwork(n.As("my_db", sandbox.Aliases("db.example.org", "primary"), sandbox.Aliases("primary", "x.internal"))), sandbox.WithHostname("Own.host"))
	other := listening(t, "other", "0.0.0.0:80", sandbox.WithNetwork(n.As("other", sandbox.Aliases("primary"))))
	web, limited := held(t, sandbox.WithNetwork(n.As("web"))), held(t, sandbox.WithNetwork(n.As("limited", sandbox.Reaches("my_db"))))
	require.Equal(t, []string{"db: hello", "db: hello", "db: hello", "db: hello"}, reachingIn(t, web, "my_db:80", "DB.example.org:80", "x:80", "x.internal:80"))
	require.Equal(t, []string{"db: hello", "db: hello", "db: hello"}, reachingIn(t, limited, "primary:80", "db.example.org:80", "my_db.internal:80"), "other is not reached")
	require.Contains(t, reachingIn(t, web, "own.host:80")[0], "no such host")
	require.Equal(t, []string{"db: hello", "db: hello"}, reachingIn(t, db, "own.host:80", "my_db:80"))
	require.Equal(t, "other: hello", reachingIn(t, other, "sandbox:80")[0])
	listening(t, "third", "0.0.0.0:80", sandbox.WithNetwork(n.As("sandbox")))
	require.Equal(t, []string{"third: hello", "third: hello"}, reachingIn(t, other, "sandbox:80", "sandbox.internal:80"))
	require.NoError(t, db.Kill())
	_, _ = db.Wait()
	require.Contains(t, reachingIn(t, web, "db.example.org:80")[0], "no such host")
	require.Equal(t, "other: hello", reachingIn(t, web, "primary:80")[0])
	require.NoError(t, other.Kill())

	_, err := runs.Shell("", sandbox.WithNetwork(n.As("x", sandbox.Aliases("ok", "a b")))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, `Aliases: "a b" is no name`)
}

// Who a run reaches does not change what gets out, of it and of all others.
func TestRootlessReachesOutside(t *testing.T) {
	t.Parallel()
	tcp, udp := echoServer(t, "127.0.0.1", "one"), datagramEcho(t, "127.0.0.1")
	n := newNetwork(t, append(local(t, tcp), sandbox.AllowHost("one.test", sandbox.UDP(udp)), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP(udp)))...)
	for i, member := range []sandbox.Option{sandbox.WithNetwork(n.As("free")), sandbox.WithNetwork(n.As("limited", sandbox.Reaches())), sandbox.WithNetwork(n.As("free"))} {
		p := held(t, member)
		require.Equal(t, "one: hello", reachingIn(t, p, at("one.test", tcp))[0], "run %d", i)
		require.Equal(t, "1 1000 60000 ", printedIn(t, p, "datagrams", "20s", at("one.test", udp))[0], "run %d", i)
	}
}

// listenUDPHelper answers datagrams with a name, with what they have, and with whether their sender
// spoke before, until it is killed. It says when it listens.
func listenUDPHelper(args []string) error {
	network, at := runs.Over("udp4", args[1])
	udp, err := net.ListenPacket(network, at)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	known, b := map[string]bool{}, make([]byte, 100)
	for {
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			return err
		}
		_, _ = udp.WriteTo(fmt.Appendf(nil, "%s: %s %v", args[0], b[:n], known[from.String()]), from)
		known[from.String()] = true
	}
}

// say sends a datagram until there is an answer.
func say(t *testing.T, conn net.Conn, text string) (answer string) {
	t.Helper()
	b := make([]byte, 100)
	testkit.Eventually(t, "an answer", func() bool {
		_, _ = conn.Write([]byte(text))
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(b)
		answer = string(b[:n])
		return err == nil
	})
	return answer
}

func dialUDP(t *testing.T, to string) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp", to)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestRootlessPublishUDP(t *testing.T) {
	t.Parallel()
	var seen observer
	n := newNetwork(t, sandbox.NetworkObserver(seen.tell), sandbox.MaxConns(3))
	r, w := io.Pipe()
	p := runs.Start(t, runs.Helper("listen-udp", "dns", ":53").With(sandbox.WithNetwork(n.As("dns")), sandbox.WithPublish("127.0.0.1:0/udp", 53), sandbox.WithPublish(":0/udp", 53), sandbox.WithPublish("127.0.0.1:0", 80), sandbox.WithStdout(w)))
	_, err := io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	at := p.Published()[0].String()
	one, other := dialUDP(t, at), dialUDP(t, at)
	require.Equal(t, "dns: hello false", say(t, one, "hello"))
	require.Equal(t, "dns: again true", say(t, one, "again"))
	require.Equal(t, "dns: hello false", say(t, other, "hello"), "another sender")
	require.Equal(t, "dns: hello false", say(t, dialUDP(t, at), "hello"), "and the last for which there is a place")
	require.Contains(t, reach(p.Published()[2].String()), "reset")
	require.Equal(t, sandbox.Failed, seen.await(t, "TCP", func(c sandbox.Conn) bool { return c.Port == 80 }).Verdict, "TCP has places of its own")
	every := fmt.Sprintf("127.0.0.2:%d", p.Published()[1].Port())
	require.Regexp(t, "^dns: hello", say(t, dialUDP(t, every), "hello"), "who is silent gives way, at whatever port, and the answer is from the address that was written to")
	crowded := seen.await(t, "one too many", func(c sandbox.Conn) bool { return c.Verdict == sandbox.Refused })
	require.ErrorContains(t, crowded.Err, "MaxConns")
	require.True(t, crowded.UDP && crowded.Published)

	require.NoError(t, p.Kill())
	_, err = p.Wait()
	runs.ExitError(t, err)
	c := seen.await(t, "the first", func(c sandbox.Conn) bool { return c.Address.String() == one.LocalAddr().String() })
	require.Equal(t, []any{"dns", uint16(53), true, true, sandbox.Allowed}, []any{c.Run, c.Port, c.Published, c.UDP, c.Verdict})
	require.GreaterOrEqual(t, c.Received, int64(10))
	require.GreaterOrEqual(t, c.Sent, int64(26))
	testkit.Eventually(t, "nobody listens there any more", func() bool {
		_, err := one.Write([]byte("x"))
		if err == nil {
			_ = one.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, err = one.Read(make([]byte, 1))
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// Both ways: of what came in, a part is passed on, and of the answers to that a part again.
func TestRootlessPublishUDPBandwidth(t *testing.T) {
	t.Parallel()
	var seen observer
	n := newNetwork(t, sandbox.NetworkObserver(seen.tell), sandbox.RunBandwidth(1<<10))
	r, w := io.Pipe()
	begin := time.Now()
	p := runs.Start(t, runs.Helper("listen-udp", strings.Repeat("x", 300), ":53").With(sandbox.WithNetwork(n.As("dns")), sandbox.WithPublish("127.0.0.1:0/udp", 53), sandbox.WithStdout(w)))
	_, err := io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	conn := dialUDP(t, p.Published()[0].String())
	for range 500 {
		_, _ = conn.Write(make([]byte, 100))
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, p.Kill())
	_, _ = p.Wait()
	c := seen.await(t, "the peer", func(c sandbox.Conn) bool { return c.Published })
	most := 1<<10 + int64(1<<10*time.Since(begin).Seconds())
	require.Positive(t, c.Received)
	require.LessOrEqual(t, c.Received, most)
	require.LessOrEqual(t, c.Sent, most)
}

func TestRootlessPublishIPv6(t *testing.T) {
	testkit.Need(t, "IPv6")
	t.Parallel()
	var seen observer
	n := newNetwork(t, sandbox.NetworkObserver(seen.tell))
	p := listening(t, "web", "0.0.0.0:80", sandbox.WithNetwork(n.As("web")), sandbox.WithPublish("[::1]:0", 80), sandbox.WithPublish(":0/tcp", 80), sandbox.WithPublish("[::1]:0/udp", 80))
	require.Equal(t, "web: hello", reach(p.Published()[0].String()))
	require.True(t, seen.await(t, "a peer", func(c sandbox.Conn) bool { return c.Published }).Address.Addr().Is6())
	for _, host := range []string{"127.0.0.1", "::1"} {
		require.Equal(t, "web: hello", reach(net.JoinHostPort(host, fmt.Sprint(p.Published()[1].Port()))))
	}
	require.True(t, p.Published()[2].Addr().Is6())
}

// Datagrams find a run that listens at IPv6 alone, the first one too.
func TestRootlessPublishUDPToIPv6(t *testing.T) {
	testkit.Need(t, "IPv6")
	t.Parallel()
	r, w := io.Pipe()
	p := runs.Start(t, runs.Helper("listen-udp", "dns", "udp6/[::]:53").With(sandbox.WithNetwork(newNetwork(t).As("dns")), sandbox.WithPublish("127.0.0.1:0/udp", 53), sandbox.WithPublish("[::1]:0/udp", 53), sandbox.WithStdout(w)))
	_, err := io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	for _, to := range p.Published() {
		conn := dialUDP(t, to.String())
		_, err := conn.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
		b := make([]byte, 100)
		got, err := conn.Read(b)
		require.NoError(t, err)
		require.Equal(t, "dns: hello false", string(b[:got]))
		require.Equal(t, "dns: again true", say(t, conn, "again"), "from the same socket")
	}
}
