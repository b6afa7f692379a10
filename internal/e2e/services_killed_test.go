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
	"path/filepath"
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
	testkit.AddHelper("pump", func(args []string) error {
		if args[0] == "host" {
			return pumpHost(args[1:])
		}
		return pump(args)
	})
}

// pumpHost is a host process whose runs, with a mark as their last argument, send as much as they
// can, to a server and to who connects to them, and datagrams, and ask the questions in the last
// arguments. It prints the pid of the first and the addresses at which that is published, that for
// datagrams first; when it has ended, why, and what another run on the network does.
func pumpHost(args []string) error {
	mark, how, dir, zone, questions := args[0], args[1], args[2], args[3], args[7:]
	var listed [3]int
	for i := range listed {
		port, err := strconv.Atoi(args[4+i])
		if err != nil {
			return err
		}
		listed[i] = port
	}
	tcp, udp := listed[0], listed[2]
	ports := []sandbox.Ports{sandbox.TCP(listed[:2]...), sandbox.UDP(udp)}
	if strings.Contains(how, "all ports") {
		ports = []sandbox.Ports{sandbox.TCP(), sandbox.UDP()}
	}
	if strings.Contains(how, "ping") {
		ports = append(ports, sandbox.Ping())
	}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", ports...), sandbox.AllowCIDR("127.0.0.1", ports...), sandbox.NetworkResolver(testkit.ResolverAt(zone)), sandbox.MaxConns(10_000))
	if err != nil {
		return err
	}
	apart, err := sandbox.NewCell()
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	if _, err := runs.Helper("answers", mark).With(sandbox.WithNetwork(n.As("peer")), sandbox.WithCell(apart), sandbox.WithStdout(w), sandbox.WithStderr(os.Stderr)).Start(context.Background()); err != nil {
		return err
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return err
	}
	told := make([]*os.File, len(questions))
	for i := range told {
		if told[i], err = os.OpenFile(filepath.Join(dir, strconv.Itoa(i)), os.O_RDWR, 0); err != nil {
			return err
		}
	}
	on := sandbox.WithNetwork(n.As("pump"))
	if _, err := runs.Helper("asks", append(questions, mark)...).With(on, sandbox.WithExtraFiles(told...), sandbox.WithStderr(os.Stderr)).Start(context.Background()); err != nil {
		return err
	}
	opts := []sandbox.Option{on, sandbox.WithPublish("127.0.0.1:0/udp", 80)}
	for _, local := range testkit.Loopbacks() {
		opts = append(opts, sandbox.WithPublish(net.JoinHostPort(local, "0"), 80))
	}
	to := append(runs.OverEach("tcp", at("one.test", tcp)), runs.OverEach("udp", at("one.test", udp))...)
	p, err := runs.Helper("pump", append(to, mark)...).With(opts...).Start(context.Background())
	if err != nil {
		return err
	}
	if strings.Contains(how, "kept") {
		if err := keepHost(); err != nil {
			return err
		}
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
	return errors.Join(apart.Close(), n.Close())
}

// pump sends without an end to all of the addresses, which a mark follows in its command line. It
// answers datagrams. What it sends is stamps.
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
	for _, to := range args[:len(args)-1] {
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

	questions         []string
	dir               string // where a run tells of them
	asked, echoesSeen newest // by connections and by ping, from outside
	keeper            io.Closer
}

// startPumping returns when data goes out of the runs, and into them and back, by TCP and UDP and,
// with "ping", by that, and all questions are answered. With "kept" the runs may outlive the host,
// until the keeper is closed, and with "all ports" these are listed.
func startPumping(t *testing.T, mark, how string) *pumping {
	t.Helper()
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
	go u.sent.answer(udp)
	answering, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { answering.Close() })
	go u.asked.answerAll(answering)
	ports := []int{l.Addr().(*net.TCPAddr).Port, answering.Addr().(*net.TCPAddr).Port, udp.LocalAddr().(*net.UDPAddr).Port}
	pings := strings.Contains(how, "ping")
	u.questions, u.dir = questionsTo(ports[1], ports[2], pings), testkit.OpenDir(t)
	for i := range u.questions {
		testkit.WriteFile(t, filepath.Join(u.dir, strconv.Itoa(i)), "", 0o666)
	}
	if pings && testkit.Effective(unix.CAP_NET_RAW) {
		u.echoesSeen.capture(t, mark)
	}
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	args := []string{"host", mark, how, u.dir, zone.Address()}
	for _, port := range ports {
		args = append(args, strconv.Itoa(port))
	}
	host := testkit.HelperCommand(context.Background(), "pump", append(args, u.questions...)...)
	u.keeper, err = host.StdinPipe()
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
	u.requireEach(t, time.Now(), true)
	require.Equal(t, pings && testkit.Effective(unix.CAP_NET_RAW), u.echoesSeen.stamp.Load() > 0)
	require.Positive(t, u.asked.stamp.Load())
	require.Len(t, testkit.Running(mark), 3)
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
	u.streams = nil
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
	require.Negative(t, late(&u.asked))
	require.Negative(t, late(&u.echoesSeen))
	answered, _ := u.told(t)
	for q, at := range answered {
		require.Negative(t, at.Sub(before), q)
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

// killHost kills the process that holds the listeners in mid-transfer. Nothing may come out of its
// runs or into them any more, and nothing is left of them.
func killHost(t *testing.T, how string) {
	mark := testkit.ALongTime()
	u := startPumping(t, mark, how)
	ns := netNamespace(u.run)
	require.NoError(t, u.host.Kill())
	_, err := u.host.Wait()
	require.NoError(t, err)
	killed := time.Now()
	if strings.Contains(how, "kept") {
		u.requireEach(t, killed, false)
		u.requireOver(t, killed)
		require.Len(t, testkit.Running(mark), 3, "they are there yet")
		require.NoError(t, u.keeper.Close())
	}
	testkit.Eventually(t, "the runs are gone", func() bool { return len(testkit.Running(mark)) == 0 })
	u.requireOver(t, killed)
	requireUnused(t, ns)
}

func TestRootlessPrivateKilledHost(t *testing.T) {
	t.Parallel()
	killHost(t, "")
}

// The same, while the runs go on, as the cell does not notice.
func TestRootlessPrivateOutlivedHost(t *testing.T) {
	t.Parallel()
	killHost(t, "kept")
}

// Where rules of nftables lead what runs send to the listeners.
func TestRootlessPrivateOutlivedHostAllPorts(t *testing.T) {
	testkit.Need(t, "nft_tproxy")
	t.Parallel()
	killHost(t, "all ports, kept")
}

func TestRootlessPrivateKilledHostPing(t *testing.T) {
	testkit.Need(t, "ping")
	t.Parallel()
	for _, how := range []string{"ping", "ping, kept"} {
		t.Run(how, func(t *testing.T) { killHost(t, how) })
	}
}

// killCell kills the fork server, whose host goes on.
func killCell(t *testing.T, how string) {
	mark := testkit.ALongTime()
	u := startPumping(t, mark, how)
	ns := netNamespace(u.run)
	require.NoError(t, syscall.Kill(initOf(t, u.run), syscall.SIGKILL))
	require.True(t, u.lines.Scan())
	over := time.Now()
	testkit.Eventually(t, "only the run of the other cell is left", func() bool { return len(testkit.Running(mark)) == 1 })
	u.requireOver(t, over)
	require.Contains(t, u.lines.Text(), "the cell is gone")
	require.Contains(t, u.lines.Text(), " another <nil>", "the network goes on in another cell")
	requireUnused(t, ns)
}

func TestPrivateKilledCell(t *testing.T) {
	testkit.Need(t, "root") // the fork server of an ordinary user has another id
	t.Parallel()
	killCell(t, "")
}

func TestPrivateKilledCellPing(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "ping")
	t.Parallel()
	killCell(t, "ping")
}
