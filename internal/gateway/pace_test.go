package gateway

import (
	"slices"
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

// sender sends pieces over a limit: as soon as it has paid, or, with pause, one after each, of
// which some are lost.
type sender struct {
	limit
	size  int
	pause time.Duration
	due   time.Time
	sent  int
}

func (s *sender) send(now time.Time) {
	switch {
	case s.pause == 0:
		s.sent += s.size
		s.due = now.Add(max(1, s.spend(s.size, now)))
	default:
		if (limits{s.limit}).tryAt(s.size, now) {
			s.sent += s.size
		}
		s.due = now.Add(s.pause)
	}
}

// Connections, however many, and datagrams, however large, each get half of a bucket and what the
// others leave. Together they go as fast as it says, and a run that sends few datagrams loses none.
func TestLimitsShared(t *testing.T) {
	const rate, seconds = 4 << 20, 10
	for _, test := range []struct {
		conns, size     int
		offered, passed float64 // of one run's datagrams, of the rate
	}{
		{0, 1200, 0.4, 0.4}, {0, 1200, 3, 0.95}, {0, 60_000, 3, 0.95},
		{1, 1200, 0.4, 0.4}, {1, 1200, 3, 0.45}, {1, 60_000, 3, 0.45},
		{2, 1200, 0.4, 0.4}, {2, 1200, 3, 0.45}, {2, 60_000, 3, 0.45},
		{64, 1200, 0.4, 0.4}, {64, 1200, 3, 0.45}, {64, 60_000, 3, 0.45},
	} {
		l, start := newLimits(rate), time.Unix(1000, 0)
		datagrams := func(size int, offered float64) *sender {
			return &sender{limit: l[0].forRun(), size: size, pause: time.Duration(float64(size) / (offered * rate) * float64(time.Second))}
		}
		many, few := datagrams(test.size, test.offered), datagrams(1200, 0.05)
		all := []*sender{many, few}
		for range test.conns {
			all = append(all, &sender{limit: l[0], size: int(l.chunk())})
		}
		next := func() *sender {
			return slices.MinFunc(all, func(a, b *sender) int { return a.due.Compare(b.due) })
		}
		for _, s := range all {
			s.due = start
		}
		for s := next(); s.due.Before(start.Add(seconds * time.Second)); s = next() {
			s.send(s.due)
		}
		of := func(n int) float64 { return float64(n) / (seconds * rate) }
		require.InDelta(t, test.passed, of(many.sent), 0.03, test)
		require.InDelta(t, 0.05, of(few.sent), 0.001, test)
		sum := int(min(0, l[0].has)) // what is owed
		for _, s := range all {
			sum += s.sent
		}
		require.InDelta(t, min(1, 0.05+test.offered+float64(test.conns)), of(sum), 0.01, test)
	}
}

// What one limit gives or lends is still there if it, or another one, refuses: a run does not pay
// for datagrams that are lost.
func TestRefusedIsNotPaid(t *testing.T) {
	const rate, n = 1 << 20, 1000
	now := time.Unix(1000, 0)
	for name, empty := range map[string]func(run limit){
		"the run's gives":  func(limit) {},
		"the run's lends":  func(run limit) { run.has = 0 },
		"the run's refuse": func(run limit) { run.has, run.loans.has = 0, 0 },
	} {
		l := newLimits(rate, rate)
		empty(l[0])
		l[1].has, l[1].loans.has = 0, 0
		has := func() (list []float64) {
			for _, of := range l {
				list = append(list, of.has, of.loans.has, of.own.has)
			}
			return list
		}
		before := has()
		require.False(t, l.tryAt(n, now), name)
		require.InDeltaSlice(t, before, has(), 1e-6, name)
		l[1].has = n
		require.Equal(t, l[0].loans.has > 0, l.tryAt(n, now), name)
	}
}
