//go:build linux

package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// staged is a worker in this process in whose runs nothing runs: each ends when it is told to.
type staged struct {
	*Worker
	begun  chan string        // gets the first word of each command that begins
	finish chan int           // is taken from by each run, which exits with the value
	end    context.CancelFunc // of Run's context
	ended  chan error         // gets what Run returns
	grace  atomic.Int64       // for how long a run goes on that is to end, ns
}

func stage(t *testing.T, q *Queue, opts ...WorkerOption) *staged {
	t.Helper()
	p := pool.New(sandbox.New(), 4)
	s := &staged{begun: make(chan string, 1000), finish: make(chan int), ended: make(chan error, 1)}
	s.Worker = NewWorker(q, p, append([]WorkerOption{Slots(2)}, opts...)...)
	s.execute = func(ctx context.Context, opts ...sandbox.Option) (*sandbox.Result, error) {
		var c spec.Spec
		for _, o := range opts {
			o(&c)
		}
		if err := c.Supervision.Before(ctx); err != nil {
			return nil, err
		}
		s.begun <- c.Command.Argv[0]
		select {
		case code := <-s.finish:
			r := &sandbox.Result{Reason: sandbox.Exited, ExitCode: code}
			if code != 0 {
				return r, &sandbox.ExitError{Result: r}
			}
			return r, nil
		case <-ctx.Done():
			time.Sleep(time.Duration(s.grace.Load()))
			return nil, context.Cause(ctx)
		}
	}
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	go func() {
		s.ended <- s.Run(ctx)
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.end()
		<-s.ended
		require.NoError(t, p.Close(context.Background()))
	})
	return s
}

// begins requires that a task begins here, before a lease could be over.
func (s *staged) begins(t *testing.T, name string) {
	t.Helper()
	select {
	case begun := <-s.begun:
		require.Equal(t, name, begun)
	case <-time.After(sooner):
		require.Fail(t, name+" does not begin")
	}
}

// returns requires that Run returns.
func (s *staged) returns(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.ended:
		require.NoError(t, err)
	case <-time.After(sooner):
		require.Fail(t, "Run does not return")
	}
}

func named(name string) Task { return Task{Command: []string{name}, Retry: Retry{Attempts: 1}} }

// A worker that is drained takes no more tasks, which others get at once, lets go on what it runs,
// and returns when that has ended.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Dir(dir))
	ctx := testkit.Deadline(t)
	w := stage(t, q, WorkerName("drained"))
	id := submit(t, q, named("a"))
	w.begins(t, "a")
	other := stage(t, q, WorkerName("other"), MaxLimits(Limits{Memory: 64 << 20}))
	w.Drain(time.Hour)
	for n := range 4 {
		submit(t, q, named(fmt.Sprint(n)))
		other.begins(t, fmt.Sprint(n))
		other.finish <- 0
	}
	testkit.Eventually(t, "it says so", func() bool {
		time.Sleep(20 * time.Millisecond)
		said := map[string]bool{}
		for s, err := range q.Workers(ctx) {
			require.NoError(t, err)
			said[s.Name] = s.Draining
		}
		return maps.Equal(said, map[string]bool{"drained": true, "other": false})
	})
	stats, err := q.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, stats.Slots, "one is taken, and no more")
	require.Equal(t, 3, stats.Classes["default"].Slots)
	large := named("large")
	large.Limits.Memory = 65 << 20
	_, err = q.Wait(ctx, submit(t, q, large))
	require.ErrorIs(t, err, ErrDead, "it is left to one that takes no more")
	require.Empty(t, w.ended, "it waits")
	awaitState(t, q, id, Running)

	w.finish <- 0
	w.returns(t)
	other.end()
	other.returns(t)
	q.Close() // which loses nothing
	s := awaitState(t, open(t, Dir(dir)), id, Done)
	require.Equal(t, 1, s.Attempt)
	require.Equal(t, "drained", s.Worker)
	require.Empty(t, w.begun)
}

// What runs when a drained worker's time is over is given back, and does not count as an attempt.
func TestDrainIsOver(t *testing.T) {
	for name, end := range map[string]func(*staged){
		"its time is over":     func(w *staged) { w.Drain(50 * time.Millisecond) },
		"an earlier end":       func(w *staged) { w.Drain(time.Hour); w.Drain(0); w.Drain(time.Hour) },
		"Run's context ends":   func(w *staged) { w.Drain(time.Hour); w.end() },
		"it was not to wait":   func(w *staged) { w.Drain(-1) },
		"Run's context, alone": func(w *staged) { w.end() },
	} {
		t.Run(name, func(t *testing.T) {
			q := open(t)
			w := stage(t, q)
			id := submit(t, q, Task{Command: []string{"a"}, Retry: Retry{Attempts: 2, Failures: true, Backoff: time.Millisecond}})
			w.begins(t, "a")
			end(w)
			w.returns(t)
			s := awaitState(t, q, id, Waiting)
			require.Equal(t, 1, s.Attempt)
			require.Equal(t, errStopped.Error(), s.Text)
			w = stage(t, q)
			w.begins(t, "a")
			w.finish <- 3
			w.begins(t, "a")
			w.finish <- 0
			require.Equal(t, 3, mustWait(t, q, id).Attempt)
		})
	}
}

// A worker that is drained before it runs, or while it runs nothing, returns.
func TestDrainIdle(t *testing.T) {
	q := open(t)
	p := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(t, p.Close(context.Background())) }()
	w := NewWorker(q, p)
	w.Drain(time.Hour)
	require.NoError(t, w.Run(testkit.Deadline(t)))
	idle := stage(t, q)
	mustFinish(t, q, idle)
	idle.Drain(time.Hour)
	idle.returns(t)
}

// mustFinish has a worker run a task.
func mustFinish(t *testing.T, q *Queue, w *staged) {
	t.Helper()
	id := submit(t, q, named("first"))
	w.begins(t, "first")
	w.finish <- 0
	mustWait(t, q, id)
}

// A task that is tried again is so by another worker: the drained one does not wait for it.
func TestDrainRetries(t *testing.T) {
	q := open(t)
	w := stage(t, q)
	id := submit(t, q, Task{Command: []string{"a"}, Retry: Retry{Attempts: 2, Failures: true, Backoff: time.Second}})
	w.begins(t, "a")
	w.Drain(time.Hour)
	w.finish <- 3
	w.returns(t)
	awaitState(t, q, id, Waiting)
	other := stage(t, q)
	other.begins(t, "a")
	other.finish <- 3
	_, err := q.Wait(testkit.Deadline(t), id)
	require.ErrorIs(t, err, ErrDead, "both attempts count")
	require.Empty(t, w.begun)
}

// What ends the run of a task ends it while its worker is drained, too.
func TestDrainLoses(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	w := stage(t, q)
	canceled, lost := submit(t, q, named("a")), ""
	w.begins(t, "a")
	lost = submit(t, q, named("b"))
	w.begins(t, "b")
	w.Drain(time.Hour)
	won, err := q.Cancel(ctx, canceled, "enough")
	require.NoError(t, err)
	require.True(t, won)
	now, seq, err := q.state(ctx, lost)
	require.NoError(t, err)
	now.Attempt, now.Worker = 2, "other"
	seq, err = q.replace(ctx, lost, now, seq)
	require.NoError(t, err)
	require.NotZero(t, seq)
	w.returns(t)
	require.Equal(t, Canceled, awaitState(t, q, canceled, Canceled).State)
	require.Equal(t, "other", awaitState(t, q, lost, Running).Worker)
}

// A worker that is drained while no server answers ends when its time is over, and soon, however
// long its lease is.
func TestDrainServerAway(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	open(t, Dir(dir), Lease(time.Hour)).Close()
	url, server := serve(t, dir, "127.0.0.1:0")
	q, err := Open(testkit.Deadline(t), url)
	require.NoError(t, err)
	defer q.Close()
	w := stage(t, q)
	for _, name := range []string{"goes on", "ends"} {
		submit(t, q, named(name))
		w.begins(t, name)
	}
	require.NoError(t, server.Kill())
	w.finish <- 0 // which can't be written
	w.Drain(100 * time.Millisecond)
	select {
	case err := <-w.ended:
		require.NoError(t, err)
	case <-time.After(3 * sooner):
		require.Fail(t, "Run does not return")
	}
}

// A task whose run is long about its end is given back after that, and loses no attempt.
func TestDrainSlowEnd(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t, Lease(time.Hour))
	w := stage(t, q)
	w.grace.Store(int64(giveBackTime + time.Second))
	id := submit(t, q, named("a"))
	w.begins(t, "a")
	w.Drain(0)
	select {
	case err := <-w.ended:
		require.NoError(t, err)
	case <-time.After(testkit.Patience):
		require.Fail(t, "Run does not return")
	}
	other := stage(t, q)
	other.begins(t, "a")
	other.finish <- 0
	mustWait(t, q, id)
}

// Leases of what runs are renewed while the worker is drained, and it answers who asks for them.
func TestDrainKeepsLeases(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t, Lease(minLease))
	w := stage(t, q, WorkerName("drained"))
	id := submit(t, q, named("a"))
	w.begins(t, "a")
	w.Drain(time.Hour)
	other := stage(t, q)
	time.Sleep(minLease + time.Second)
	c, err := q.consumer(testkit.Deadline(t), "default", "normal")
	require.NoError(t, err)
	info, err := c.Info(testkit.Deadline(t))
	require.NoError(t, err)
	require.Zero(t, info.NumRedelivered)
	require.Equal(t, held, q.ask(testkit.Deadline(t), "default", "drained", id))
	w.finish <- 0
	w.returns(t)
	require.Equal(t, 1, mustWait(t, q, id).Attempt)
	require.Empty(t, other.begun)
}

// Of two workers one is drained while tasks come: each task runs once.
func TestDrainOfTwo(t *testing.T) {
	q := open(t)
	ctx := longDeadline(t)
	workers := []*staged{stage(t, q, Slots(8)), stage(t, q, Slots(8))}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer func() {
		for _, w := range workers {
			w.end()
		}
	}()
	for _, w := range workers {
		serving.Go(func() {
			for {
				select {
				case w.finish <- 0:
					time.Sleep(time.Millisecond)
				case <-w.ended:
					return
				}
			}
		})
	}
	var tasks []Task
	for n := range 400 {
		tasks = append(tasks, named(fmt.Sprint(n)))
	}
	ids, err := q.SubmitAll(ctx, tasks[:200])
	require.NoError(t, err)
	workers[0].Drain(time.Hour)
	more, err := q.SubmitAll(ctx, tasks[200:])
	require.NoError(t, err)
	results, errs := q.WaitAll(ctx, append(ids, more...))
	require.NoError(t, errors.Join(errs...))
	for _, r := range results {
		require.Equal(t, 1, r.Attempt)
	}
	ran := map[string]int{}
	for _, w := range workers {
		for len(w.begun) > 0 {
			ran[<-w.begun]++
		}
	}
	require.Len(t, ran, len(tasks))
	require.Equal(t, 1, slices.Max(slices.Collect(maps.Values(ran))))
}

// A task that a drained worker has got and not claimed goes back at once.
func TestDrainUnclaimed(t *testing.T) {
	q := open(t)
	p := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(t, p.Close(context.Background())) }()
	w := NewWorker(q, p)
	var err error
	w.fence, err = newFence(false)
	require.NoError(t, err)
	id := submit(t, q, named("a"))
	asked := clockNow()
	m := handedOut(t, q)
	w.Drain(time.Hour)
	w.attempt(testkit.Deadline(t), pulled{m: m, asked: asked, lease: q.config.lease, from: newPuller(w, nil).shelves[1].lanes[0]})
	s, err := q.Status(testkit.Deadline(t), id)
	require.NoError(t, err)
	require.Zero(t, s.Attempt)
	other := stage(t, q)
	other.begins(t, "a")
	other.finish <- 0
	require.Equal(t, 1, mustWait(t, q, id).Attempt)
}

// Calls go on while their worker is drained, and are given back as commands are.
func TestDrainCalls(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	w := stage(t, q)
	ends, err := SubmitCall(ctx, q, asked, question{Do: "nap", N: 300})
	require.NoError(t, err)
	goesOn, err := SubmitCall(ctx, q, asked, question{Do: "wait"}, Task{Retry: Retry{Attempts: 1}})
	require.NoError(t, err)
	awaitState(t, q, ends, Running)
	awaitState(t, q, goesOn, Running)
	w.Drain(time.Hour)
	got, err := WaitCall(ctx, q, asked, ends)
	require.NoError(t, err)
	require.Equal(t, 300, got.In["n"])
	awaitState(t, q, goesOn, Running)
	w.Drain(0)
	w.returns(t)
	s := awaitState(t, q, goesOn, Waiting)
	require.Equal(t, 1, s.Attempt)
	require.Equal(t, errStopped.Error(), s.Text)
	_, err = q.Cancel(ctx, goesOn, "enough")
	require.NoError(t, err)
}

// A replica is moved when its worker begins to be drained, as it does not end.
func TestDrainReplica(t *testing.T) {
	q := open(t)
	ctx := longDeadline(t)
	w := stage(t, q, WorkerName("drained"), TakeServices("127.0.0.1"))
	require.NoError(t, q.Serve(ctx, Service{Name: "web", Task: Task{Command: shell("exec sleep 1000")}}))
	task := submit(t, q, named("a"))
	w.begins(t, "a")
	stage(t, q, WorkerName("other"), TakeServices("127.0.0.1"))
	w.Drain(time.Hour)
	testkit.Eventually(t, "it runs elsewhere", func() bool {
		time.Sleep(20 * time.Millisecond)
		r := statusOfService(t, q, "web").Replicas[0]
		return r.Healthy && r.Worker == "other"
	})
	awaitState(t, q, task, Running)
	require.Empty(t, w.ended)
	w.finish <- 0
	w.returns(t)
	require.NoError(t, q.StopService(ctx, "web"))
}
