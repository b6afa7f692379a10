//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("spray", sprayHelper) }

// sprayHelper sends datagrams to an address, at so many bytes per second and for a time. It prints
// when it begins and when that is over, and then how many it sent and how many came back.
func sprayHelper(args []string) error {
	var rate float64
	if _, err := fmt.Sscan(args[1], &rate); err != nil {
		return err
	}
	whole, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp4", args[0])
	if err != nil {
		return err
	}
	var sent, got atomic.Int64
	go func() {
		for b := make([]byte, 1200); ; {
			if _, err := conn.Read(b); err != nil {
				return
			}
			got.Add(1)
		}
	}()
	fmt.Println("begun")
	for begin := time.Now(); time.Since(begin) < whole; time.Sleep(time.Millisecond) {
		for float64(sent.Load()*1200) < rate*time.Since(begin).Seconds() {
			_, _ = conn.Write(make([]byte, 1200))
			sent.Add(1)
		}
	}
	fmt.Println("over")
	time.Sleep(100 * time.Millisecond) // for the last answers
	fmt.Println(sent.Load(), got.Load())
	return nil
}

// spray is a run that sends datagrams.
type spray struct {
	*sandbox.Process
	lines *bufio.Reader
}

// startSpray returns when the run begins to send.
func startSpray(t *testing.T, n *sandbox.PrivateNetwork, name, to string, rate int, whole string) *spray {
	t.Helper()
	r, w := io.Pipe()
	s := &spray{lines: bufio.NewReader(r)}
	s.Process = runs.Start(t, runs.Helper("spray", to, fmt.Sprint(rate), whole).With(sandbox.WithNetwork(n.As(name)), sandbox.WithStdout(w)))
	s.next(t)
	return s
}

func (s *spray) next(t *testing.T) string {
	t.Helper()
	line, err := s.lines.ReadString('\n')
	require.NoError(t, err)
	return line
}

// whileSent returns what a meter counts per second until all is sent.
func (s *spray) whileSent(t *testing.T, m *meter) float64 {
	t.Helper()
	begin, before := time.Now(), m.Load()
	s.next(t)
	return float64(m.Load()-before) / time.Since(begin).Seconds()
}

// cameBack returns which part of the datagrams came back.
func (s *spray) cameBack(t *testing.T) float64 {
	t.Helper()
	var sent, got float64
	_, err := fmt.Sscan(s.next(t), &sent, &got)
	require.NoError(t, err)
	return got / sent
}

// meter counts what is written to it.
type meter struct{ atomic.Int64 }

func (m *meter) Write(b []byte) (int, error) {
	m.Add(int64(len(b)))
	return len(b), nil
}

// pumpWith sends over a connection what it can, and counts what comes.
func pumpWith(conn net.Conn, got *meter) {
	defer conn.Close()
	go func() { _, _ = io.Copy(conn, zeros{}) }()
	_, _ = io.Copy(got, conn)
}

// Runs share a network's bandwidth, each way: one has connections, out and to where it is
// published, as fast as they may be, and others' datagrams pass beside them, up to half of it,
// those of a run that sends few in any case.
func TestRootlessPrivateBandwidthShared(t *testing.T) {
	t.Parallel()
	const rate = 2 << 20
	var connected meter
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go pumpWith(conn, &connected)
		}
	}()
	port, udp, other := l.Addr().(*net.TCPAddr).Port, datagramEcho(t, "127.0.0.1"), datagramEcho(t, "127.0.0.1")
	var seen observer
	n := newNetwork(t, append(local(t, port), sandbox.AllowHost("one.test", sandbox.UDP(udp, other)), sandbox.AllowCIDR("127.0.0.1", sandbox.UDP(udp, other)), sandbox.Bandwidth(rate), sandbox.NetworkObserver(seen.tell))...)
	to := at("one.test", port)
	bulk := runs.Start(t, runs.Helper("pump", to, "bulk").With(sandbox.WithNetwork(n.As("bulk")), sandbox.WithPublish("127.0.0.1:0", 80)))
	var published net.Conn
	testkit.Eventually(t, "it is published", func() bool {
		if published, err = net.Dial("tcp", bulk.Published()[0].String()); err == nil {
			_, err = published.Read(make([]byte, 1))
		}
		return err == nil
	})
	go pumpWith(published, &connected)

	few := startSpray(t, n, "few", at("one.test", udp), rate/20, "500ms")
	require.InDelta(t, 1, few.whileSent(t, &connected)/rate, 0.3, "beside few datagrams")
	require.InDelta(t, 1, few.cameBack(t), 0.2, "of few datagrams")
	many := startSpray(t, n, "many", at("one.test", other), rate, "1m")
	few = startSpray(t, n, "few", at("one.test", udp), rate/20, "500ms")
	beside := few.whileSent(t, &connected) / rate
	require.Greater(t, beside, 0.2, "beside many datagrams")
	require.InDelta(t, 1, few.cameBack(t), 0.2, "of few, beside many")
	for _, p := range []*sandbox.Process{many.Process, bulk} {
		require.NoError(t, p.Kill())
		_, _ = p.Wait()
	}
	c := seen.await(t, "many", func(c sandbox.Conn) bool { return c.Run == "many" })
	sent := float64(c.Sent) / c.Duration.Seconds() / rate
	require.Less(t, sent, 0.7, "of many datagrams")
	if !testkit.InGuest { // there a run may not send as much, beside what else goes on
		require.Greater(t, sent, 0.3, "of many datagrams")
		require.Less(t, beside, 0.8, "beside many datagrams")
	}
	in := 0.0
	for _, is := range []func(sandbox.Conn) bool{
		func(c sandbox.Conn) bool { return c.Published && c.Verdict == sandbox.Allowed },
		func(c sandbox.Conn) bool { return c.Run == "bulk" && !c.Published },
	} {
		c := seen.await(t, "a connection", is)
		in += float64(c.Received) / c.Duration.Seconds() / rate
	}
	require.InDelta(t, 0.8, in, 0.3, "what it got, beside all of these")
}
