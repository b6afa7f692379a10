//go:build linux

package queue

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// sooner is less than a lease, after which all comes again.
const sooner = 10 * time.Second

// idle returns a worker that runs nothing.
func idle(q *Queue) *Worker {
	return &Worker{q: q, classes: []string{"default"}, log: slog.New(slog.DiscardHandler)}
}

// handedOut has the servers hand out the next task of the default lane, to nobody.
func handedOut(t *testing.T, q *Queue) (m *nats.Msg) {
	t.Helper()
	w := idle(q)
	r := &requests{w: w, from: newPuller(w, nil).shelves[1].lanes[0], got: func(_ *request, got *nats.Msg) { m = got }}
	defer r.close()
	testkit.Eventually(t, "a task is handed out", func() bool {
		asked, err := r.ask(testkit.Deadline(t), 1, 0)
		require.NoError(t, err)
		require.NoError(t, asked.err)
		return asked.given == 1
	})
	return m
}

// A task that was handed out, and arrived nowhere, is had by who was not answered, before its lease
// is over; one that somebody has, or that waits for its time, is not sent back.
func TestLost(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	lost := submit(t, q, Task{Command: []string{"true"}})
	handedOut(t, q)
	submit(t, q, Task{Command: []string{"true"}, Delay: time.Hour})
	handedOut(t, q)
	claimed := submit(t, q, Task{Command: []string{"true"}})
	meta, err := handedOut(t, q).Metadata()
	require.NoError(t, err)
	_, err = q.replace(ctx, claimed, &stateRecord{State: Running, Attempt: 1, Worker: "other", Message: meta.Sequence.Stream}, 0)
	require.NoError(t, err)

	var group sync.WaitGroup
	p := newPuller(idle(q), &group)
	p.ctx = ctx
	began := time.Now()
	for range 3 {
		p.check(&request{from: p.shelves[1].lanes[0], err: errSilent})
	}
	group.Wait()
	work(t, q)
	mustWait(t, q, lost)
	require.Less(t, time.Since(began), sooner)
	c, err := q.consumer(ctx, "default", "normal")
	require.NoError(t, err)
	testkit.Eventually(t, "it is acknowledged", func() bool {
		info, err := c.Info(ctx)
		require.NoError(t, err)
		// Two have no end, and were handed out once.
		require.Equal(t, info.NumAckPending-2, info.NumRedelivered, "what was not lost is not sent back")
		return info.NumAckPending == 2
	})
}

// What comes for a request that was given up goes back.
func TestLateAnswer(t *testing.T) {
	dir := t.TempDir()
	first, err := Open(testkit.Deadline(t), "", Dir(dir), Lease(10*time.Minute)) // which stays
	require.NoError(t, err)
	first.Close()
	url, server := serve(t, dir, "127.0.0.1:0")
	q, err := Open(testkit.Deadline(t), url)
	require.NoError(t, err)
	defer q.Close()
	submit(t, q, Task{Command: []string{"true"}})
	w := idle(q)
	l := newPuller(w, nil).shelves[1].lanes[0]
	r := &requests{w: w, from: l, got: func(*request, *nats.Msg) { t.Error("it came in time") }}
	_, err = q.consumer(testkit.Deadline(t), l.class, l.route)
	require.NoError(t, err)
	require.NoError(t, server.Signal(syscall.SIGSTOP))
	testkit.Eventually(t, "it has stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server.Pid))
		require.NoError(t, err)
		return bytes.Contains(stat, []byte(") T "))
	})
	asked, err := r.ask(testkit.Deadline(t), 1, 0)
	require.NoError(t, err)
	require.ErrorIs(t, asked.err, errSilent)
	require.NoError(t, server.Signal(syscall.SIGCONT))
	meta, err := handedOut(t, q).Metadata()
	require.NoError(t, err)
	require.EqualValues(t, 2, meta.NumDelivered)
}

// Nobody sends back what may be another's by now.
func TestStale(t *testing.T) {
	q := open(t, Lease(10*time.Minute))
	id := submit(t, q, Task{Command: []string{"true"}})
	m := handedOut(t, q)
	w := idle(q)
	p := pulled{m: m, lease: 10 * time.Minute, asked: clockNow() - 10*time.Minute}
	w.attempt(testkit.Deadline(t), p)
	(&puller{w: w}).start(canceled(), p)
	c, err := q.consumer(testkit.Deadline(t), "default", "normal")
	require.NoError(t, err)
	info := func() int {
		// What was sent before is done then.
		_, err := q.nc.Request(m.Reply, []byte("+WPI"), testkit.Patience)
		require.NoError(t, err)
		info, err := c.Info(testkit.Deadline(t))
		require.NoError(t, err)
		return info.NumRedelivered
	}
	require.Zero(t, info())
	p.asked = clockNow() - 6*time.Minute // too old to be begun
	w.attempt(testkit.Deadline(t), p)
	work(t, q)
	require.Equal(t, id, mustWait(t, q, id).ID)
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// requeuer puts a dead letter back before the worker's lease of it is over.
type requeuer struct {
	q     *Queue
	t     *testing.T
	again chan Record
	once  sync.Once
}

func (r *requeuer) AttemptEnded(done Record) {
	first := false
	r.once.Do(func() {
		first = true
		require.NoError(r.t, r.q.Requeue(testkit.Deadline(r.t), done.ID))
		time.Sleep(500 * time.Millisecond) // for it to be handed out
	})
	if !first {
		r.again <- done
	}
}

// A task that is put back while the worker still has a lease of it is not left to that lease.
func TestPutBackAtOnce(t *testing.T) {
	q := open(t)
	r := &requeuer{q: q, t: t, again: make(chan Record, 1)}
	work(t, q, Observe(r))
	id := submit(t, q, Task{Command: shell("exit 3"), Retry: Retry{Attempts: 1, Failures: true}})
	select {
	case again := <-r.again:
		require.Equal(t, id, again.ID)
	case <-time.After(sooner):
		require.Fail(t, "it is not tried again before the lease is over")
	}
}

// A consumer that was made anew counts from 1, and what the one before had counted does not keep
// its tasks from workers.
func TestConsumerMadeAnew(t *testing.T) {
	q := open(t, Lease(time.Minute))
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: []string{"true"}})
	meta, err := handedOut(t, q).Metadata()
	require.NoError(t, err)
	c, err := q.consumer(ctx, "default", "normal")
	require.NoError(t, err)
	_, err = q.replace(ctx, id, &stateRecord{State: Running, Attempt: 1, Worker: "mine", Message: meta.Sequence.Stream, Delivered: 5, Counted: c.CachedInfo().Created.UnixNano()}, 0)
	require.NoError(t, err)
	require.NoError(t, q.tasks.DeleteConsumer(ctx, "default-normal"))
	work(t, q, WorkerName("mine"))
	require.Equal(t, 2, mustWait(t, q, id).Attempt)
}

// The servers of a cluster choose another leader for a lane again and again, and lose some of what
// they hand out then, or do not answer. The worker goes on, and no task is tried twice.
func TestLeaderChanges(t *testing.T) {
	q, err := Open(testkit.Deadline(t), startCluster(t, false).url(0, 1, 2))
	require.NoError(t, err)
	defer q.Close()
	p := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(t, p.Close(context.Background())) }()
	w := NewWorker(q, p, Slots(8))
	w.execute = func(context.Context, ...sandbox.Option) (*sandbox.Result, error) {
		return &sandbox.Result{Reason: sandbox.Exited}, nil
	}
	ctx, stop := context.WithCancel(longDeadline(t))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(t, <-ended)
	}()
	mustWait(t, q, submit(t, q, Task{Command: []string{"true"}}))
	for range 3 {
		began := time.Now()
		asked := make(chan error, 1)
		time.AfterFunc(20*time.Millisecond, func() {
			_, err := q.nc.RequestWithContext(ctx, "$JS.API.CONSUMER.LEADER.STEPDOWN.sandbox-tasks.default-normal", nil)
			asked <- err
		})
		for done := false; !done; { // tasks are under way all the time
			ids, err := q.SubmitAll(ctx, slices.Repeat([]Task{{Command: []string{"true"}}}, 20))
			require.NoError(t, err)
			for _, id := range ids {
				require.Equal(t, 1, mustWait(t, q, id).Attempt)
			}
			select {
			case err := <-asked:
				require.NoError(t, err)
				done = true
			default:
			}
		}
		require.Less(t, time.Since(began), 15*time.Second+sooner, "more than a lease")
	}
}

// A task that was claimed a moment ago is left to who has it, who may not answer now, though the
// servers hand it out again.
func TestClaimedAMomentAgo(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t, Lease(minLease))
	id := submit(t, q, Task{Command: []string{"true"}})
	m := handedOut(t, q)
	meta, err := m.Metadata()
	require.NoError(t, err)
	_, err = q.replace(testkit.Deadline(t), id, &stateRecord{State: Running, Attempt: 1, Worker: "other", Message: meta.Sequence.Stream, Delivered: 1}, 0)
	require.NoError(t, err)
	claimed := time.Now()
	require.NoError(t, m.Nak())
	work(t, q)
	res := mustWait(t, q, id)
	require.Equal(t, 2, res.Attempt)
	require.Greater(t, res.Started.Sub(claimed), minLease-restartLoss)
}
