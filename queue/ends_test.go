//go:build linux

package queue

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// endsSeen is what the observer of a worker was told of tasks: the states after their attempts.
type endsSeen struct{ states sync.Map }

func (e *endsSeen) AttemptEnded(r Record) { e.states.Store(r.ID, r.State) }

// canceling waits for a task, cancels it after a while, and returns whether it is canceled. Else it
// has ended with the error that Wait is to return then.
func canceling(t testing.TB, q *Queue, id string, after time.Duration, other error) bool {
	t.Helper()
	ctx := testkit.Deadline(t)
	waited := make(chan error, 1)
	go func() {
		_, err := q.Wait(ctx, id)
		waited <- err
	}()
	time.Sleep(after)
	won, err := q.Cancel(ctx, id, "enough")
	assert.NoError(t, err)
	want, state := other, Done
	switch {
	case won:
		want, state = ErrCanceled, Canceled
	case other != nil:
		state = Expired
	}
	_, later := q.WaitAll(ctx, []string{id})
	for _, err := range []error{<-waited, later[0]} {
		assert.ErrorIs(t, err, want, "canceled: %v", won) // which is nil of a result
	}
	s, err := q.Status(ctx, id)
	assert.NoError(t, err)
	assert.Equal(t, state, s.State)
	again, err := q.Cancel(ctx, id, "again")
	assert.NoError(t, err)
	assert.Equal(t, won, again)
	return won
}

// requireOneEach requires that each task has had one end, when nobody has any of them any more.
func requireOneEach(t testing.TB, q *Queue, ended func() map[string]int) {
	t.Helper()
	testkit.Eventually(t, "all messages are acknowledged", func() bool {
		info, err := q.tasks.Info(testkit.Deadline(t))
		require.NoError(t, err)
		return info.State.Msgs == 0
	})
	require.NoError(t, q.nc.Flush())
	for id, n := range ended() {
		require.Equal(t, 1, n, id)
	}
}

// A task that is canceled at the moment of its end has one end, and everybody hears of the same.
func TestCancelOrResult(t *testing.T) {
	q := open(t, Lease(minLease)) // which a message may last whose worker has lost the task
	ended, seen := ends(t, q), &endsSeen{}
	work(t, q, Observe(seen))
	after, canceled := 5*time.Millisecond, map[string]bool{}
	for range 30 {
		id := submit(t, q, Task{Command: shell("true")})
		// So that it comes as close as the machine's noise lets it.
		if canceled[id] = canceling(t, q, id, after, nil); canceled[id] {
			after += time.Millisecond
		} else {
			after = max(after-time.Millisecond, 0)
		}
	}
	requireOneEach(t, q, ended)
	require.Len(t, ended(), len(canceled))
	both := map[bool]int{}
	for id, won := range canceled {
		both[won]++
		state, told := seen.states.Load(id)
		require.Equal(t, !won, told && state == Done, "%s: its worker says %v", id, state)
	}
	require.Len(t, both, 2, "all ended in one way: %v", both)
}

// The same holds of one that is canceled at its deadline, when who waits and a worker find it late.
func TestCancelOrExpiry(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	ended, seen := ends(t, q), &endsSeen{}
	work(t, q, Observe(seen))
	const count, off = 30, 300 * time.Millisecond
	begun := time.Now()
	ids, err := q.SubmitAll(ctx, slices.Repeat([]Task{{Command: shell("true"), Delay: off, Deadline: begun.Add(off)}}, count))
	require.NoError(t, err)
	both := map[bool]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for i, id := range ids {
		group.Go(func() {
			time.Sleep(time.Until(begun.Add(off)))
			for end := (*stateRecord)(nil); end == nil; time.Sleep(time.Millisecond) {
				var err error
				end, err = q.expire(ctx, id, 0)
				assert.NoError(t, err)
			}
		})
		group.Go(func() {
			won := canceling(t, q, id, time.Until(begun.Add(off+time.Duration(i-count/2)*time.Millisecond)), ErrExpired)
			mu.Lock()
			defer mu.Unlock()
			both[won]++
		})
	}
	group.Wait()
	requireOneEach(t, q, ended)
	require.Len(t, ended(), count)
	require.Len(t, both, 2, "all ended in one way: %v", both)
	seen.states.Range(func(id, state any) bool {
		t.Errorf("%v has started: %v", id, state)
		return true
	})
}

// A worker ends a task that comes to it after its deadline, whether or not anybody waits.
func TestWorkerExpires(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	seen := &endsSeen{}
	work(t, q, Observe(seen))
	late := submit(t, q, Task{Command: shell("true"), Delay: 200 * time.Millisecond, Deadline: time.Now().Add(100 * time.Millisecond)})
	mustWait(t, q, submit(t, q, Task{Command: shell("true"), Deadline: time.Now().Add(time.Hour)}))
	require.Zero(t, awaitState(t, q, late, Expired).Attempt)
	testkit.Eventually(t, "its message is acknowledged", func() bool {
		_, err := q.task(ctx, late)
		return errors.Is(err, ErrNotFound)
	})
	_, err := q.Wait(ctx, late)
	require.ErrorIs(t, err, ErrExpired)
	_, started := seen.states.Load(late)
	require.False(t, started)
}
