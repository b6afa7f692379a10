//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

func init() {
	testkit.AddHelper("reach", reachHelper)
	testkit.AddHelper("listen", listenHelper)
	testkit.AddHelper("send", sendHelper)
}

// reachHelper says hello to each address, over TCP, and prints what comes back, or how it failed.
func reachHelper(args []string) error {
	for _, at := range args {
		fmt.Println(reach(at))
	}
	return nil
}

func reach(at string) string {
	network, at := runs.Over("tcp", at)
	conn, err := net.DialTimeout(network, at, 20*time.Second)
	if err != nil {
		return "no: " + err.Error()
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "hello"); err != nil { // a reset is told once
		return "cut off: " + err.Error()
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(conn)
	if err != nil {
		return "cut off: " + err.Error()
	}
	return string(b)
}

// listenHelper answers at an address, as echoes does, in the name that comes first, until it is
// killed. It says when it listens.
func listenHelper(args []string) error {
	network, at := runs.Over("tcp", args[1])
	l, err := net.Listen(network, at)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	echoes(l, args[0])
	return nil
}

// sendHelper sends a mebibyte and does not wait for anything.
func sendHelper(args []string) error {
	conn, err := net.Dial("tcp", args[0])
	if err == nil {
		_, err = conn.Write(make([]byte, 1<<20))
	}
	return err
}

// echoes answers each connection with a name, and with what comes over it.
func echoes(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprint(conn, name, ": ")
			io.Copy(conn, conn)
		}()
	}
}

// echoServer answers at a port of an address of this machine.
func echoServer(t *testing.T, address, name string) (port int) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go echoes(l, name)
	return l.Addr().(*net.TCPAddr).Port
}

// observer collects what it is told.
type observer struct {
	mu  sync.Mutex
	all []sandbox.Conn
}

func (o *observer) tell(c sandbox.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, c)
}

// await waits until it was told of a connection.
func (o *observer) await(t *testing.T, what string, is func(sandbox.Conn) bool) (found sandbox.Conn) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		o.mu.Lock()
		all := slices.Clone(o.all)
		o.mu.Unlock()
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i]
		}
	}
	require.Fail(t, "not told of "+what)
	return found
}

func newNetwork(t *testing.T, opts ...sandbox.NetworkOption) *sandbox.PrivateNetwork {
	t.Helper()
	n, err := sandbox.NewNetwork(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

func at(name string, port int) string { return fmt.Sprintf("%s:%d", name, port) }

// reaching returns what a run on the network gets from each address.
func reaching(t *testing.T, n *sandbox.PrivateNetwork, name string, to ...string) []string {
	t.Helper()
	return strings.Split(runs.Output(t, runs.Helper("reach", to...).With(sandbox.WithNetwork(n.As(name)))), "\n")
}

// listening starts a run that listens in a name at an address, and waits until it does.
func listening(t *testing.T, name, address string, opts ...sandbox.Option) *sandbox.Process {
	t.Helper()
	r, w := io.Pipe()
	p := runs.Start(t, runs.Helper("listen", name, address).With(append(opts, sandbox.WithStdout(w))...))
	b := make([]byte, 10)
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	return p
}

func TestRootlessPrivateByName(t *testing.T) {
	t.Parallel()
	port, other := echoServer(t, "127.0.0.1", "one"), echoServer(t, "127.0.0.1", "two")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "a.wild.test": "127.0.0.1", "secret.evil.test": "127.0.0.1"})
	var seen observer
	n := newNetwork(t, sandbox.AllowHost("one.test", port), sandbox.AllowHost("*.wild.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port, other)),
		sandbox.AllowHost("elsewhere.test", other), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	got := reaching(t, n, "client", at("one.test", port), at("A.Wild.TEST", port), at("wild.test", port), at("secret.evil.test", port), at("one.test", other), at("one.test", 1), at("x.wild.test", port))
	require.Equal(t, "one: hello", got[0])
	require.Equal(t, "one: hello", got[1])
	require.Contains(t, got[2], "no such host")
	require.Contains(t, got[3], "no such host")
	require.Regexp(t, "reset|EOF", got[4], "a port that is listed for another")
	require.Contains(t, got[5], "connection refused", "a port that is not listed at all")
	require.Regexp(t, "reset|EOF", got[6], "a name that does not exist")
	require.Equal(t, []string{"a.wild.test", "one.test", "x.wild.test"}, zone.Asked(), "what is not listed is not asked for")

	c := seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name == "one.test" && c.Verdict == sandbox.Allowed })
	require.Equal(t, sandbox.Conn{Run: "client", Name: "one.test", Port: uint16(port), Address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)),
		Sent: 5, Received: 10, Begin: c.Begin, Duration: c.Duration, Verdict: sandbox.Allowed, Rule: "one.test"}, c)
	require.Positive(t, c.Duration)
	require.Equal(t, "*.wild.test", seen.await(t, "a.wild.test", func(c sandbox.Conn) bool { return c.Name == "a.wild.test" }).Rule)
	seen.await(t, "the name", func(c sandbox.Conn) bool {
		return c.Name == "secret.evil.test" && c.Verdict == sandbox.Refused && c.Port == 0
	})
	seen.await(t, "the port", func(c sandbox.Conn) bool {
		return c.Name == "one.test" && c.Verdict == sandbox.Refused && int(c.Port) == other
	})
	seen.await(t, "the port that is not listed at all", func(c sandbox.Conn) bool {
		return c.Name == "one.test" && c.Verdict == sandbox.Refused && c.Port == 1
	})
	seen.await(t, "the missing host", func(c sandbox.Conn) bool { return c.Name == "x.wild.test" && c.Verdict == sandbox.Failed })
}

// Programs with the C library's resolver find names too.
func TestRootlessPrivateResolver(t *testing.T) {
	testkit.Need(t, "python3")
	t.Parallel()
	n := newNetwork(t, sandbox.AllowHost("one.test", 80))
	got := runs.Output(t, sandbox.New(sandbox.WithNetwork(n.As("client")), sandbox.WithCommand("python3", "-c", `
import socket
print(open("/etc/resolv.conf").read(), end="")
for name in "one.test", "client.internal", "other.test":
	try: print(socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4])
	except OSError as e: print(e)`)))
	require.Equal(t, "nameserver 198.18.0.1\n('198.19.0.1', 80)\n('198.18.0.2', 80)\n[Errno -2] Name or service not known", got)
}

// ownAddress returns an address of this machine that is not its loopback, if it has one.
func ownAddress() (netip.Addr, bool) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

func TestRootlessPrivateByAddress(t *testing.T) {
	t.Parallel()
	var seen observer
	opts := []sandbox.NetworkOption{sandbox.NetworkObserver(seen.tell), sandbox.AllowCIDR("192.0.2.0/24", sandbox.TCP(80), sandbox.TCP(81))}
	own, ok := ownAddress()
	port := 0
	if ok {
		port = echoServer(t, own.String(), "own")
		opts = append(opts, sandbox.AllowCIDR(own.String(), sandbox.TCP(port)))
	}
	n := newNetwork(t, opts...)
	to := []string{"8.8.8.8:80", "198.18.0.1:80", "198.19.0.1:80", "192.0.2.1:82"}
	if ok {
		to = append(to, at(own.String(), port), at(own.String(), 80))
	}
	got := reaching(t, n, "client", to...)
	for i := range 3 {
		require.Regexp(t, "reset|EOF", got[i], to[i])
	}
	require.Contains(t, got[3], "connection refused")
	if ok {
		require.Equal(t, "own: hello", got[4])
		require.Regexp(t, "reset|EOF", got[5])
		require.Equal(t, own.String()+"/32", seen.await(t, "own", func(c sandbox.Conn) bool { return c.Verdict == sandbox.Allowed }).Rule)
	}
	require.Equal(t, sandbox.Refused, seen.await(t, "unlisted", func(c sandbox.Conn) bool { return c.Address.String() == "8.8.8.8:80" }).Verdict)
}

func TestRootlessPublish(t *testing.T) {
	t.Parallel()
	var seen observer
	n := newNetwork(t, sandbox.NetworkObserver(seen.tell), sandbox.MaxConns(8))
	p := listening(t, "web", "0.0.0.0:80", sandbox.WithNetwork(n.As("web")), sandbox.WithPublish("127.0.0.1:0", 80), sandbox.WithPublish("127.0.0.1:0", 81))
	published := p.Published()
	require.Len(t, published, 2)
	require.NotZero(t, published[0].Port())
	for range 3 * 16 { // more than the sockets that are made at a time
		require.Equal(t, "web: hello", reach(published[0].String()))
	}
	require.Regexp(t, "reset", reach(published[1].String()), "nobody listens there")
	c := seen.await(t, "published", func(c sandbox.Conn) bool { return c.Published && c.Verdict == sandbox.Allowed })
	require.Equal(t, []any{"web", uint16(80), int64(10), int64(5)}, []any{c.Run, c.Port, c.Sent, c.Received})
	require.True(t, c.Address.Addr().IsLoopback())
	require.Equal(t, sandbox.Failed, seen.await(t, "the other", func(c sandbox.Conn) bool { return c.Port == 81 }).Verdict)

	var held []net.Conn
	for range 8 {
		conn, err := net.Dial("tcp", published[0].String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.ReadFull(conn, make([]byte, 5))
		require.NoError(t, err)
		held = append(held, conn)
	}
	require.Regexp(t, "reset", reach(published[0].String()), "more than MaxConns")

	_, err := runs.Helper("listen", "web", "0.0.0.0:80").With(sandbox.WithNetwork(n.As("web")), sandbox.WithPublish(published[0].String(), 80)).Start(testkit.Deadline(t))
	require.Equal(t, "WithPublish", runs.SetupError(t, err, "address already in use").Stage)

	require.NoError(t, p.Kill())
	_, err = p.Wait()
	runs.ExitError(t, err)
	require.Contains(t, reach(published[0].String()), "connection refused")
	again := listening(t, "again", "0.0.0.0:80", sandbox.WithNetwork(n.As("web")), sandbox.WithPublish(published[0].String(), 80))
	require.Equal(t, "again: hello", reach(published[0].String()), "the next run can have the address at once")
	require.NoError(t, again.Kill())
	_, err = held[0].Read(make([]byte, 1))
	require.Error(t, err, "what was open has ended")
}

// Runs of a network find each other, at addresses and with ports of their own.
func TestRootlessServices(t *testing.T) {
	t.Parallel()
	n, apart := newNetwork(t), newNetwork(t)
	require.Contains(t, reaching(t, n, "early", "db:80")[0], "no such host")
	listening(t, "db", "0.0.0.0:80", sandbox.WithNetwork(n.As("db")))
	cache := listening(t, "cache", "0.0.0.0:80", sandbox.WithNetwork(n.As("cache")))
	require.Equal(t, []string{"db: hello", "db: hello", "cache: hello", "cache: hello"}, reaching(t, n, "client", "db:80", "DB.internal.:80", "cache:80", "cache.internal:80"))
	require.Contains(t, reaching(t, n, "client", "db:81")[0], "connection refused")
	require.Contains(t, reaching(t, apart, "client", "db:80")[0], "no such host")
	require.Contains(t, reaching(t, apart, "client", "198.18.0.2:80", "198.18.0.3:80", "198.18.0.4:80"), "no: dial tcp 198.18.0.3:80: connect: connection refused")
	require.NoError(t, cache.Kill())
	_, _ = cache.Wait()
	require.Contains(t, reaching(t, n, "client", "cache:80")[0], "no such host")
}

// What a run sent before its end arrives.
func TestRootlessPrivateLastWords(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n := newNetwork(t, sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()))
	for range 5 {
		_, err := runs.Helper("send", at("one.test", port)).With(sandbox.WithNetwork(n.As("client"))).Run(testkit.Deadline(t))
		require.NoError(t, err)
		conn, err := l.Accept()
		require.NoError(t, err)
		b, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Len(t, b, 1<<20)
		conn.Close()
	}
}

func TestRootlessPrivateClose(t *testing.T) {
	t.Parallel()
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", 80))
	require.NoError(t, err)
	r, w := io.Pipe()
	var out bytes.Buffer
	p := runs.Start(t, runs.Shell("echo; read x; tail -n +3 /proc/net/dev | cut -d: -f1", sandbox.WithNetwork(n.As("client")), sandbox.WithStdin(r), sandbox.WithStdout(&out)))
	require.NoError(t, n.Close())
	require.NoError(t, n.Close())
	fmt.Fprintln(w, "go on")
	w.Close()
	_, err = p.Wait()
	require.NoError(t, err)
	require.Equal(t, "\n    lo\n", out.String())
	_, err = runs.Shell("", sandbox.WithNetwork(n.As("client"))).Run(testkit.Deadline(t))
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	require.ErrorContains(t, err, "WithNetwork: the network was closed")
}

func TestRootlessPrivatePrepared(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	s := runs.Prepared(t, 2, append(runs.HelperOptions(), sandbox.WithNetwork(n.As("web")))...)
	require.Contains(t, reaching(t, n, "client", "web:80")[0], "no such host", "runs that wait are not there yet")
	r, w := io.Pipe()
	p := runs.StartPrepared(t, runs.HelperOf(s, "listen", "web", "0.0.0.0:80").With(sandbox.WithStdout(w), sandbox.WithPublish("127.0.0.1:0", 80)))
	_, err := io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	require.Equal(t, "web: hello", reach(p.Published()[0].String()))
	require.Equal(t, "web: hello", reaching(t, n, "client", "web:80")[0])
}

// A worker, which serves many calls, finds a service whenever that is there, and what is listed.
func TestRootlessPrivateWorkers(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	var seen observer
	n := newNetwork(t, sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	workers := work.With(sandbox.WithNetwork(n.As("worker"))).Workers(1)
	defer workers.Close()
	said := func(to string) string {
		t.Helper()
		out, err := workers.Call(testkit.Deadline(t), job{Do: "reach", Text: to})
		require.NoError(t, err)
		return out.Text
	}
	process := pidOf(t, workers)
	require.Equal(t, "one: hello", said(at("one.test", port)))
	for _, name := range []string{"first", "second"} {
		require.Contains(t, said("db:80"), "no such host")
		db := listening(t, name, "0.0.0.0:80", sandbox.WithNetwork(n.As("db")))
		require.Equal(t, name+": hello", said("db:80"))
		require.NoError(t, db.Kill())
		_, err := db.Wait()
		require.Error(t, err)
	}
	require.Equal(t, process, pidOf(t, workers))
	require.Equal(t, "worker", seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name == "one.test" }).Run)

	out := call(t, job{Do: "reach", Text: at("one.test", port)}, sandbox.WithNetwork(n.As("function")))
	require.Equal(t, "one: hello", out.Text)
	seen.await(t, "the function", func(c sandbox.Conn) bool { return c.Run == "function" && c.Verdict == sandbox.Allowed })
}

// Runs of a pool that live at a time each have a place on the network, with one name.
func TestRootlessPrivatePool(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	rules := []sandbox.NetworkOption{sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver())}
	n := newNetwork(t, rules...)
	jobs := pool.New(runs.Helper("reach", at("one.test", port)).With(sandbox.WithNetwork(n.As("job"))), 2)
	var live []*sandbox.Process
	var addresses []string
	for range 2 {
		r, w := io.Pipe()
		p, err := jobs.Start(testkit.Deadline(t), sandbox.WithCommand("/helper", testkit.HelperArgs("listen", "job", "0.0.0.0:80")...), sandbox.WithStdout(w))
		require.NoError(t, err)
		_, err = io.ReadFull(r, make([]byte, 10))
		require.NoError(t, err)
		live, addresses = append(live, p), append(addresses, addressOf(t, p, 80))
	}
	require.NotEqual(t, addresses[0], addresses[1])
	require.Equal(t, []string{"job: hello", "job: hello", "job: hello"}, reaching(t, n, "client", addresses[0], addresses[1], "job:80"))
	for _, p := range live {
		require.NoError(t, p.Kill())
		_, err := p.Wait()
		require.Error(t, err)
	}
	require.Contains(t, reaching(t, n, "client", "job:80")[0], "no such host")

	for _, at := range []sandbox.Option{sandbox.WithNetwork(n.As("job")), sandbox.WithNetwork(sandbox.Private(rules...))} {
		var group sync.WaitGroup
		for range 6 {
			group.Go(func() {
				var out bytes.Buffer
				_, err := jobs.Run(testkit.Deadline(t), at, sandbox.WithStdout(&out))
				assert.NoError(t, err)
				assert.Equal(t, "one: hello\n", out.String())
			})
		}
		group.Wait()
	}
	closePool(t, jobs)
}

func TestPrivateWithoutUserNamespace(t *testing.T) {
	testkit.Need(t, "root's power over networks")
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n := newNetwork(t, sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()))
	s := runs.HostUser(runs.Helper("reach", at("one.test", port), "one.test:1")).With(sandbox.WithNetwork(n.As("client")))
	got := strings.Split(runs.Output(t, s), "\n")
	require.Equal(t, "one: hello", got[0])
	require.Contains(t, got[1], "connection refused")
}

func TestWrongNetworks(t *testing.T) {
	t.Parallel()
	var none *sandbox.PrivateNetwork
	for want, opt := range map[string]sandbox.Option{
		"WithNetwork: the network was not made by NewNetwork": sandbox.WithNetwork(none.As("a")),
		`WithNetwork: "A.b" is no name on a network`:          sandbox.WithNetwork(newNetwork(t).As("A.b")),
		"WithPublish: the run is on no private network":       sandbox.WithPublish("127.0.0.1:0", 80),
		`WithPublish: "x:y" is no address`:                    sandbox.WithPublish("x:y", 80),
		"WithPublish: 0: ports go from 1":                     sandbox.WithPublish(":80", 0),
	} {
		_, err := runs.Shell("", opt).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, want)
	}
	require.Error(t, none.Close())
	_, err := sandbox.NewNetwork(sandbox.AllowHost("127.0.0.1", 80), sandbox.AllowCIDR("x", sandbox.TCP(80)), sandbox.MaxConns(0), sandbox.MaxNewConns(-1), sandbox.Bandwidth(1), sandbox.RunBandwidth(-1), nil)
	for _, option := range []string{"AllowHost", "AllowCIDR", "MaxConns", "MaxNewConns", "Bandwidth", "RunBandwidth"} {
		require.ErrorContains(t, err, "sandbox: "+option+": ")
	}
}
