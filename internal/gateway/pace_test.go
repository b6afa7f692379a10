package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever pays as soon as it may goes as fast as the bucket says, whatever the pieces, and also
// after a time in which nobody wanted anything.
func TestBuckets(t *testing.T) {
	for _, pieces := range [][]int{{100}, {1000}, {1, 70_000, 1500}, {3_000_000}} {
		b, now := newBucket(1<<20, burstTime), time.Unix(1000, 0)
		for range 2 {
			begin, sent := now, 0
			b.spend(int(b.burst), now)
			for i := 0; now.Sub(begin) < 2*time.Second; i++ {
				n := pieces[i%len(pieces)]
				now = now.Add(b.spend(n, now))
				sent += n
			}
			require.InEpsilon(t, float64(sent), now.Sub(begin).Seconds()*(1<<20), 0.01, pieces)
			now = now.Add(time.Hour)
		}
	}
	b, now, taken := newBucket(10, time.Second), time.Unix(1000, 0), 0
	for range 1000 {
		if b.try(1, now) {
			taken++
		}
		now = now.Add(10 * time.Millisecond)
	}
	require.InDelta(t, 10+10*10, taken, 1)
}
