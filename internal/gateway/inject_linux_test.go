package gateway

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A connection that is served here, in place of being copied, is as fast as it may be, each way by
// itself.
func TestPaced(t *testing.T) {
	const rate, size = 1 << 20, 256 << 10
	run, near := net.Pipe()
	t.Cleanup(func() { run.Close() })
	p := &paced{Conn: near, m: &Member{ctx: t.Context(), sent: newLimits(rate), received: newLimits(rate)}}
	go func() { _, _ = run.Write(make([]byte, size)) }()
	go func() { _, _ = io.Copy(io.Discard, run) }()
	begin, took := time.Now(), make(chan time.Duration)
	for _, pass := range []func(b []byte) (int, error){p.Write, func(b []byte) (int, error) { return io.ReadFull(p, b) }} {
		go func() {
			_, _ = pass(make([]byte, size))
			took <- time.Since(begin)
		}()
	}
	for range 2 {
		require.InDelta(t, 0.25, (<-took).Seconds(), 0.1)
	}
	require.Equal(t, []int64{size, size}, []int64{p.read.Load(), p.written.Load()})
}
