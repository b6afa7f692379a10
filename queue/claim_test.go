//go:build linux

package queue

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// sight is the state of a task when its command may begin, and whether it may.
type sight struct {
	state *stateRecord
	err   error
}

// claiming returns a worker with a directory where its commands can write, at /out, what is called
// with a task's id for what is seen when its commands may begin, and what gets a value when one is
// about to wait for that.
func claiming(t *testing.T, q *Queue) (w *Worker, out string, seen func(id string) chan sight, waits chan bool) {
	out = t.TempDir()
	require.NoError(t, os.Chmod(out, 0o777))
	p := pool.New(sandbox.New(sandbox.WithBind(out, "/out")), 1)
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	w = NewWorker(q, p, Slots(1), WorkerName("mine"))
	waits = make(chan bool, 10)
	var all sync.Map
	seen = func(id string) chan sight {
		c, _ := all.LoadOrStore(id, make(chan sight, 10))
		return c.(chan sight)
	}
	w.execute = func(ctx context.Context, opts ...sandbox.Option) (*sandbox.Result, error) {
		return p.Run(ctx, append(opts, func(c *spec.Spec) {
			before, id := c.Supervision.Before, c.Command.Argv[3]
			c.Supervision.Before = func(ctx context.Context) error {
				waits <- true
				err := before(ctx)
				now, _, stateErr := q.state(context.WithoutCancel(ctx), id)
				assert.NoError(t, stateErr)
				seen(id) <- sight{now, err}
				return err
			}
		})...)
	}
	return w, out, seen, waits
}

// What is not claimed does not run: if the task is another's, or has ended.
func TestClaim(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	w, out, seen, _ := claiming(t, q)
	work, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(work) }()
	defer func() {
		stop()
		require.NoError(t, <-ended)
	}()

	for _, test := range []struct {
		name   string
		before *stateRecord
		runs   bool
	}{
		{"nobody has it", nil, true},
		{"it was tried before", &stateRecord{State: Waiting, Attempt: 1}, true},
		{"it has ended", &stateRecord{State: Canceled}, false},
		{"it is a later one", &stateRecord{State: Waiting, Message: 1 << 40}, false},
	} {
		id := (&Task{}).id("")
		if test.before != nil {
			_, err := q.replace(ctx, id, test.before, 0)
			require.NoError(t, err)
		}
		task := Task{Command: append(shell("touch /out/$0"), id)}
		r, err := task.record(nil)
		require.NoError(t, err)
		_, err = q.submit(ctx, id, r, &task, time.Now())
		require.NoError(t, err)
		testkit.Eventually(t, "its message is acknowledged", func() bool {
			_, err := q.taskMessage(ctx, id)
			return err != nil
		})
		testkit.Eventually(t, "nothing of it lives", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.live) == 0
		})
		began := 0
		for c := seen(id); len(c) > 0; {
			if got := <-c; got.err == nil {
				began++
				require.Equal(t, Running, got.state.State, test.name)
				require.Equal(t, "mine", got.state.Worker, test.name)
			}
		}
		if test.runs {
			require.Equal(t, 1, began, test.name)
			require.FileExists(t, out+"/"+id, test.name)
		} else {
			require.Zero(t, began, test.name)
			require.NoFileExists(t, out+"/"+id, test.name)
		}
	}
}

// A run is prepared before its task is claimed, but its command begins when that is stored, and not
// if the run is to end before, which does not wait for the claim.
func TestClaimIsAwaited(t *testing.T) {
	q := open(t)
	w, out, seen, waits := claiming(t, q)
	for _, test := range []struct {
		name     string
		stops    bool
		deadline int64
	}{
		{"claimed", false, 0},
		{"stopped", true, 0},
		{"with a deadline", false, time.Now().Add(time.Hour).UnixNano()},
	} {
		ctx, stop := context.WithCancel(testkit.Deadline(t))
		id := (&Task{}).id("")
		task := Task{Command: append(shell("touch /out/$0"), id)}
		r, err := task.record(nil)
		require.NoError(t, err)
		r.Deadline = test.deadline
		l := &lease{w: w, id: id, message: 1, ended: make(chan struct{})}
		l.ctx, l.cancel = context.WithCancelCause(testkit.Deadline(t))
		a := &attempt{w: w, l: l, id: id, delivered: 1, log: w.log, task: r}
		ended := make(chan outcome, 1)
		w.mu.Lock() // which who claims needs
		go func() {
			end, over, err := a.begin(ctx, &nats.Msg{})
			assert.NoError(t, err, test.name)
			assert.False(t, over, test.name)
			ended <- end
		}()
		if test.deadline == 0 {
			<-waits
		}
		time.Sleep(100 * time.Millisecond)
		assert.Zero(t, len(seen(id))+len(waits), "%s: it did not wait for the claim", test.name)
		if test.stops {
			stop()
			select {
			case got := <-seen(id):
				assert.ErrorIs(t, got.err, errStopped, test.name)
			case <-time.After(testkit.Patience):
				assert.Fail(t, "it waits for the claim", test.name)
			}
		}
		w.mu.Unlock()
		end := <-ended
		if test.stops {
			require.Nil(t, end.run, test.name)
			require.NoFileExists(t, out+"/"+id, test.name)
		} else {
			got := <-seen(id)
			require.NoError(t, got.err, test.name)
			require.NotNil(t, got.state, test.name)
			require.Equal(t, Running, got.state.State, test.name)
			require.NoError(t, end.failure, test.name)
			require.FileExists(t, out+"/"+id, test.name)
		}
		for len(waits) > 0 {
			<-waits
		}
		stop()
	}
}
