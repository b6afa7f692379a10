package gateway

import (
	"context"
	"sync"
	"time"
)

// bucket says how fast something may go: a token bucket, which may be in debt.
type bucket struct {
	rate  float64 // per second
	burst float64

	mu   sync.Mutex
	has  float64
	when time.Time // has was so
}

// burstTime is how long a bucket collects what nobody uses.
const burstTime = time.Second / 10

func newBucket(rate int64, burst time.Duration) *bucket {
	b := &bucket{rate: float64(rate), burst: max(1, float64(rate)*burst.Seconds())}
	b.has = b.burst
	return b
}

func (b *bucket) refill(now time.Time) {
	if !b.when.IsZero() {
		b.has = min(b.burst, b.has+b.rate*now.Sub(b.when).Seconds())
	}
	b.when = now
}

// spend takes n, and returns how long to wait until that is paid.
func (b *bucket) spend(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill(now)
	b.has -= float64(n)
	return max(0, time.Duration(-b.has/b.rate*float64(time.Second)))
}

// try takes n if the bucket is not in debt for it. The first is taken in any case: no time is known
// in which a bucket that is not full at first could have collected for it.
func (b *bucket) try(n int, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.when.IsZero()
	if b.refill(now); !first && b.has < min(float64(n), b.burst) {
		return false
	}
	b.has -= float64(n)
	return true
}

// buckets is those of one way: of a run, and of its network. Without any, there is no limit.
type buckets []*bucket

// newBuckets returns buckets that are not full at first: what takes half a second would be a fifth
// faster than it may be.
func newBuckets(rates ...int64) (list buckets) {
	for _, rate := range rates {
		if rate > 0 {
			b := newBucket(rate, burstTime)
			b.has /= 4
			list = append(list, b)
		}
	}
	return list
}

// spend takes n of each, and waits until it is paid.
func (l buckets) spend(ctx context.Context, n int) error {
	var wait time.Duration
	now := time.Now()
	for _, b := range l {
		wait = max(wait, b.spend(n, now))
	}
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try takes n of each, or reports that it can't at once.
func (l buckets) try(n int) bool {
	now := time.Now()
	for _, b := range l {
		if !b.try(n, now) {
			return false
		}
	}
	return true
}

// What is copied before it is paid for.
const (
	minChunk = 2 << 10
	maxChunk = 64 << 10
)

func (l buckets) chunk() int64 {
	n := float64(maxChunk)
	for _, b := range l {
		n = min(n, b.burst/4)
	}
	return max(minChunk, int64(n))
}

// share is the connections that a run may have, one way.
type share struct {
	places chan struct{}
	begun  *bucket
}

func newShare(c *Config) *share {
	return &share{make(chan struct{}, c.MaxConns), newBucket(int64(c.MaxNewConns), time.Second)}
}

var (
	errTooMany = &refusal{"the run has as many connections as MaxConns allows"}
	errTooFast = &refusal{"the run begins more connections in a second than MaxNewConns allows"}
)

// take takes a place, which must be given back.
func (s *share) take() error {
	if !s.begun.try(1, time.Now()) {
		return errTooFast
	}
	select {
	case s.places <- struct{}{}:
		return nil
	default:
		return errTooMany
	}
}

func (s *share) give() { <-s.places }
