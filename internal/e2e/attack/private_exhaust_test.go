//go:build linux

package attack

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	for name, run := range map[string]func(args []string) error{
		"private-resets": resets,
		"private-dead":   dialDead,
		"private-unread": leaveUnread,
		"private-half":   sayHalf,
		"private-few":    fewDescriptors,
		"private-one":    fetchOne,
	} {
		testkit.AddHelper(name, run)
	}
}

// crowded is a network on which an attacker has its 20 connections, and others theirs.
func crowded(t *testing.T, ports map[string]int, opts ...sandbox.NetworkOption) *sandbox.PrivateNetwork {
	zone := testkit.NewZone(t, nil)
	for name, port := range ports {
		zone.Set(name, "127.0.0.1")
		opts = append(opts, sandbox.AllowHost(name, port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)))
	}
	n, err := sandbox.NewNetwork(append(opts, sandbox.NetworkResolver(zone.Resolver()), sandbox.MaxConns(20))...)
	require.NoError(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// requireServed requires that a run of the network other than the attacker gets through.
func requireServed(t *testing.T, n *sandbox.PrivateNetwork, at string) {
	t.Helper()
	require.Equal(t, "public", runs.Output(t, runs.Helper("private-fetch", at).With(sandbox.WithNetwork(n.As("neighbour")))))
}

func end(p *sandbox.Process) {
	_ = p.Kill()
	_, _ = p.Wait()
}

// resets opens connections and resets them at once, without an end. It says when it had 500.
func resets(args []string) error {
	network, at := runs.Over("tcp", args[0])
	for had := 0; ; {
		conn, err := net.Dial(network, at)
		if err != nil {
			continue
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
		if had++; had == 500 {
			fmt.Println("at it")
		}
	}
}

// A storm of connections that are reset at once.
func TestAttackRootlessPrivateResets(t *testing.T) {
	port := public(t, "127.0.0.1", "public")
	n := crowded(t, map[string]int{"one.test": port})
	at := fmt.Sprintf("one.test:%d", port)
	for _, to := range runs.OverEach("tcp", at) {
		attacker, _ := started(t, runs.Helper("private-resets", to).With(sandbox.WithNetwork(n.As("attacker"))))
		requireServed(t, n, at)
		end(attacker)
	}
}

// deadPort returns a port of 127.0.0.1 that answers no connection: its queue is full.
func deadPort(t *testing.T) int {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(s) })
	require.NoError(t, unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(s, 0))
	at, err := unix.Getsockname(s)
	require.NoError(t, err)
	port := at.(*unix.SockaddrInet4).Port
	for range 20 {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second/2)
		if err != nil {
			var timeout net.Error
			require.ErrorAs(t, err, &timeout)
			require.True(t, timeout.Timeout(), "the control: %v", err)
			return port
		}
		t.Cleanup(func() { conn.Close() })
	}
	require.Fail(t, "the queue has no end")
	return 0
}

// dialDead opens connections to where nobody answers, a thousand at a time, more than it may have,
// and says when there have been ten thousand.
func dialDead(args []string) error {
	network, at := runs.Over("tcp", args[0])
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return err
	}
	to, err := net.ResolveIPAddr("ip"+strings.TrimPrefix(network, "tcp"), host)
	if err != nil {
		return err
	}
	var opened atomic.Int64
	for range 1000 {
		go func() {
			for {
				conn, err := net.Dial(network, net.JoinHostPort(to.String(), port))
				if err != nil {
					continue
				}
				if opened.Add(1) == 10_000 {
					fmt.Println("at it")
				}
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}
		}()
	}
	select {}
}

// Connections that are half open, to a destination that does not answer.
func TestAttackRootlessPrivateHalfOpen(t *testing.T) {
	port, dead := public(t, "127.0.0.1", "public"), deadPort(t)
	n := crowded(t, map[string]int{"one.test": port, "dead.test": dead})
	requireServed(t, n, fmt.Sprintf("one.test:%d", port))
	before := descriptors(t)
	for _, at := range runs.OverEach("tcp", fmt.Sprintf("dead.test:%d", dead)) {
		attacker, _ := started(t, runs.Helper("private-dead", at).With(sandbox.WithNetwork(n.As("attacker"))))
		for _, at := range runs.OverEach("tcp", fmt.Sprintf("one.test:%d", port)) {
			requireServed(t, n, at)
		}
		require.Less(t, descriptors(t), before+200, "of this process it has MaxConns")
		end(attacker)
	}
}

// leaveUnread opens connections over which it reads nothing.
func leaveUnread(args []string) error {
	var all []net.Conn
	network, at := runs.Over("tcp", args[0])
	for range 4 {
		conn, err := net.Dial(network, at)
		if err != nil {
			return err
		}
		all = append(all, conn)
	}
	fmt.Println(len(all))
	select {}
}

// What a run does not read fills buffers, and no more.
func TestAttackRootlessPrivateUnread(t *testing.T) {
	for _, at := range runs.OverEach("tcp", "one.test") {
		leftUnread(t, at)
	}
}

func leftUnread(t *testing.T, at string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var passed atomic.Int64
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go func() {
				defer conn.Close()
				b := make([]byte, 64<<10)
				for n, err := conn.Write(b); err == nil; n, err = conn.Write(b) {
					passed.Add(int64(n))
				}
			}()
		}
	}()
	settled := func() (n int64) {
		testkit.Eventually(t, "it comes to an end", func() bool {
			n = passed.Load()
			time.Sleep(300 * time.Millisecond)
			return n > 0 && n == passed.Load()
		})
		return n
	}
	port, other := l.Addr().(*net.TCPAddr).Port, public(t, "127.0.0.1", "public")
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	// What the run's own and the server's sockets may hold is the kernel's.
	const most = 16 << 20
	_, err = io.CopyN(io.Discard, conn, 4*most)
	require.NoError(t, err, "the control")
	conn.Close()
	settled()
	passed.Store(0)

	n := crowded(t, map[string]int{"one.test": port, "two.test": other})
	attacker, _ := started(t, runs.Helper("private-unread", fmt.Sprintf("%s:%d", at, port)).With(sandbox.WithNetwork(n.As("attacker"))))
	require.Less(t, settled(), int64(4*most))
	requireServed(t, n, fmt.Sprintf("two.test:%d", other))
	end(attacker)
}

// sayHalf sends, over many connections, what it is given in hexadecimal, and nothing more.
func sayHalf(args []string) error {
	words, err := hex.DecodeString(args[1])
	if err != nil {
		return err
	}
	var all []net.Conn
	network, at := runs.Over("tcp", args[0])
	for range 20 {
		conn, err := net.Dial(network, at)
		if err == nil {
			_, err = conn.Write(words)
		}
		if err != nil {
			return err
		}
		all = append(all, conn)
	}
	fmt.Println(len(all))
	select {}
}

// A server name whose end never comes is passed on to nobody, and holds up nobody.
func TestAttackRootlessPrivateHalfHello(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var server shared
	go server.serve(l)
	port, other := l.Addr().(*net.TCPAddr).Port, public(t, "127.0.0.1", "public")
	at := func(host string) string { return fmt.Sprintf("%s:%d", host, port) }
	hello := helloTo("other.test")
	control, _ := started(t, runs.Helper("private-half", at("127.0.0.1"), hex.EncodeToString(hello)).With(sandbox.WithNetwork(sandbox.NetworkHost)))
	testkit.Eventually(t, "the control shows it", func() bool { return len(server.sites()) > 0 })
	end(control)

	n := crowded(t, map[string]int{"one.test": port, "two.test": other})
	server.sites()
	for _, to := range runs.OverEach("tcp", at("one.test")) {
		attacker, _ := started(t, runs.Helper("private-half", to, hex.EncodeToString(hello[:len(hello)-1])).With(sandbox.WithNetwork(n.As("attacker"))))
		requireServed(t, n, fmt.Sprintf("two.test:%d", other))
		end(attacker)
	}
	require.NotContains(t, server.sites(), "other.test")
}

// A run that is paused with its connections open holds up nobody, and is ended all the same.
func TestAttackRootlessPrivatePaused(t *testing.T) {
	testkit.Need(t, "freezer")
	port := public(t, "127.0.0.1", "public")
	n := crowded(t, map[string]int{"one.test": port})
	at := fmt.Sprintf("one.test:%d", port)
	local := testkit.Loopbacks()
	for i, to := range runs.OverEach("tcp", at) {
		published := net.JoinHostPort(local[i%len(local)], "0")
		attacker, _ := started(t, runs.Helper("private-resets", to).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithPublish(published, 80), sandbox.WithMemory(256*sandbox.MiB)))
		require.NoError(t, attacker.Pause())
		requireServed(t, n, to)
		conn, err := net.Dial("tcp", attacker.Published()[0].String())
		requireServed(t, n, to)
		end(attacker)
		if err == nil { // else it was reset already, as nobody listens there
			defer conn.Close()
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
			_, err = conn.Read(make([]byte, 1))
		}
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it ends with the run")
	}
}

// fetchOne prints the first byte that comes.
func fetchOne(args []string) error {
	conn, err := runs.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	_, err = io.CopyN(os.Stdout, conn, 1)
	return err
}

// fewDescriptors is a host process that has few descriptors left. It prints what its runs get:
// while one of them uses up all, and after that.
func fewDescriptors(args []string) error {
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(testkit.ResolverAt(args[0])), sandbox.MaxConns(1000))
	if err != nil {
		return err
	}
	defer n.Close()
	ctx := context.Background()
	served := func() (string, error) {
		out, err := runs.Helper("private-one", fmt.Sprintf("one.test:%d", port)).With(sandbox.WithNetwork(n.As("neighbour"))).Output(ctx)
		return strings.TrimSpace(string(out)), err
	}
	if _, err := served(); err != nil {
		return err
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		return err
	}
	few := was
	few.Cur = uint64(len(open)) + 100
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		return err
	}
	out, err := runs.Helper("private-flood", runs.OverEach("tcp", fmt.Sprintf("one.test:%d", port))...).With(sandbox.WithNetwork(n.As("attacker"))).Output(ctx)
	fmt.Println(string(out), err)
	after, err := served()
	for end := time.Now().Add(testkit.Patience / 2); err != nil && time.Now().Before(end); after, err = served() {
		time.Sleep(10 * time.Millisecond) // its connections are being closed
	}
	fmt.Println(after, err)
	return errors.Join(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was), sandbox.Shutdown(ctx))
}

// A run whose connections use up this process's descriptors, where MaxConns allows so many, stops
// it for no longer than it lives.
func TestAttackRootlessPrivateDescriptors(t *testing.T) {
	port := holding(t)
	n := crowded(t, map[string]int{"one.test": port})
	require.Equal(t, "x", runs.Output(t, runs.Helper("private-one", fmt.Sprintf("one.test:%d", port)).With(sandbox.WithNetwork(n.As("control")))))
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	host := testkit.HelperCommand(testkit.Deadline(t), "private-few", zone.Address(), fmt.Sprint(port))
	host.Stderr = os.Stderr
	out, err := host.Output()
	require.NoError(t, err)
	lines := strings.Split(string(out), "\n")
	var alive int
	_, err = fmt.Sscan(lines[0], &alive)
	require.NoError(t, err)
	require.Less(t, alive, 200, "the control: there were not enough")
	require.Positive(t, alive)
	require.Equal(t, "x <nil>", lines[1])
}
