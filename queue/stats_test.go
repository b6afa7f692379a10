//go:build linux

package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// observed collects what an Observer gets.
type observed struct {
	mu      sync.Mutex
	records map[string][]Record
}

func (o *observed) AttemptEnded(r Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.records[r.ID] = append(o.records[r.ID], r)
}

func (o *observed) of(id string) []Record {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.records[id]
}

func TestStats(t *testing.T) {
	var log lockedBuffer
	q := open(t, Log(slog.New(slog.NewJSONHandler(&log, nil))))
	ctx := testkit.Deadline(t)
	s, err := q.Stats(ctx)
	require.NoError(t, err)
	require.Empty(t, s.Classes)

	o := &observed{records: map[string][]Record{}}
	changes := make(chan Status, 100)
	watch, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for s, err := range q.Changes(watch) {
			if err != nil {
				t.Errorf("changes: %v", err)
				return
			}
			changes <- s
		}
	}()
	work(t, q, Observe(o), WorkerName("w"))
	running := submit(t, q, Task{Command: shell("sleep 1000")})
	var waiting []string
	for range 3 {
		waiting = append(waiting, submit(t, q, Task{Command: shell("true"), Class: "gpu"}))
	}
	again := submit(t, q, Task{Command: shell("exit 3"), Retry: Retry{Attempts: 2, Failures: true, Backoff: 1}})
	_, err = q.Wait(ctx, again)
	require.ErrorIs(t, err, ErrDead)
	testkit.Eventually(t, "the worker says what it runs", func() bool {
		s, err = q.Stats(ctx)
		require.NoError(t, err)
		return s.Classes["default"].Running == 1 && s.Classes["default"].Tasks == 1
	})
	require.Equal(t, 1, s.Workers)
	require.Equal(t, 4, s.Slots)
	d, gpu := s.Classes["default"], s.Classes["gpu"]
	require.Positive(t, d.Oldest)
	require.Positive(t, gpu.Oldest)
	d.Oldest, gpu.Oldest = 0, 0
	require.Equal(t, ClassStats{Tasks: 1, Running: 1, Dead: 1, Workers: 1, Slots: 4}, d)
	require.Equal(t, ClassStats{Tasks: 3}, gpu)
	for w, err := range q.Workers(ctx) {
		require.NoError(t, err)
		require.Len(t, w.Tasks, 1)
		require.Equal(t, running, w.Tasks[0].ID)
		require.Equal(t, 1, w.Tasks[0].Attempt)
	}

	_, err = q.Cancel(ctx, running, "enough")
	require.NoError(t, err)
	require.NoError(t, q.Requeue(ctx, again))
	_, err = q.Wait(ctx, again)
	require.ErrorIs(t, err, ErrDead)
	testkit.Eventually(t, "all attempts are observed", func() bool { return len(o.of(running)) == 1 && len(o.of(again)) == 4 })
	r := o.of(running)[0]
	require.Equal(t, Canceled, r.State)
	require.Equal(t, "enough", r.Text)
	require.Positive(t, r.Took)
	states := []State{}
	for _, r := range o.of(again) {
		states = append(states, r.State)
		require.Equal(t, "default", r.Class)
		if r.State == Dead {
			require.Equal(t, 3, r.Result.ExitCode)
			require.Equal(t, sandbox.Exited, r.Result.Reason)
		}
	}
	require.Equal(t, []State{Waiting, Dead, Waiting, Dead}, states)

	var of []State // the changes of the one that was canceled
	for c := range changes {
		if c.ID == running {
			if of = append(of, c.State); c.State.Ended() {
				break
			}
		}
	}
	require.Equal(t, []State{Running, Canceled}, of)
	stop()
	<-watched
	for _, line := range []string{`"task submitted","task":"` + waiting[0], `"task canceled","task":"` + running, `"task put back","task":"` + again} {
		require.Contains(t, log.String(), line)
	}
}

// A limit that ended an attempt is in its worker's log: its exit code alone says nothing.
func TestWorkerLogHasReason(t *testing.T) {
	q := open(t)
	var log lockedBuffer
	stop := work(t, q, WorkerLog(slog.New(slog.NewTextHandler(&log, nil))))
	id := submit(t, q, Task{Command: shell("sleep 60"), Limits: Limits{Timeout: 100 * time.Millisecond}})
	_, err := q.Wait(testkit.Deadline(t), id)
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	stop() // its log is complete
	require.Contains(t, log.String(), `state=done code=-1 reason="timed out"`)
}

// lockedBuffer may be written to from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A submitter that makes up classes does not make Stats grow.
func TestAttackClasses(t *testing.T) {
	q := open(t, SyncEvery(1<<40))
	var tasks []Task
	for i := range maxClasses + 20 {
		tasks = append(tasks, Task{Command: shell("true"), Class: fmt.Sprintf("c%03d", i)})
	}
	_, err := q.SubmitAll(testkit.Deadline(t), tasks)
	require.NoError(t, err)
	s, err := q.Stats(testkit.Deadline(t))
	require.NoError(t, err)
	require.Len(t, s.Classes, maxClasses+1)
	require.Equal(t, 20, s.Classes[OtherClasses].Tasks)
	require.Equal(t, 1, s.Classes["c000"].Tasks)
}

// What has ended without a worker does not count, however long its delay is, and whatever there was
// between.
func TestStatsOfEnded(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	tasks := func() (n int) {
		s, err := q.Stats(ctx)
		require.NoError(t, err)
		for _, c := range s.Classes {
			n += c.Tasks
		}
		return n
	}
	cancel := func(id string) {
		won, err := q.Cancel(ctx, id, "not needed")
		require.NoError(t, err)
		require.True(t, won)
	}
	cancel(submit(t, q, Task{Command: shell("true"), Delay: time.Hour}))
	cancel(submit(t, q, Task{Command: shell("true"), Class: "nobody"}))
	_, err := q.Wait(ctx, submit(t, q, Task{Command: shell("true"), Delay: time.Hour, Deadline: time.Now().Add(time.Millisecond)}))
	require.ErrorIs(t, err, ErrExpired)
	require.Zero(t, tasks())

	// One that waits again, as it was put back: its message is a later one than its state says.
	dead, m := deadLetter(t, q, Task{Command: shell("true"), Delay: time.Hour})
	require.NoError(t, q.Requeue(ctx, dead))
	q.drop(ctx, m.Sequence) // as by who has ended it just before
	require.Equal(t, 1, tasks())
	cancel(dead)
	require.Zero(t, tasks())

	// One with the same key is another one when the first is forgotten.
	keyed := Task{Command: shell("true"), Key: "k", Class: "keyed"}
	id := submit(t, q, keyed)
	first := q.waitingMessage(ctx, id, nil)
	require.NotZero(t, first)
	cancel(id)
	collectAll(t, q, true)
	require.Equal(t, id, submit(t, q, keyed))
	q.drop(ctx, first)
	require.Equal(t, 1, tasks())

	// What a worker has it acknowledges itself, when nothing of it lives any more.
	held := submit(t, q, Task{Command: shell("true")})
	_, err = q.replace(ctx, held, &stateRecord{State: Running, Attempt: 1, Worker: "w"}, 0)
	require.NoError(t, err)
	cancel(held)
	require.Equal(t, 2, tasks())
	work(t, q, Classes("default", "keyed"))
	mustWait(t, q, id)
	testkit.Eventually(t, "no message is left", func() bool { return tasks() == 0 })
}

// deadLetter submits a task that is a dead letter then, whose message is not acknowledged yet.
func deadLetter(t testing.TB, q *Queue, task Task) (id string, m *jetstream.RawStreamMsg) {
	t.Helper()
	ctx := testkit.Deadline(t)
	id = submit(t, q, task)
	m, err := q.taskMessage(ctx, id)
	require.NoError(t, err)
	require.NoError(t, q.bury(ctx, id, m.Data))
	_, err = q.replace(ctx, id, &stateRecord{State: Dead, Attempt: 3, Message: m.Sequence, Delivered: 3}, 0)
	require.NoError(t, err)
	return id, m
}

// Who may not remove messages can cancel all the same; the next worker acknowledges them.
func TestCancelRights(t *testing.T) {
	may := &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE.>"}}}
	s := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30,
		Users: []*server.User{{Username: "user", Password: "x", Permissions: may}}})
	ctx := testkit.Deadline(t)
	q, err := Open(ctx, strings.Replace(s.ClientURL(), "//", "//user:x@", 1))
	require.NoError(t, err)
	t.Cleanup(q.Close)
	id := submit(t, q, Task{Command: shell("true")})
	begun := time.Now()
	won, err := q.Cancel(ctx, id, "enough")
	require.NoError(t, err)
	require.True(t, won)
	require.Less(t, time.Since(begun), tryTime)
	work(t, q)
	testkit.Eventually(t, "its message is acknowledged", func() bool {
		_, err := q.task(ctx, id)
		return errors.Is(err, ErrNotFound)
	})
}
