//go:build linux

package queue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// The helper serve is a queue in a process of its own: its directory and address. It prints its
// URL.
func init() {
	testkit.AddHelper("serve", func(args []string) error {
		q, err := Open(context.Background(), "", Dir(args[0]), Listen(args[1]), Lease(minLease))
		if err != nil {
			return err
		}
		fmt.Println(q.URL())
		select {}
	})
}

// ends counts the ends of tasks that are written, by id.
func ends(t testing.TB, q *Queue) func() map[string]int {
	t.Helper()
	var mu sync.Mutex
	count := map[string]int{}
	sub, err := q.nc.Subscribe(q.config.name+".now.>", func(m *nats.Msg) {
		r, err := decode[stateRecord](m.Data)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || r.State.Ended() {
			count[q.idOf("now", m.Subject)]++
		}
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Unsubscribe()) })
	return func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(count)
	}
}

// recoveries measures how long after the kill of its worker a task starts again.
type recoveries struct {
	mu     sync.Mutex
	killed map[int]time.Time // by process
	worker map[string]string // of tasks that run
	took   []time.Duration
}

func measureRecoveries(t testing.TB, q *Queue) *recoveries {
	t.Helper()
	r := &recoveries{killed: map[int]time.Time{}, worker: map[string]string{}}
	sub, err := q.nc.Subscribe(q.subject("now", ">"), func(m *nats.Msg) {
		if id, now, err := q.announced(m); err == nil {
			r.see(id, now)
		}
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Unsubscribe()) })
	return r
}

func (r *recoveries) see(id string, now *stateRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.worker[id]
	if r.worker[id] = now.Worker; now.State != Running {
		delete(r.worker, id)
		return
	}
	for pid, at := range r.killed {
		if last != now.Worker && strings.Contains(last, fmt.Sprintf("-%d-", pid)) {
			r.took = append(r.took, time.Since(at))
		}
	}
}

func (r *recoveries) kill(p *os.Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = p.Kill() // it may have ended
	r.killed[p.Pid] = time.Now()
}

// median returns the one in the middle, so that it is none that the machine's noise has held up.
func (r *recoveries) median() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.took)
	if len(r.took) == 0 {
		return time.Hour // none was seen
	}
	return r.took[len(r.took)/2]
}

// Workers are killed while they work, and tasks canceled: no task is lost, none has two ends, and
// those of the workers start again when their leases are over.
func TestWorkersKilled(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"), Lease(minLease))
	// For a busy machine.
	ctx, cancel := context.WithTimeout(context.Background(), 4*testkit.Patience)
	defer cancel()
	ended, recovered := ends(t, q), measureRecoveries(t, q)
	var tasks []Task
	for i := range 80 {
		tasks = append(tasks, Task{Command: shell("sleep 0.05; echo " + fmt.Sprint(i)), Key: fmt.Sprint(i), Retry: Retry{Attempts: 50}})
	}
	ids, err := q.SubmitAll(ctx, tasks)
	require.NoError(t, err)
	again, err := q.SubmitAll(ctx, tasks[:20])
	require.NoError(t, err)
	require.Equal(t, ids[:20], again)

	stop, killed, canceled := make(chan struct{}), make(chan int, 1), make(chan map[int]bool, 1)
	workers := []*os.Process{startWorker(t, q, 4, ""), startWorker(t, q, 4, "")}
	go func() {
		defer close(killed) // also if it can't start a worker, and the test has failed
		killed <- killWorkers(t, q, workers, ended, recovered, stop)
	}()
	go func() { canceled <- cancelSome(t, q, ids, ended, stop) }()
	results, errs := q.WaitAll(ctx, ids)
	close(stop)
	n, won := <-killed, <-canceled
	later := 0
	for i, r := range results {
		if won[i] {
			require.ErrorIs(t, errs[i], ErrCanceled)
			continue
		}
		require.NoError(t, errs[i])
		require.Equal(t, fmt.Sprint(i), text(r.Stdout))
		if r.Attempt > 1 {
			later++
		}
	}
	require.Positive(t, n, "no worker was killed")
	require.Positive(t, later, "no task had to be tried again")
	testkit.Eventually(t, "all ends are announced", func() bool { return len(ended()) >= len(ids) })
	for id, n := range ended() {
		require.Equal(t, 1, n, id)
	}
	require.Len(t, ended(), len(ids))
	require.Less(t, recovered.median(), minLease+testkit.Scale(time.Second, 10*time.Second))
}

// killWorkers kills the workers in turns, three times, and returns how often it has when it is
// stopped.
func killWorkers(t testing.TB, q *Queue, workers []*os.Process, ended func() map[string]int, recovered *recoveries, stop <-chan struct{}) int {
	for n := 0; ; n++ {
		if n == 3 {
			<-stop
		}
		// A worker takes a while to start: whoever is killed has done some work.
		for begin := len(ended()); len(ended()) < begin+12; time.Sleep(10 * time.Millisecond) {
			select {
			case <-stop:
				return n
			default:
			}
		}
		i := n % len(workers)
		recovered.kill(workers[i])
		workers[i] = startWorker(t, q, 4, "")
	}
}

// cancelSome cancels every eighth task, at about its turn, until it is stopped, and returns which
// of them it has.
func cancelSome(t testing.TB, q *Queue, ids []string, ended func() map[string]int, stop <-chan struct{}) map[int]bool {
	won := map[int]bool{}
	for i := 7; i < len(ids); i += 8 {
		for ; len(ended()) < i-7; time.Sleep(time.Millisecond) {
			select {
			case <-stop:
				return won
			default:
			}
		}
		var err error
		won[i], err = q.Cancel(testkit.Deadline(t), ids[i], "enough")
		assert.NoError(t, err)
	}
	return won
}

// A worker that is stopped for longer than its lease is killed by the kernel, and its run with it,
// before another worker starts the task.
func TestWorkerStopped(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"), Lease(4*time.Second))
	out := outDir(t)
	first := startWorker(t, q, 1, out)
	id := submit(t, q, Task{Command: goesOn})
	awaitAttempt(t, out)
	require.NoError(t, first.Signal(syscall.SIGSTOP))
	startWorker(t, q, 1, out)
	res := mustWait(t, q, id)
	require.Equal(t, 2, res.Attempt)
	require.Equal(t, 2, requireApart(t, out+"/*"))
	require.Error(t, first.Signal(syscall.SIGCONT), "the kernel has killed the worker")
}

// goesOn is a command each of whose attempts writes down when it lives, in a file that is named for
// when it began. The first attempt goes on, others end.
var goesOn = shell(`f=/out/$(date +%s%N); [ -z "$(ls /out)" ] || { date +%s%N > $f; exit 0; }; while :; do date +%s%N >> $f; sleep 0.02; done`)

// outDir returns a directory in which runs can write.
func outDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	return dir
}

// awaitAttempt waits for the first attempt that writes into a directory.
func awaitAttempt(t testing.TB, dir string) {
	t.Helper()
	testkit.Eventually(t, "the first attempt lives", func() bool {
		files, err := filepath.Glob(dir + "/*")
		require.NoError(t, err)
		return len(files) == 1
	})
}

// requireApart requires that no two attempts lived at once, by what they wrote into the files of a
// pattern, whose names end with when they began. It returns how many there were.
func requireApart(t testing.TB, pattern string) int {
	t.Helper()
	files, err := filepath.Glob(pattern) // in the order of their start
	require.NoError(t, err)
	last := ""
	for _, file := range files {
		begun := file[strings.LastIndexAny(file, "/-")+1:]
		require.Less(t, last, begun, "%s: an attempt lived when the next one began", pattern)
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		// It may have been killed before it wrote.
		times := strings.Fields(begun + " " + string(b))
		last = times[len(times)-1]
	}
	return len(files)
}

// A server that is killed and started again forgets up to a second of a lease. A worker that was
// stopped before is killed by the kernel in time even so.
func TestLeaseForgotten(t *testing.T) {
	t.Parallel() // it mostly waits
	dir, address := t.TempDir(), freeAddress(t)
	url, server := serve(t, dir, address)
	q, err := Open(testkit.Deadline(t), url)
	require.NoError(t, err)
	defer q.Close()
	out := outDir(t)
	first := startWorker(t, q, 1, out)
	id := submit(t, q, Task{Command: goesOn})
	awaitAttempt(t, out)
	var renewed atomic.Int64
	sub, err := q.nc.Subscribe("$JS.ACK.>", func(*nats.Msg) { renewed.Store(time.Now().UnixNano()) })
	require.NoError(t, err)
	// Most of a second is forgotten of what was renewed at its end.
	testkit.Eventually(t, "the lease is renewed at the end of a second", func() bool {
		at := time.Unix(0, renewed.Load())
		ago := time.Since(at) // the worker must have heard that it was
		return at.Nanosecond() >= 8e8 && ago > 50*time.Millisecond && ago < 200*time.Millisecond
	})
	_ = first.Signal(syscall.SIGSTOP) // or the kernel has killed it, as it was too slow
	require.NoError(t, server.Kill())
	require.NoError(t, sub.Unsubscribe())
	serve(t, dir, address)
	startWorker(t, q, 1, out)
	require.Equal(t, 2, mustWait(t, q, id).Attempt)
	require.Equal(t, 2, requireApart(t, out+"/*"))
	lived := lastTime(t, out).Sub(time.Unix(0, renewed.Load()))
	require.Less(t, lived, minLease-testkit.Scale(time.Second, 0), "a server may have given the task away")
}

// A task whose attempts were all lost with their workers is a dead letter, and can be put back.
func TestDeadAfterLost(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t, Listen("127.0.0.1:0"), Lease(minLease))
	ctx := testkit.Deadline(t)
	out := outDir(t)
	lost := startWorker(t, q, 1, out)
	id := submit(t, q, Task{Command: shell("[ ! -e /out/f ] || { echo again; exit 0; }; touch /out/f; sleep 1000"), Retry: Retry{Attempts: 1}})
	awaitAttempt(t, out)
	worker := awaitState(t, q, id, Running).Worker
	require.NoError(t, lost.Kill())
	startWorker(t, q, 1, out)
	why := "after 1 attempt: worker " + worker + " was lost"
	_, err := q.Wait(ctx, id)
	require.ErrorIs(t, err, ErrDead)
	require.ErrorContains(t, err, why)
	dead := func() (list []string) {
		for s, err := range q.Dead(ctx) {
			require.NoError(t, err)
			list = append(list, s.ID+" "+s.Text)
		}
		return list
	}
	require.Equal(t, []string{id + " " + why}, dead())
	require.NoError(t, q.Requeue(ctx, id))
	res := mustWait(t, q, id)
	require.Equal(t, "again", text(res.Stdout))
	require.Equal(t, 1, res.Attempt, "as many attempts again")
	require.Empty(t, dead())
}

// freeAddress returns an address at which nobody listens.
func freeAddress(t testing.TB) string {
	t.Helper()
	l := freePorts(t, 1)[0]
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// serve starts a server as a process of its own.
func serve(t testing.TB, dir, address string) (url string, server *os.Process) {
	t.Helper()
	cmd := testkit.HelperCommand(context.Background(), "serve", dir, address)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it has ended
		_ = cmd.Wait()         // it was killed
	})
	url, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(url), cmd.Process
}

// A worker that is cut off from the servers kills its run before they give the task away.
func TestWorkerCutOff(t *testing.T) {
	url, server := serve(t, t.TempDir(), "127.0.0.1:0")
	q, err := Open(testkit.Deadline(t), url)
	require.NoError(t, err)
	defer q.Close()
	out := outDir(t)
	startWorker(t, q, 1, out)
	id := submit(t, q, Task{Command: shell("[ ! -e /out/f ] || exit 0; while :; do date +%s%N > /out/g; mv /out/g /out/f; sleep 0.02; done")})
	lives := func() string {
		b, err := os.ReadFile(out + "/f")
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(t, err)
		}
		return string(b)
	}
	testkit.Eventually(t, "the run lives", func() bool { return lives() != "" })
	require.NoError(t, server.Signal(syscall.SIGSTOP))
	cut := time.Now()
	time.Sleep(minLease)
	last := lives()
	ns, err := strconv.ParseInt(text([]byte(last)), 10, 64)
	require.NoError(t, err)
	require.Less(t, time.Unix(0, ns).Sub(cut), minLease)
	time.Sleep(200 * time.Millisecond)
	require.Equal(t, last, lives(), "the run lives on")
	require.NoError(t, server.Signal(syscall.SIGCONT))
	startWorker(t, q, 1, out) // the kernel has killed the first one, if it was too slow
	require.Equal(t, 2, mustWait(t, q, id).Attempt)
}

// The server is killed while tasks are submitted: what was answered is there.
func TestServerKilled(t *testing.T) {
	ctx := testkit.Deadline(t)
	dir, address := t.TempDir(), freeAddress(t)
	url, server := serve(t, dir, address)
	q, err := Open(ctx, url)
	require.NoError(t, err)
	defer q.Close()
	submitted := make(chan []string, 1)
	stop := make(chan struct{})
	go func() {
		var ids []string
		for i := 0; ; i++ {
			select {
			case <-stop:
				submitted <- ids
				return
			default:
			}
			id, err := q.Submit(ctx, Task{Command: shell(fmt.Sprintf("echo %d", i)), Key: fmt.Sprint(i)})
			if err != nil {
				t.Errorf("submit %d: %v", i, err)
				submitted <- ids
				return
			}
			ids = append(ids, id)
			time.Sleep(5 * time.Millisecond)
		}
	}()
	for range 2 {
		time.Sleep(300 * time.Millisecond)
		require.NoError(t, server.Kill())
		_, server = serve(t, dir, address)
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	ids := <-submitted
	require.NotEmpty(t, ids)
	work(t, q)
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	for i, r := range results {
		require.Equal(t, fmt.Sprint(i), text(r.Stdout))
	}
}

// A worker ends soon when it is asked to, however many tasks wait.
func TestWorkerEndsWithBacklog(t *testing.T) {
	q := open(t)
	for range 200 {
		submit(t, q, Task{Command: shell("true")})
	}
	for range 8 {
		stop := work(t, q)
		time.Sleep(50 * time.Millisecond)
		begin := time.Now()
		stop()
		require.Less(t, time.Since(begin), testkit.Patience/4, "what it gives back it does not take again")
	}
}

// A worker that is asked to end gives its task back, which does not count as an attempt of it.
func TestWorkerEnds(t *testing.T) {
	q := open(t)
	id := submit(t, q, Task{Command: shell("sleep 1000"), Retry: Retry{Attempts: 1}})
	stop := work(t, q)
	awaitState(t, q, id, Running)
	stop()
	s := awaitState(t, q, id, Waiting)
	require.Equal(t, 1, s.Attempt)
	work(t, q)
	testkit.Eventually(t, "it runs again", func() bool {
		s, err := q.Status(testkit.Deadline(t), id)
		require.NoError(t, err)
		return s.State == Running && s.Attempt == 2
	})
	won, err := q.Cancel(testkit.Deadline(t), id, "enough")
	require.NoError(t, err)
	require.True(t, won)
}
