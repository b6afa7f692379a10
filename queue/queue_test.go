//go:build linux

package queue

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestResult(t *testing.T) {
	q := open(t)
	work(t, q, WorkerName("here"))
	ctx := testkit.Deadline(t)

	id := submit(t, q, Task{Command: shell("cat; echo err >&2; echo $A; exit 3"), Env: []string{"A=b"}, Stdin: []byte("in\n"), Limits: Limits{Memory: 64 << 20, Timeout: time.Minute}})
	res, err := q.Wait(ctx, id)
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, res.ExitCode)
	require.Equal(t, sandbox.Exited, res.Reason)
	require.Equal(t, "in\nb\n", string(res.Stdout))
	require.Equal(t, "err\n", string(res.Stderr))
	require.Equal(t, 1, res.Attempt)
	require.Equal(t, "here", res.Worker)
	require.NotZero(t, res.Usage.Wall)

	res, err = q.Wait(ctx, submit(t, q, Task{Command: shell("sleep 60"), Limits: Limits{Timeout: 200 * time.Millisecond}}))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, sandbox.TimedOut, res.Reason)

	res, err = q.Wait(ctx, submit(t, q, Task{Command: shell("yes | head -c 200000")}))
	require.NoError(t, err)
	require.Len(t, res.Stdout, tailBytes)
	require.EqualValues(t, 200000-tailBytes, res.Cut)

	_, err = q.Wait(ctx, "default.normal.unknown")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = q.Wait(ctx, "default.>")
	var option *sandbox.OptionError
	require.ErrorAs(t, err, &option)
}

func TestFiles(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	big := strings.Repeat("0123456789abcdef", 50_000)
	in := fstest.MapFS{
		"src/a.txt": {Data: []byte("small"), Mode: 0o644},
		"src/b":     {Data: []byte("a.txt"), Mode: fs.ModeSymlink | 0o777},
		"big":       {Data: []byte(big), Mode: 0o600},
		"empty":     {Mode: fs.ModeDir | 0o755},
	}
	id := submit(t, q, Task{Inputs: in, Dir: "src", Outputs: []string{"results", "nothing"},
		Command: shell("mkdir ../results && cat b > ../results/small && cat ../big ../big > ../results/big && ln -s small ../results/link && ln -s /etc/passwd ../results/out && ls -d ../empty")})
	res, err := q.Wait(ctx, id)
	require.NoError(t, err, "%s", res.Stderr)
	got, err := fs.ReadFile(res.Outputs, "results/link")
	require.NoError(t, err)
	require.Equal(t, "small", string(got))
	got, err = fs.ReadFile(res.Outputs, "results/big")
	require.NoError(t, err)
	require.True(t, string(got) == big+big)
	require.ElementsMatch(t, []string{"results/out", "nothing"}, res.Missing)
	require.NoError(t, fstest.TestFS(res.Outputs, "results/small", "results/big"))

	// The same content is stored once, and not collected while a task or result refers to it.
	before, err := q.blobs.Info(ctx)
	require.NoError(t, err)
	_, _, err = q.pack(ctx, in, []string{"."}, false)
	require.NoError(t, err)
	after, err := q.blobs.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, before.State.Msgs, after.State.Msgs)
	require.NoError(t, q.sweep(ctx, map[string]bool{}, time.Now().Add(-time.Minute)))
	_, err = fs.ReadFile(res.Outputs, "results/big")
	require.NoError(t, err, "younger than what may be collected")
	require.NoError(t, q.Collect(ctx))
	require.NoError(t, q.sweep(ctx, map[string]bool{}, time.Now().Add(time.Minute)))
	_, err = fs.ReadFile(res.Outputs, "results/big")
	require.Error(t, err, "collected")
	left, err := q.blobs.Info(ctx)
	require.NoError(t, err)
	require.Zero(t, left.State.Msgs)
	require.NoError(t, q.remove(ctx, q.blobs, 1), "somebody else has removed it")
}

// Whoever sends and reads large files may follow them.
func TestProgress(t *testing.T) {
	var mu sync.Mutex
	var sent, read []Transfer
	q := open(t, Progress(func(t Transfer) {
		mu.Lock()
		defer mu.Unlock()
		if t.Sent {
			sent = append(sent, t)
		} else {
			read = append(read, t)
		}
	}))
	const size = 2*chunkSize + 1
	in := fstest.MapFS{"d/large": {Data: make([]byte, size), Mode: 0o644}, "small": {Data: make([]byte, chunkSize), Mode: 0o644}}
	task := Task{Command: shell("true"), Inputs: in, Outputs: []string{"d"}}
	steps := func(sent bool) (list []Transfer) {
		for _, done := range []int64{chunkSize, 2 * chunkSize, size} {
			list = append(list, Transfer{Name: "d/large", Sent: sent, Done: done, Size: size})
		}
		return list
	}
	id := submit(t, q, task)
	require.Equal(t, steps(true), sent)
	_, err := q.Cancel(testkit.Deadline(t), submit(t, q, task), "sent alone")
	require.NoError(t, err)
	require.Len(t, sent, 4, "the queue has it already")
	require.Equal(t, sent[2], sent[3])
	require.Empty(t, read)
	work(t, q)
	res := mustWait(t, q, id)
	mu.Lock()
	read = nil // by workers, which are in this process
	mu.Unlock()
	_, err = fs.ReadFile(res.Outputs, "d/large")
	require.NoError(t, err)
	require.Equal(t, steps(false), read)
}

func TestInputsThatCannotBe(t *testing.T) {
	q := open(t)
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	_, err := q.Submit(testkit.Deadline(t), Task{Command: shell("true"), Inputs: os.DirFS(dir)})
	require.ErrorIs(t, err, errLeftOut)
	_, err = q.Submit(testkit.Deadline(t), Task{Command: shell("true"), Inputs: fstest.MapFS{"\xff": {Mode: fs.ModeDir | 0o755}}})
	require.Error(t, err)
	var option *sandbox.OptionError
	for _, task := range []Task{{}, {Command: shell(":"), Class: "A.b"}, {Command: shell(":"), Outputs: []string{"../x"}}, {Command: shell(":"), Dir: "../x"}, {Command: shell(":"), Dir: "x"}, {Command: shell(":"), Env: []string{"A"}},
		{Command: shell(":"), Priority: 7},
		{Command: shell(":"), Limits: Limits{Memory: -1}}, {Command: shell(":"), Retry: Retry{Attempts: 1000}}, {Command: shell(":"), Stdin: make([]byte, maxStdin+1)},
		{Command: []string{"\xff"}}, {Command: slices.Repeat([]string{"a"}, maxElements+1)}} {
		_, err := q.Submit(testkit.Deadline(t), task)
		require.ErrorAs(t, err, &option, "%+v", task.Class)
	}
}

func TestKey(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	first := submit(t, q, Task{Key: "k", Command: shell("echo 1")})
	require.Equal(t, first, submit(t, q, Task{Key: "k", Command: shell("echo 2")}))
	work(t, q)
	res, err := q.Wait(ctx, first)
	require.NoError(t, err)
	require.Equal(t, "1", text(res.Stdout))
	require.Equal(t, first, submit(t, q, Task{Key: "k", Command: shell("echo 3")}))
	require.Equal(t, "4", text(mustWait(t, q, submit(t, q, Task{Command: shell("echo 4")})).Stdout))
	res, err = q.Wait(ctx, first)
	require.NoError(t, err)
	require.Equal(t, "1", text(res.Stdout), "the first one is the one")
}

func mustWait(t testing.TB, q *Queue, id string) *Result {
	t.Helper()
	res, err := q.Wait(testkit.Deadline(t), id)
	require.NoError(t, err)
	return res
}

func TestCancel(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	waiting := submit(t, q, Task{Command: shell("echo ran")})
	won, err := q.Cancel(ctx, waiting, "not needed")
	require.NoError(t, err)
	require.True(t, won)
	work(t, q)
	running := submit(t, q, Task{Command: shell("sleep 1000")})
	awaitState(t, q, running, Running)
	begin := time.Now()
	won, err = q.Cancel(ctx, running, "enough")
	require.NoError(t, err)
	require.True(t, won)
	for id, reason := range map[string]string{waiting: "not needed", running: "enough"} {
		_, err := q.Wait(ctx, id)
		require.ErrorIs(t, err, ErrCanceled)
		var end *EndError
		require.ErrorAs(t, err, &end)
		require.Equal(t, reason, end.Text)
	}
	// The slot is free long before the command would have ended: the run was killed.
	testkit.Eventually(t, "the task's message is gone", func() bool {
		_, err := q.task(ctx, running)
		return errors.Is(err, ErrNotFound)
	})
	require.Less(t, time.Since(begin), testkit.Patience)
	won, err = q.Cancel(ctx, running, "again")
	require.NoError(t, err)
	require.True(t, won)
	done := submit(t, q, Task{Command: shell("true")})
	mustWait(t, q, done)
	won, err = q.Cancel(ctx, done, "too late")
	require.NoError(t, err)
	require.False(t, won)
}

func TestRetry(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("exit 7"), Retry: Retry{Attempts: 2, Failures: true, Backoff: 50 * time.Millisecond}})
	res, err := q.Wait(ctx, id)
	require.ErrorIs(t, err, ErrDead)
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, res.ExitCode)
	require.Equal(t, 2, res.Attempt)
	missing := submit(t, q, Task{Command: []string{"/no/such/program"}, Retry: Retry{Attempts: 2, Backoff: 50 * time.Millisecond}})
	_, err = q.Wait(ctx, missing)
	require.ErrorIs(t, err, ErrDead)
	over := submit(t, q, Task{Command: shell("true"), Limits: Limits{Memory: 1 << 40}, Retry: Retry{Attempts: 1}})
	_, err = q.Wait(ctx, over)
	require.ErrorIs(t, err, ErrDead)
	require.ErrorContains(t, err, "MaxLimits")
	var dead []string
	for s, err := range q.Dead(ctx) {
		require.NoError(t, err)
		dead = append(dead, s.ID)
	}
	require.ElementsMatch(t, []string{id, missing, over}, dead)

	require.NoError(t, q.Requeue(ctx, id))
	res, err = q.Wait(ctx, id)
	require.ErrorIs(t, err, ErrDead)
	require.Equal(t, 2, res.Attempt, "as many attempts again")
	ok := submit(t, q, Task{Command: shell("true")})
	mustWait(t, q, ok)
	require.ErrorIs(t, q.Requeue(ctx, ok), ErrNotDead)
}

func TestDelayAndDeadline(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	late := submit(t, q, Task{Command: shell("true"), Deadline: time.Now().Add(100 * time.Millisecond)})
	_, err := q.Wait(ctx, late)
	require.ErrorIs(t, err, ErrExpired)
	work(t, q)
	begin := time.Now()
	res := mustWait(t, q, submit(t, q, Task{Command: shell("true"), Delay: 700 * time.Millisecond}))
	require.GreaterOrEqual(t, time.Since(begin), 700*time.Millisecond)
	require.Equal(t, 1, res.Attempt)
}

func TestPriority(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	var tasks []Task
	for range 6 {
		tasks = append(tasks, Task{Command: shell("true"), Priority: Low}, Task{Command: shell("true"), Priority: High})
	}
	ids, err := q.SubmitAll(ctx, tasks)
	require.NoError(t, err)
	work(t, q, Slots(1))
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	var lastHigh, firstLow time.Time
	for i, r := range results {
		if tasks[i].Priority == High && r.Started.After(lastHigh) {
			lastHigh = r.Started
		}
		if tasks[i].Priority == Low && (firstLow.IsZero() || r.Started.Before(firstLow)) {
			firstLow = r.Started
		}
	}
	require.True(t, lastHigh.Before(firstLow), "high until %v, low from %v", lastHigh, firstLow)
}

func TestLogs(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("echo one; sleep 0.5; echo two >&2; sleep 0.5; echo three")})
	var live []string
	var position uint64
	for c, err := range q.Logs(ctx, id, 0) {
		require.NoError(t, err)
		if live = append(live, text(c.Data)); len(live) == 1 {
			position = c.Position
			s, err := q.Status(ctx, id)
			require.NoError(t, err)
			require.Equal(t, Running, s.State, "live")
		}
		require.Equal(t, text(c.Data) == "two", c.Stderr)
	}
	require.Equal(t, []string{"one", "two", "three"}, live)
	live = nil
	for c, err := range q.Logs(ctx, id, position) {
		require.NoError(t, err)
		live = append(live, text(c.Data))
	}
	require.Equal(t, []string{"two", "three"}, live, "who returns")
}

func TestWorkersAndList(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	other := submit(t, q, Task{Command: shell("true"), Class: "gpu"})
	work(t, q, WorkerName("w1"))
	done := submit(t, q, Task{Command: shell("true")})
	mustWait(t, q, done)
	states := map[string]State{}
	for s, err := range q.List(ctx) {
		require.NoError(t, err)
		states[s.ID] = s.State
	}
	require.Equal(t, map[string]State{other: Waiting, done: Done}, states)
	testkit.Eventually(t, "the worker is announced", func() bool {
		for s, err := range q.Workers(ctx) {
			require.NoError(t, err)
			return s.Name == "w1" && s.Slots == 4 && s.PID == os.Getpid()
		}
		return false
	})
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Dir(dir))
	require.Empty(t, q.URL(), "it listens on nothing")
	var option *sandbox.OptionError
	_, err := Open(testkit.Deadline(t), "", Dir(dir))
	require.ErrorAs(t, err, &option, "another one has it")
	for _, opts := range [][]Option{{Listen("0.0.0.0:0")}, {Listen("x")}, {Name("A")}, {Lease(minLease - 1)}, {Replicas(2)}, {SyncEvery(-1)}} {
		_, err := Open(testkit.Deadline(t), "", append(opts, Dir(t.TempDir()))...)
		require.ErrorAs(t, err, &option)
	}
	shared := open(t, Listen("127.0.0.1:0"), Lease(3*time.Second))
	other, err := Open(testkit.Deadline(t), shared.URL(), Lease(time.Minute))
	require.NoError(t, err)
	defer other.Close()
	c, err := other.consumer(testkit.Deadline(t), "default", "normal")
	require.NoError(t, err)
	require.Equal(t, 3*time.Second, c.CachedInfo().Config.AckWait, "the lease is the queue's")
	_, err = Open(testkit.Deadline(t), "nats://127.0.0.1:1", Dir(dir))
	require.ErrorAs(t, err, &option)
	_, err = Open(testkit.Deadline(t), "nats://127.0.0.1:1,http://user:secret@127.0.0.1:2", nil)
	require.ErrorAs(t, err, &option)
	require.EqualError(t, err, `sandbox: queue.Open: "http" is no scheme of NATS: a URL is like nats://host:4222 or tls://host`)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = Open(ctx, "127.0.0.1:1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "and why")
}

// What is missing is a wrong option of a worker, as all else.
func TestWorkerOfNothing(t *testing.T) {
	var option *sandbox.OptionError
	err := NewWorker(nil, nil, nil).Run(testkit.Deadline(t))
	require.ErrorAs(t, err, &option)
	require.ErrorContains(t, err, "the queue is nil")
	require.ErrorContains(t, err, "the pool is nil")
}

// Results are kept for as long as the queue was made to, whatever a later Open says.
func TestRetention(t *testing.T) {
	dir := t.TempDir()
	ctx := testkit.Deadline(t)
	q := open(t, Dir(dir), Retention(time.Minute))
	stop := work(t, q)
	first := submit(t, q, Task{Key: "k", Command: shell("echo 1")})
	mustWait(t, q, first)
	stop()
	for _, name := range []string{"sandbox-dead", "sandbox-logs"} {
		s, err := q.js.Stream(ctx, name)
		require.NoError(t, err)
		require.Equal(t, time.Minute, s.CachedInfo().Config.MaxAge)
	}
	q.Close()

	q = open(t, Dir(dir), Retention(time.Hour))
	require.Equal(t, time.Minute, q.config.retention)
	require.NoError(t, q.Collect(ctx))
	require.Equal(t, "1", text(mustWait(t, q, first).Stdout), "it is younger")
	q.config.retention = 0 // as when it is older
	require.NoError(t, q.Collect(ctx))
	_, err := q.Wait(ctx, first)
	require.ErrorIs(t, err, ErrNotFound)
	work(t, q)
	require.Equal(t, first, submit(t, q, Task{Key: "k", Command: shell("echo 2")}))
	require.Equal(t, "2", text(mustWait(t, q, first).Stdout), "its key is free again")
}

func TestFull(t *testing.T) {
	q := open(t, BlobBytes(100_000))
	_, err := q.Submit(testkit.Deadline(t), Task{Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 300_000))})
	require.ErrorIs(t, err, ErrFull)
	submit(t, q, Task{Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 30_000))})
}

// What somebody else has a server write in a task's state is none: the task is not collected with
// it, and expires all the same.
func TestNoState(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	done, err := encode(&stateRecord{Version: version, State: Done})
	require.NoError(t, err)
	late := submit(t, q, Task{Command: shell("true"), Deadline: time.Now().Add(100 * time.Millisecond)})
	waits := submit(t, q, Task{Command: shell("echo fine")})
	for _, id := range []string{late, waits} {
		_, err = q.js.Publish(ctx, q.subject("state", id), done)
		require.NoError(t, err)
	}
	_, err = q.Wait(ctx, late)
	require.ErrorIs(t, err, ErrExpired)
	q.config.retention = 0
	require.NoError(t, q.Collect(ctx))
	_, err = q.states.GetLastMsgForSubject(ctx, q.subject("state", waits))
	require.ErrorIs(t, err, jetstream.ErrMsgNotFound)
	work(t, q)
	require.Equal(t, "fine", text(mustWait(t, q, waits).Stdout))
}

func TestTooOld(t *testing.T) {
	for version, old := range map[string]bool{"1.4.1": true, "2.11.9": true, "2.12.0": false, "2.15.3": false, "3.0.0": false, "2.13.0-RC.1": false, "": false} {
		require.Equal(t, old, tooOld(version), version)
	}
}

// A task that has started does not expire, also if that is not known to who looks.
func TestExpireStarted(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("true"), Deadline: time.Now().Add(200 * time.Millisecond)})
	n, err := q.replace(ctx, id, &stateRecord{State: Running, Attempt: 1, Worker: "w"}, 0)
	require.NoError(t, err)
	require.NotZero(t, n)
	time.Sleep(300 * time.Millisecond)
	_, err = q.expire(ctx, id, 0)
	require.NoError(t, err)
	status, err := q.Status(ctx, id)
	require.NoError(t, err)
	require.Equal(t, Running, status.State)
}
