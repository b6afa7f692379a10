//go:build linux

package e2e

import (
	"bufio"
	"context"
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
// it. It prints the run's pid and the addresses at which it is published; when the run has ended,
// why, and what another run on the network does.
func pumpHost(args []string) error {
	port, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(testkit.ResolverAt(args[1])))
	if err != nil {
		return err
	}
	on := sandbox.WithNetwork(n.As("pump"))
	opts := []sandbox.Option{on, sandbox.WithPublish("127.0.0.1:0/udp", 80)}
	for _, local := range testkit.Loopbacks() {
		opts = append(opts, sandbox.WithPublish(net.JoinHostPort(local, "0"), 80))
	}
	p, err := runs.Helper("pump", append([]string{args[0]}, runs.OverEach("tcp", at("one.test", port))...)...).With(opts...).Start(context.Background())
	if err != nil {
		return err
	}
	fmt.Print(p.PID())
	for _, at := range p.Published()[1:] {
		fmt.Print(" ", at)
	}
	fmt.Println()
	_, err = p.Wait()
	out, again := sandbox.New(sandbox.WithCommand("echo", "another"), on).Output(context.Background())
	fmt.Println(strings.ReplaceAll(fmt.Sprint(err), "\n", " "), strings.TrimSpace(string(out)), again)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return n.Close()
}

// pump sends without an end, after a mark in its command line to all of the addresses.
func pump(args []string) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	send := func(conn net.Conn) {
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		_, _ = io.Copy(conn, zeros{})
	}
	for _, to := range args[1:] {
		conn, err := runs.Dial("tcp", to)
		if err != nil {
			return err
		}
		go send(conn)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go send(conn)
	}
}

type pumping struct {
	host    *os.Process
	run     int
	lines   *bufio.Scanner
	streams []net.Conn // out of the run, over IPv4 and IPv6, and into it
	opened  atomic.Int32
	at      []string
}

// startPumping returns when data goes out of the run, and into it and back.
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
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	host := testkit.HelperCommand(context.Background(), "pump", "host", mark, zone.Address(), fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
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
	u.at = u.at[1:]
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
	return &u
}

// requireOver fails unless all streams end, and no others begin.
func (u *pumping) requireOver(t *testing.T) {
	t.Helper()
	for _, s := range u.streams {
		require.NoError(t, s.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err := io.Copy(io.Discard, s) // what was sent before
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		s.Close()
	}
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
	u.requireOver(t)
	testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
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
	u.requireOver(t)
	require.Contains(t, u.lines.Text(), "the cell is gone")
	require.Contains(t, u.lines.Text(), " another <nil>", "the network goes on in another cell")
	requireUnused(t, ns)
}
