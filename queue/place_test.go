//go:build linux

package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// One tenant's many tasks do not hold back another's, whether they were there before or not.
func TestTenants(t *testing.T) {
	q := open(t)
	ctx := longDeadline(t)
	var tasks []Task
	for range 40 {
		tasks = append(tasks, Task{Command: shell("true"), Tenant: "many"})
	}
	for range 3 {
		tasks = append(tasks, Task{Command: shell("true"), Tenant: "few"}, Task{Command: shell("true")})
	}
	require.NotEqual(t, laneOf("", "many"), laneOf("", "few"))
	ids, err := q.SubmitAll(ctx, tasks)
	require.NoError(t, err)
	require.NotEqual(t, submit(t, q, Task{Command: shell("true"), Tenant: "many", Key: "k"}), submit(t, q, Task{Command: shell("true"), Tenant: "few", Key: "k"}))
	work(t, q, Slots(1))
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	before := func(last time.Time) (n int) {
		for i, r := range results {
			if tasks[i].Tenant == "many" && r.Started.Before(last) {
				n++
			}
		}
		return n
	}
	var few time.Time
	for i, r := range results {
		if tasks[i].Tenant == "few" && r.Started.After(few) {
			few = r.Started
		}
	}
	// In turn, three of them, with what was asked for before the other lane was known.
	require.Less(t, before(few), 28)
}

// Many tasks of one tenant do not hide another's only one while the worker does not look.
func TestAnnounced(t *testing.T) {
	q := open(t)
	p := pool.New(sandbox.New(), 1)
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	var group sync.WaitGroup
	puller := newPuller(NewWorker(q, p), &group)
	lane := func(tenant string) note { return note{"default", route(Normal, laneOf("", tenant))} }
	announce := func(n note) { puller.announced(&nats.Msg{Subject: q.subject("new", n.class+"."+n.route)}) }
	for range 1000 {
		announce(lane("many"))
	}
	announce(lane("few"))
	announce(note{"default", "odd-" + laneOf("", "few")}) // anybody may have written it
	want := map[note]bool{lane("many"): true, lane("few"): true}
	require.Equal(t, want, puller.notes)
	require.NotEmpty(t, puller.noted)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	puller.wakeNoted(ctx)
	group.Wait()
	require.Empty(t, puller.notes)
	for n := range want {
		l, ok := puller.known.Load(n.class + "." + n.route)
		require.True(t, ok)
		require.True(t, l.(*source).ready())
	}
	announce(lane("many"))
	require.Empty(t, puller.notes, "it is asked anyway")
}

// A task of a higher priority is among the next that workers take, however many lower ones of
// several tenants keep them busy.
func TestPriorityUnderLoad(t *testing.T) {
	q := open(t)
	ctx := longDeadline(t)
	const slots, low, high = 2, 60, 6
	ended := ends(t, q)
	workIn(t, q, slots)
	mustWait(t, q, submit(t, q, Task{Command: shell("true"), Priority: High})) // so requests stand there
	workIn(t, q, slots)
	var tasks []Task
	for i := range low {
		tasks = append(tasks, Task{Command: shell("sleep 0.03"), Priority: Low, Tenant: []string{"", "a", "b"}[i%3]})
	}
	ids, err := q.SubmitAll(ctx, tasks)
	require.NoError(t, err)
	var submitted [high]time.Time
	for i := range high {
		testkit.Eventually(t, "some have ended", func() bool { return len(ended()) > 4*i })
		ids = append(ids, submit(t, q, Task{Command: shell("true"), Priority: High, Tenant: []string{"", "a"}[i%2]}))
		submitted[i] = time.Now()
	}
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	lowFrom := func(from, until time.Time) (n int) {
		for _, r := range results[:low] {
			if r.Started.After(from) && r.Started.Before(until) {
				n++
			}
		}
		return n
	}
	// Each slot may be taking one, and another before the worker hears of a lane.
	const most = 2 * 2 * slots
	for i, r := range results[low:] {
		require.LessOrEqual(t, lowFrom(submitted[i], r.Started), most)
	}
	require.Greater(t, lowFrom(submitted[0], time.Now()), most, "there was no load")
}

func TestLanes(t *testing.T) {
	seen := map[string]bool{}
	for i := range 10_000 {
		lane := laneOf("", fmt.Sprint("tenant ", i))
		require.True(t, validID("linux."+route(High, lane)+".x"))
		seen[lane] = true
	}
	require.Len(t, seen, tenantLanes, "the servers' state is bounded")
	for _, lane := range lanesFor(strings.Repeat("a", 64), true) {
		require.True(t, routePattern.MatchString(route(Low, lane)), lane)
	}
	require.Len(t, lanesFor(strings.Repeat("a", 64), true), 3*tenantLanes+2)
	for _, id := range []string{"a.normal-.x", "a.normal-t40.x", "a.normal-b12.x", "a.normal-t00-s.x", "a.normal-s-t00-x.x"} {
		require.False(t, validID(id), id)
	}
}

// Consumers of lanes are removed when nobody uses them, and are made again.
func TestLanesDropped(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	stop := work(t, q)
	mustWait(t, q, submit(t, q, Task{Command: shell("true"), Tenant: "a"}))
	stop()
	names := func() (n int) {
		consumers := q.tasks.ConsumerNames(ctx)
		for range consumers.Name() {
			n++
		}
		require.NoError(t, consumers.Err())
		return n
	}
	begin := names()
	testkit.Eventually(t, "the lane's consumer is gone", func() bool {
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, q.dropLanes(ctx, time.Now().Add(time.Hour)))
		return names() == begin-1
	})
	work(t, q)
	mustWait(t, q, submit(t, q, Task{Command: shell("true"), Tenant: "a"}))
}

// workWithin starts a worker of four slots whose pool has so much memory.
func workWithin(t testing.TB, q *Queue, memory int64) {
	t.Helper()
	p := pool.New(sandbox.New(sandbox.WithPIDs(64)), 4, pool.Memory(memory))
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	worker, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- NewWorker(q, p, Slots(4)).Run(worker) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// What runs at a time fits what the pool has.
func TestBudget(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	workWithin(t, q, 256*sandbox.MiB)
	big := Task{Command: shell("sleep 0.3"), Limits: Limits{Memory: 160 << 20}}
	small := Task{Command: shell("sleep 0.3"), Limits: Limits{Memory: 32 << 20}}
	ids, err := q.SubmitAll(ctx, []Task{big, big, big, small, small})
	require.NoError(t, err)
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	for i, a := range results[:3] {
		require.Equal(t, 1, a.Attempt)
		for _, b := range results[:i] {
			require.False(t, a.Started.Before(b.Ended) && b.Started.Before(a.Ended), "two that do not fit ran at once")
		}
	}
	out, err := Call(ctx, q, asked, question{Do: "echo", N: 1})
	require.NoError(t, err, "a function shares the pool's limits")
	require.Equal(t, 1, out.In["n"])
	running := submit(t, q, Task{Command: shell("sleep 1000"), Limits: small.Limits})
	awaitState(t, q, running, Running)
	_, err = q.Wait(ctx, submit(t, q, Task{Command: shell("true"), Limits: Limits{Memory: 512 << 20}, Retry: Retry{Attempts: 1}}))
	require.ErrorContains(t, err, "MaxLimits", "more than there is at all: it does not wait")
}

// A task that does not fit now is waited for: a smaller one behind it waits too, for fullFor, and
// may overtake it then. It has its turn when there is room.
func TestLargeTask(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t)
	ctx := testkit.Deadline(t)
	workWithin(t, q, 256*sandbox.MiB)
	most := Limits{Memory: 160 << 20}
	running := submit(t, q, Task{Command: shell("sleep 1000"), Limits: most})
	awaitState(t, q, running, Running)
	begun := time.Now()
	large := submit(t, q, Task{Command: shell("true"), Limits: most})
	c, err := q.consumer(ctx, "default", "normal")
	require.NoError(t, err)
	testkit.Eventually(t, "the worker does not ask any more", func() bool {
		for range 10 {
			info, err := c.Info(ctx)
			require.NoError(t, err)
			if info.NumWaiting > 0 || info.Delivered.Consumer < 2 {
				return false
			}
			time.Sleep(10 * time.Millisecond)
		}
		return true
	})
	small := mustWait(t, q, submit(t, q, Task{Command: shell("true"), Limits: Limits{Memory: 32 << 20}}))
	require.Greater(t, small.Started.Sub(begun), fullFor)
	s, err := q.Status(ctx, large)
	require.NoError(t, err)
	require.Equal(t, Waiting, s.State)
	_, err = q.Cancel(ctx, running, "enough")
	require.NoError(t, err)
	require.Equal(t, 1, mustWait(t, q, large).Attempt)
}

// A task that does not fit beside the small ones that run has what they leave, before others that
// wait: also if each end leaves room for one of these.
func TestLargeTaskBesideSmall(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t)
	ctx := testkit.Deadline(t)
	workWithin(t, q, 256*sandbox.MiB)
	small := slices.Repeat([]Task{{Command: shell("sleep 0.1$(($$ % 10))"), Limits: Limits{Memory: 64 << 20}}}, 40)
	first, err := q.SubmitAll(ctx, small[:6])
	require.NoError(t, err)
	awaitState(t, q, first[0], Running)
	large := submit(t, q, Task{Command: shell("true"), Limits: Limits{Memory: 200 << 20}})
	ids, err := q.SubmitAll(ctx, small)
	require.NoError(t, err)
	began, before := mustWait(t, q, large).Started, 0
	for _, id := range ids {
		if mustWait(t, q, id).Started.Before(began) {
			before++
		}
	}
	require.Less(t, before, 10)
}

// What a worker does not give is no reason to wait without a word: another one has the task, or its
// state says why it did not start.
func TestMaxLimits(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	small := Limits{Memory: 64 << 20, CPUs: 1, PIDs: 32, CPUTime: time.Minute, Timeout: time.Minute, Output: 1 << 20, Files: 1 << 20}
	stop := work(t, q, MaxLimits(small))
	res := mustWait(t, q, submit(t, q, Task{Command: shell("true"), Limits: small}))
	require.Equal(t, 1, res.Attempt)
	for over, l := range map[string]Limits{"memory": {Memory: 65 << 20}, "CPUs": {CPUs: 1.5}, "processes": {PIDs: 33}, "CPU time": {CPUTime: time.Hour}, "time": {Timeout: time.Hour}, "output": {Output: 2 << 20},
		"files": {Files: 2 << 20}} {
		_, err := q.Wait(ctx, submit(t, q, Task{Command: shell("true"), Limits: l, Retry: Retry{Attempts: 1}}))
		require.ErrorIs(t, err, ErrDead)
		require.ErrorContains(t, err, "of "+over+", and the worker gives")
	}
	large := Task{Command: shell("true"), Limits: Limits{Memory: 65 << 20}, Retry: Retry{Backoff: time.Hour}}
	waits := submit(t, q, large)
	testkit.Eventually(t, "its state says why it waits", func() bool {
		s, err := q.Status(ctx, waits)
		require.NoError(t, err)
		return s.State == Waiting && strings.Contains(s.Text, "it asks for 68157440 bytes of memory, and the worker gives 67108864 bytes (MaxLimits)")
	})
	stop()

	work(t, q, MaxLimits(small), WorkerName("small"))
	work(t, q, WorkerName("large"))
	testkit.Eventually(t, "both are announced", func() bool {
		n := 0
		for s, err := range q.Workers(ctx) {
			require.NoError(t, err)
			if s.Name == "small" || s.Name == "large" {
				n++
			}
		}
		return n == 2
	})
	large.Retry = Retry{Attempts: 1}
	ids, err := q.SubmitAll(ctx, []Task{large, large, large, large})
	require.NoError(t, err)
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...), "that one worker does not give it is no attempt")
	for _, res := range results {
		require.Equal(t, "large", res.Worker)
	}

	p := pool.New(sandbox.New(), 4, pool.Memory(256*sandbox.MiB), pool.CPUs(1))
	t.Cleanup(func() { require.NoError(t, p.Close(context.Background())) })
	for _, l := range []Limits{{Memory: 512 << 20}, {CPUs: 2}} {
		var option *sandbox.OptionError
		require.ErrorAs(t, NewWorker(q, p, MaxLimits(l)).Run(ctx), &option, "more than the pool has")
		require.Equal(t, "queue.MaxLimits", option.Option)
	}
}

func TestBudgetCharges(t *testing.T) {
	b := newBudget(pool.Capacity{Memory: 1000, CPUs: 2, RunCPUs: 0.5}, 4)
	memory, cpus := b.charge(Limits{})
	require.EqualValues(t, 250, memory, "its share")
	require.InDelta(t, 0.5, cpus, 0)
	var back []func()
	for range 4 {
		give, ok := b.take(Limits{})
		require.True(t, ok)
		back = append(back, give)
	}
	_, ok := b.take(Limits{})
	require.False(t, ok)
	back[0]()
	<-b.room
	_, ok = b.take(Limits{Memory: 251})
	require.False(t, ok)
	_, ok = b.take(Limits{CPUs: 0.6})
	require.False(t, ok)
	_, ok = b.take(Limits{Memory: 250, CPUs: 0.5})
	require.True(t, ok)
	none := newBudget(pool.Capacity{}, 1)
	for range 10 {
		_, ok := none.take(Limits{Memory: 1 << 60})
		require.True(t, ok, "without limits there is room")
	}
}

func TestChecked(t *testing.T) {
	q := open(t)
	report := &sandbox.Report{Features: []sandbox.Feature{{Name: "memory limit", Required: true, Detail: "cgroup v2"}, {Name: "other", Err: errors.New("no such thing")}}}
	work(t, q, Checked(report))
	testkit.Eventually(t, "the worker says what its machine can do", func() bool {
		for w, err := range q.Workers(testkit.Deadline(t)) {
			require.NoError(t, err)
			require.Equal(t, []Feature{{Name: "memory limit", Required: true, Detail: "cgroup v2"}, {Name: "other", Missing: "no such thing"}}, w.Features)
			return true
		}
		return false
	})
}

// Outputs that are too large are no reason to try again, and not the loss of the rest.
func TestOutputsTooLarge(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("mkdir r; i=0; while [ $i -lt 10001 ]; do : > r/$i; i=$((i+1)); done; echo printed; exit 3"), Outputs: []string{"r"}, Retry: Retry{Failures: false}})
	res, err := q.Wait(ctx, id)
	require.ErrorIs(t, err, ErrOutputs)
	require.ErrorContains(t, err, "more than 10000 files")
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode)
	require.Equal(t, "printed", text(res.Stdout))
	require.Equal(t, 1, res.Attempt)
	require.NoError(t, fstest.TestFS(res.Outputs))
	s, err := q.Status(ctx, id)
	require.NoError(t, err)
	require.Equal(t, Done, s.State)
}
