//go:build linux

package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// A server that gives a task to a second worker before the first one's lease is over, as one does
// whose clock is set forward, has it run once.
func TestGivenAwayEarly(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"), Lease(4*time.Second))
	ctx := testkit.Deadline(t)
	p := pool.New(sandbox.New(), 1)
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	first := NewWorker(q, p, Slots(1), WorkerName("first"))
	worker, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- first.Run(worker) }()
	defer func() {
		cancel()
		require.NoError(t, <-ended)
	}()
	id := submit(t, q, Task{Command: shell("sleep 2; echo once")})
	awaitState(t, q, id, Running)

	there, err := Open(ctx, q.URL())
	require.NoError(t, err)
	defer there.Close()
	var log lockedBuffer
	stop := work(t, there, WorkerName("second"), WorkerLog(slog.New(slog.NewTextHandler(&log, nil))))
	defer stop()
	first.mu.Lock()
	l := first.live[id]
	first.mu.Unlock()
	require.NotNil(t, l)
	require.NoError(t, q.nc.Publish(l.m.Reply, []byte("-NAK"))) // give it away now
	testkit.Eventually(t, "the second worker has it", func() bool { return strings.Contains(log.String(), "holder=first") })
	res := mustWait(t, q, id)
	require.Equal(t, "once", text(res.Stdout))
	require.Equal(t, 1, res.Attempt)
	require.Equal(t, "first", res.Worker)
}

// Times that machines compare are the servers', whatever clock a submitter or another worker has.
func TestTimes(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	begun := time.Now()
	r, err := (&Task{Command: shell("true")}).record(nil)
	require.NoError(t, err)
	// A submitter whose clock is an hour behind.
	behind := &Task{Delay: time.Minute, Deadline: begun.Add(-time.Hour).Add(2 * time.Minute)}
	require.NoError(t, q.setTimes(ctx, r, behind, begun.Round(0).Add(-time.Hour)))
	for at, is := range map[int64]time.Duration{r.NotBefore: time.Minute, r.Deadline: 2 * time.Minute} {
		// What setTimes takes is measured as an hour more here.
		left, err := q.until(ctx, at+time.Hour.Nanoseconds())
		require.NoError(t, err)
		require.InDelta(t, is.Seconds(), left.Seconds(), 10)
	}
	// Without an answer there is no time that somebody could wait for.
	ended, cancel := context.WithCancel(ctx)
	cancel()
	left, err := q.until(ended, begun.UnixNano())
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, left)
	// A worker whose clock was days ahead has written when the next attempt is.
	id := submit(t, q, Task{Command: shell("true")})
	_, err = q.replace(ctx, id, &stateRecord{State: Waiting, Attempt: 1, Next: begun.Add(72 * time.Hour).UnixNano()}, 0)
	require.NoError(t, err)
	work(t, q)
	require.Equal(t, 2, mustWait(t, q, id).Attempt)
}

// setClock sets the machine's clock forward, or back.
func setClock(t testing.TB, by time.Duration) {
	t.Helper()
	to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	require.NoError(t, unix.ClockSettime(unix.CLOCK_REALTIME, &to))
}

// The clock of servers, workers and submitters is set an hour forward, and two back, while tasks
// run: none is lost, and none runs twice.
func TestClockSteps(t *testing.T) {
	testkit.Need(t, "a clock of its own")
	q := open(t, Listen("127.0.0.1:0"), Lease(30*time.Second)) // an emulated worker may stand still for long
	ctx, cancel := context.WithTimeout(context.Background(), 4*testkit.Patience)
	defer cancel()
	out := t.TempDir()
	require.NoError(t, os.Chmod(out, 0o777))
	startWorker(t, q, 4, out) // each has free slots, for what is given away early
	startWorker(t, q, 4, out)
	steps := []time.Duration{time.Hour, -2 * time.Hour}
	defer func() { setClock(t, time.Hour) }()
	for step, by := range steps {
		var tasks []Task
		for i := range 6 {
			tasks = append(tasks, Task{Command: shell(fmt.Sprintf("echo > $(mktemp /out/%d-%d-XXXXXX); sleep 8; echo %d", step, i, i)), Retry: Retry{Attempts: 100}})
		}
		ids, err := q.SubmitAll(ctx, tasks)
		require.NoError(t, err)
		testkit.Eventually(t, "they run", func() bool {
			files, err := filepath.Glob(out + fmt.Sprintf("/%d-*", step))
			require.NoError(t, err)
			return len(files) == 6
		})
		setClock(t, by)
		results, errs := q.WaitAll(ctx, ids)
		require.NoError(t, errors.Join(errs...))
		for i, r := range results {
			require.Equal(t, fmt.Sprint(i), text(r.Stdout))
			require.Equal(t, 1, r.Attempt, "step %d: %v", step, by)
		}
	}
	files, err := filepath.Glob(out + "/*")
	require.NoError(t, err)
	require.Len(t, files, 6*len(steps), "each task started once")
}
