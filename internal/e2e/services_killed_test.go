//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
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

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("pump", func(args []string) error {
		if args[0] == "host" {
			return pumpHost(args[1:])
		}
		return pump(args)
	})
}

// pumpHost is a host process whose run sends as much as it can, to a server and to who connects to
// it, and datagrams. It prints the run's pid and the addresses at which it is published, that for
// datagrams first; when the run has ended, why, and what another run on the network does.
func pumpHost(args []string) error {
	tcp, err := strconv.Atoi(args[2])
	udp, udpErr := strconv.Atoi(args[3])
	if err := errors.Join(err, udpErr); err != nil {
		return err
	}
	ports := []sandbox.Ports{sandbox.TCP(tcp), sandbox.UDP(udp)}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", ports...), sandbox.AllowCIDR("127.0.0.1", ports...), sandbox.NetworkResolver(testkit.ResolverAt(args[1])))
	if err != nil {
		return err
	}
	on := sandbox.WithNetwork(n.As("pump"))
	opts := []sandbox.Option{on, sandbox.WithPublish("127.0.0.1:0/udp", 80)}
	for _, local := range testkit.Loopbacks() {
		opts = append(opts, sandbox.WithPublish(net.JoinHostPort(local, "0"), 80))
	}
	to := append(runs.OverEach("tcp", at("one.test", tcp)), runs.OverEach("udp", at("one.test", udp))...)
	p, err := runs.Helper("pump", append([]string{args[0]}, to...)...).With(opts...).Start(context.Background())
	if err != nil {
		return err
	}
	fmt.Print(p.PID())
	for _, at := range p.Published() {
		fmt.Print(" ", at)
	}
	fmt.Println()
	_, err = p.Wait()
	out, again := sandbox.New(sandbox.WithCommand("echo", "another"), on).Output(context.Background())
	fmt.Println(strings.ReplaceAll(fmt.Sprint(err), "\n", " "), strings.TrimSpace(string(out)), again)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return n.Close()
}

// pump sends without an end, after a mark in its command line to all of the addresses. It answers
// datagrams. What it sends is stamps.
func pump(args []string) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	asked, err := net.ListenPacket("udp", ":80")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, stampSize)
		for _, from, err := asked.ReadFrom(b); err == nil; _, from, err = asked.ReadFrom(b) {
			n, _ := stamps{}.Read(b)
			_, _ = asked.WriteTo(b[:n], from)
		}
	}()
	send := func(conn net.Conn) {
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		_, _ = io.Copy(conn, stamps{})
	}
	for _, to := range args[1:] {
		conn, err := runs.Dial("tcp", to)
		if err != nil {
			return err
		}
		if strings.HasPrefix(to, "udp") {
			go sendStamps(conn)
		} else {
			go send(conn)
		}
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go send(conn)
	}
}

const stampSize = 8

// stamps has no end, and says everywhere when that was read.
type stamps struct{}

func (stamps) Read(b []byte) (n int, err error) {
	now := uint64(time.Now().UnixNano())
	for ; n+stampSize <= len(b); n += stampSize {
		binary.BigEndian.PutUint64(b[n:], now)
	}
	return n, nil
}

// sendStamps sends one in each datagram, also where nobody listens, until the socket is closed.
func sendStamps(conn net.Conn) {
	b := make([]byte, stampSize)
	for err := error(nil); !errors.Is(err, net.ErrClosed); time.Sleep(time.Millisecond) {
		_, _ = stamps{}.Read(b)
		_, err = conn.Write(b)
	}
}

// newest is the latest of the stamps that came.
type newest struct{ stamp atomic.Uint64 }

// take takes stamps, of which the last may not be whole.
func (n *newest) take(b []byte) {
	for at := 0; at+stampSize <= len(b); at += stampSize {
		n.stamp.Store(max(n.stamp.Load(), binary.BigEndian.Uint64(b[at:])))
	}
}

// readAll takes those of a stream, and returns why that ends.
func (n *newest) readAll(conn net.Conn) error {
	for b := make([]byte, 64<<10); ; {
		size, err := io.ReadFull(conn, b)
		if n.take(b[:size]); err != nil {
			return err
		}
	}
}

// read takes the stamps of datagrams, until the socket is closed.
func (n *newest) read(udp net.PacketConn) {
	for b := make([]byte, stampSize); ; {
		size, _, err := udp.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		n.take(b[:size])
	}
}

type pumping struct {
	host    *os.Process
	run     int
	lines   *bufio.Scanner
	streams []net.Conn // out of the run, over IPv4 and IPv6, and into it
	opened  atomic.Int32
	at      []string
	udpAt   string // where it answers datagrams

	sent, answered newest // in datagrams, by the run
}

// startPumping returns when data goes out of the run, and into it and back, by TCP and UDP.
func startPumping(t *testing.T, mark string) *pumping {
	var u pumping
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	got := make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			u.opened.Add(1)
			got <- conn
		}
	}()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { udp.Close() })
	go u.sent.read(udp)
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	host := testkit.HelperCommand(context.Background(), "pump", "host", mark, zone.Address(), fmt.Sprint(l.Addr().(*net.TCPAddr).Port), fmt.Sprint(udp.LocalAddr().(*net.UDPAddr).Port))
	_, err = host.StdinPipe()
	require.NoError(t, err)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() {
		_ = host.Process.Kill()
		_ = host.Wait()
	})
	u.host, u.lines = host.Process, bufio.NewScanner(out)
	require.True(t, u.lines.Scan())
	u.at = strings.Fields(u.lines.Text())
	u.run, err = strconv.Atoi(u.at[0])
	require.NoError(t, err)
	u.udpAt, u.at = u.at[1], u.at[2:]
	for range runs.OverEach("tcp", "") {
		u.streams = append(u.streams, <-got)
	}
	for _, at := range u.at {
		conn, err := net.Dial("tcp", at)
		require.NoError(t, err)
		u.streams = append(u.streams, conn)
		go func() { _, _ = io.Copy(conn, zeros{}) }()
	}
	for _, s := range u.streams {
		_, err := io.CopyN(io.Discard, s, 10<<20)
		require.NoError(t, err)
	}
	asks, err := net.Dial("udp", u.udpAt)
	require.NoError(t, err)
	t.Cleanup(func() { asks.Close() })
	go sendStamps(asks)
	go u.answered.read(asks.(net.PacketConn))
	testkit.Eventually(t, "datagrams come", func() bool { return u.sent.stamp.Load() > 0 && u.answered.stamp.Load() > 0 })
	return &u
}

// requireOver fails unless all streams end, and no others begin, and what came by then is what the
// run had sent before a time.
func (u *pumping) requireOver(t *testing.T, before time.Time) {
	t.Helper()
	late := func(n *newest) time.Duration { return time.Unix(0, int64(n.stamp.Load())).Sub(before) }
	for _, s := range u.streams {
		require.NoError(t, s.SetReadDeadline(time.Now().Add(20*time.Second)))
		var last newest
		require.NotErrorIs(t, last.readAll(s), os.ErrDeadlineExceeded)
		require.Negative(t, late(&last))
		s.Close()
	}
	testkit.Eventually(t, "nobody takes datagrams", func() bool {
		conn, err := net.Dial("udp", u.udpAt)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write(make([]byte, stampSize))
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			_, err = conn.Read(make([]byte, stampSize))
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	require.Negative(t, late(&u.sent))
	require.Negative(t, late(&u.answered))
	for _, at := range u.at {
		_, err := net.Dial("tcp", at)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	require.EqualValues(t, len(runs.OverEach("tcp", "")), u.opened.Load())
}

// netNamespace returns a process's network namespace.
func netNamespace(pid int) string {
	ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return ns
}

// requireUnused fails unless no process is in a network namespace.
func requireUnused(t *testing.T, ns string) {
	testkit.Eventually(t, "nothing is left", func() bool {
		for _, pid := range testkit.Processes() {
			if ns != "" && netNamespace(pid) == ns {
				return false
			}
		}
		return true
	})
}

// When the process that holds the listeners is killed in mid-transfer, nothing comes out of a run
// or into it any more, and nothing is left of it.
func TestRootlessPrivateKilledHost(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	u := startPumping(t, mark)
	ns := netNamespace(u.run)
	require.NoError(t, u.host.Kill())
	_, err := u.host.Wait()
	require.NoError(t, err)
	killed := time.Now()
	testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
	u.requireOver(t, killed)
	requireUnused(t, ns)
}

// The same, when the fork server is; its process goes on.
func TestPrivateKilledCell(t *testing.T) {
	testkit.Need(t, "root") // the fork server of an ordinary user has another id
	t.Parallel()
	mark := testkit.ALongTime()
	u := startPumping(t, mark)
	ns := netNamespace(u.run)
	require.NoError(t, syscall.Kill(initOf(t, u.run), syscall.SIGKILL))
	require.True(t, u.lines.Scan())
	u.requireOver(t, time.Now())
	require.Contains(t, u.lines.Text(), "the cell is gone")
	require.Contains(t, u.lines.Text(), " another <nil>", "the network goes on in another cell")
	requireUnused(t, ns)
}
