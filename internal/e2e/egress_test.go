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

// local returns options with which runs reach a port of this machine's loopback as one.test.
func local(t *testing.T, port int) []sandbox.NetworkOption {
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	return []sandbox.NetworkOption{sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver())}
}

// Both ways at once, for one run and for several together. That it is not slower than it should be
// is a matter of how loaded the machine is: TestBuckets.
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
	n := newNetwork(t, append(local(t, port), sandbox.MaxNewConns(10), sandbox.NetworkObserver(seen.tell))...)
	begin := time.Now()
	var got int
	_, err := fmt.Sscan(runs.Output(t, runs.Helper("burst", at("one.test", port)).With(sandbox.WithNetwork(n.As("client")))), &got)
	require.NoError(t, err)
	require.GreaterOrEqual(t, got, 10)
	require.LessOrEqual(t, got, 11+int(10*time.Since(begin).Seconds()))
	require.ErrorContains(t, seen.await(t, "the others", func(c sandbox.Conn) bool { return c.Verdict == sandbox.Refused }).Err, "MaxNewConns")
}
