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

// try takes n if the bucket has that, or is full.
func (b *bucket) try(n int, now time.Time) bool { return b.take(n, min(float64(n), b.burst), now) }

// take takes n if the bucket has at least so much, even if that is not enough.
func (b *bucket) take(n int, least float64, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refill(now); b.has < least {
		return false
	}
	b.has -= float64(n)
	return true
}

// limit is a bucket as one run has it. Connections, which wait until they have paid, keep it in
// debt as soon as there are two, and datagrams, which can't wait, would all be lost. So it lends
// them half of its rate, and the last of that only to runs that send few.
type limit struct {
	*bucket
	loans *bucket
	own   *bucket // what the run may borrow as one that sends few
}

// forRun returns the limit for one run more.
func (l limit) forRun() limit {
	l.own = newBucket(int64(l.rate)/16, burstTime)
	return l
}

// try takes n if the bucket has it or lends it. It returns what it took that of, also if it reports
// false.
func (l limit) try(n int, now time.Time) (from [3]*bucket, ok bool) {
	if l.bucket.try(n, now) {
		from[0] = l.bucket
		return from, true
	}
	least := min(l.loans.burst/2+float64(n), l.loans.burst)
	if l.own.take(n, 1, now) {
		from[0], least = l.own, 1
	}
	if !l.loans.take(n, least, now) {
		return from, false
	}
	l.spend(n, now)
	from[1], from[2] = l.loans, l.bucket
	return from, true
}

// limits is those of one way: of a run, and of its network. Without any, there is no limit.
type limits []limit

// newLimits returns buckets that are not full at first: what takes half a second would be a fifth
// faster than it may be.
func newLimits(rates ...int64) (list limits) {
	for _, rate := range rates {
		if rate > 0 {
			b := newBucket(rate, burstTime)
			b.has /= 4
			list = append(list, limit{bucket: b, loans: newBucket(rate/2, burstTime)}.forRun())
		}
	}
	return list
}

func (l limits) forRun() (list limits) {
	for _, of := range l {
		list = append(list, of.forRun())
	}
	return list
}

// spend takes n of each, and waits until it is paid.
func (l limits) spend(ctx context.Context, n int) error {
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

// try takes n of each, or reports that it can't at once, and takes nothing.
func (l limits) try(n int) bool { return l.tryAt(n, time.Now()) }

func (l limits) tryAt(n int, now time.Time) bool {
	if len(l) == 0 {
		return true
	}
	from, ok := l[0].try(n, now)
	if ok && l[1:].tryAt(n, now) {
		return true
	}
	for _, b := range from {
		if b != nil {
			b.spend(-n, now)
		}
	}
	return false
}

// What is copied before it is paid for.
const (
	minChunk = 2 << 10
	maxChunk = 64 << 10
)

func (l limits) chunk() int64 {
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
