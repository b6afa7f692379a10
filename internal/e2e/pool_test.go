//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

// closePool closes a pool that has no runs left.
func closePool(t *testing.T, p *pool.Pool) {
	t.Helper()
	require.NoError(t, p.Close(testkit.Deadline(t)))
}

// records is an observer that keeps everything.
type records struct {
	mu  sync.Mutex
	all []pool.Record
}

func (r *records) RunEnded(one pool.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
}

// TestRootlessPool has more runs than the pool takes at a time, which end in all ways.
func TestRootlessPool(t *testing.T) {
	t.Parallel()
	var seen records
	var log bytes.Buffer
	const size = 3
	jobs := pool.New(runs.Shell("sleep 0.1"), size, pool.Observe(&seen), pool.Log(slog.New(slog.NewJSONHandler(&log, nil))))
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			script, timeout := "sleep 0.1", testkit.Patience
			switch i {
			case 0:
				script = "exit 3"
			case 1:
				script = "kill -9 $$"
			case 2:
				script, timeout = "sleep 1000", 5*time.Second
			}
			_, err := jobs.Run(testkit.Deadline(t), sandbox.WithCommand("sh", "-c", script), sandbox.WithTimeout(timeout))
			require.Equal(t, i > 2, err == nil, "%v", err)
		})
	}
	most, done := 0, make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	for over := false; !over; {
		s := jobs.Stats()
		most = max(most, s.Running)
		require.LessOrEqual(t, s.Running, size)
		select {
		case <-done:
			over = true
		case <-time.After(time.Millisecond):
		}
	}
	require.Equal(t, size, most)
	_, err := jobs.Run(testkit.Deadline(t), sandbox.WithCommand("/no/such/command"))
	require.Error(t, err)
	closePool(t, jobs)
	s := jobs.Stats()
	require.Equal(t, map[sandbox.Reason]uint64{sandbox.Exited: 1, sandbox.Signaled: 1, sandbox.TimedOut: 1}, s.Failed)
	require.EqualValues(t, 9, s.Served)
	require.EqualValues(t, 1, s.Unstarted)
	require.Zero(t, s.Running+s.Waiting)
	require.Positive(t, s.Wait.Max)
	require.Greater(t, s.Run.P50, 50*time.Millisecond)
	require.Greater(t, s.Run.Max, 4*time.Second)
	require.LessOrEqual(t, s.Run.P50, s.Run.P90)

	require.Len(t, seen.all, 13)
	ids := map[uint64]bool{}
	for _, r := range seen.all {
		ids[r.ID] = true
		require.NotEmpty(t, r.Command)
		require.Equal(t, r.Result == nil, r.Command[0] == "/no/such/command")
	}
	require.Len(t, ids, 13)
	require.Equal(t, 12, strings.Count(log.String(), `"msg":"run ended"`))
	require.Contains(t, log.String(), `"reason":"timed out"`)
	require.Contains(t, log.String(), `"msg":"run did not start"`)
	require.NotContains(t, log.String(), "sleep", "arguments may be secrets")
	_, err = jobs.Run(testkit.Deadline(t))
	require.ErrorIs(t, err, pool.ErrClosed)
}

// busy takes the pool's only place until free is called.
func busy(t *testing.T, jobs *pool.Pool) (free func()) {
	t.Helper()
	p, err := jobs.Start(testkit.Deadline(t), sandbox.WithCommand("sleep", "1000"))
	require.NoError(t, err)
	return func() {
		require.NoError(t, p.Kill())
		_, err := p.Wait()
		require.Error(t, err)
	}
}

// waiting waits until n runs of the pool are queued.
func waiting(t *testing.T, jobs *pool.Pool, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return jobs.Stats().Waiting == n }, testkit.Patience, time.Millisecond)
}

// TestRootlessPoolQueue has runs wait for their turn, no more of them than allowed and no longer
// than they want to.
func TestRootlessPoolQueue(t *testing.T) {
	t.Parallel()
	jobs := pool.New(runs.Shell("true"), 1, pool.Queue(3))
	free := busy(t, jobs)
	_, err := jobs.TryRun(testkit.Deadline(t))
	require.ErrorIs(t, err, pool.ErrFull)
	served := make(chan error)
	for range 2 {
		go func() {
			_, err := jobs.Run(context.Background())
			served <- err
		}()
	}
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	gaveUp := make(chan error)
	go func() {
		_, err := jobs.Run(ctx)
		gaveUp <- err
	}()
	waiting(t, jobs, 3)
	_, err = jobs.Run(testkit.Deadline(t))
	require.ErrorIs(t, err, pool.ErrFull)
	cancel()
	require.ErrorIs(t, <-gaveUp, context.Canceled)
	waiting(t, jobs, 2)
	free()
	require.NoError(t, <-served)
	require.NoError(t, <-served)
	require.Eventually(t, func() bool { return jobs.Stats().Running == 0 }, testkit.Patience, time.Millisecond)
	_, err = jobs.TryRun(testkit.Deadline(t))
	require.NoError(t, err)
	s := jobs.Stats()
	require.EqualValues(t, 2, s.Refused)
	require.EqualValues(t, 3, s.Served)
	closePool(t, jobs)
}

// TestRootlessPoolOrder requires that runs are served in the order in which they come. A run that
// waits may not be in the queue yet, and one that was served may report that late: on a busy
// machine a round can fail for either reason, but not three times.
func TestRootlessPoolOrder(t *testing.T) {
	t.Parallel()
	want := []int{0, 1, 2, 3}
	var got []int
	for range 3 {
		jobs := pool.New(runs.Shell("true"), 1)
		free := busy(t, jobs)
		order := make(chan int, len(want))
		for i := range want {
			go func() {
				_, _ = jobs.Run(context.Background())
				order <- i
			}()
			waiting(t, jobs, i+1)
			time.Sleep(20 * time.Millisecond)
		}
		free()
		got = nil
		for range want {
			got = append(got, <-order)
		}
		closePool(t, jobs)
		if slices.Equal(got, want) {
			return
		}
	}
	require.Equal(t, want, got)
}

// TestRootlessPoolClose closes a pool while runs wait and run.
func TestRootlessPoolClose(t *testing.T) {
	t.Parallel()
	jobs := pool.New(runs.Shell("sleep 1000"), 1)
	running, err := jobs.Start(testkit.Deadline(t))
	require.NoError(t, err)
	waited := make(chan error)
	go func() {
		_, err := jobs.Run(context.Background())
		waited <- err
	}()
	waiting(t, jobs, 1)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(testkit.Deadline(t))
	closed := make(chan error)
	go func() { closed <- jobs.Close(ctx) }()
	require.ErrorIs(t, <-waited, pool.ErrClosed)
	select {
	case err := <-closed:
		t.Fatal("closed while a run lives:", err)
	case <-time.After(100 * time.Millisecond):
	}
	cancel(why)
	require.ErrorIs(t, <-closed, why)
	_, err = running.Wait()
	require.ErrorIs(t, err, pool.ErrClosed)
	require.ErrorIs(t, err, context.Canceled)
	closePool(t, jobs)
	_, err = jobs.Start(testkit.Deadline(t))
	require.ErrorIs(t, err, pool.ErrClosed)
}

// TestPoolBudget has runs share what the pool gives them.
func TestPoolBudget(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "cgroup cpu")
	jobs := pool.New(runs.Shell("true"), 2, pool.Memory(100*sandbox.MiB), pool.CPUs(0.5))
	hold := "head -c 60000000 /dev/zero >/dev/shm/x && echo held && sleep "
	var out bytes.Buffer
	first, err := jobs.Start(testkit.Deadline(t), sandbox.WithCommand("sh", "-c", hold+"1000"), sandbox.WithStdout(&out))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		u, err := first.Usage()
		return err == nil && u.MemoryPeak >= 60_000_000
	}, testkit.Patience, 10*time.Millisecond)
	_, err = jobs.Run(testkit.Deadline(t), sandbox.WithCommand("sh", "-c", hold+"0"))
	_ = first.Kill()
	if err == nil { // the kernel chose the other one
		_, err = first.Wait()
	}
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory, "more than both may have")
	_, _ = first.Wait()
	_, err = jobs.Run(testkit.Deadline(t), sandbox.WithCommand("sh", "-c", hold+"0"))
	require.NoError(t, err, "alone it may")

	spin := []sandbox.Option{sandbox.WithCommand("sh", "-c", "while :; do :; done"), sandbox.WithTimeout(2 * time.Second)}
	var used [2]time.Duration
	var group sync.WaitGroup
	for i := range used {
		group.Go(func() {
			result, err := jobs.Run(testkit.Deadline(t), spin...)
			require.ErrorIs(t, err, sandbox.ErrTimeout)
			used[i] = result.Usage.UserCPU + result.Usage.SystemCPU
		})
	}
	group.Wait()
	require.Less(t, used[0]+used[1], 1500*time.Millisecond, "half a CPU for 2 s, and a machine that is late")
	_, err = jobs.Run(testkit.Deadline(t), sandbox.WithCPUs(0.75))
	require.ErrorContains(t, err, "pool.CPUs")
	closePool(t, jobs)
	closePool(t, jobs)
}

func TestPoolOptions(t *testing.T) {
	t.Parallel()
	for want, jobs := range map[string]*pool.Pool{
		"pool.New: 0":              pool.New(runs.Shell("true"), 0),
		"pool.New: the sandbox is": pool.New(nil, 1),
		"pool.Queue: -1":           pool.New(runs.Shell("true"), 1, pool.Queue(-1)),
		"pool.Memory: 5 bytes":     pool.New(runs.Shell("true"), 1, pool.Memory(5)),
		"pool.CPUs: 1e+06 is not ": pool.New(runs.Shell("true"), 1, pool.CPUs(1e6)),
		"WithMemory: -1 bytes":     pool.New(runs.Shell("true", sandbox.WithMemory(-1)), 1),
	} {
		_, err := jobs.Run(testkit.Deadline(t))
		require.ErrorContains(t, err, want)
		closePool(t, jobs)
	}
	alone := pool.New(sandbox.New(sandbox.WithCommand("cat")), 1)
	_, err := alone.Run(testkit.Deadline(t), sandbox.WithStdinPipe())
	require.ErrorContains(t, err, "WithStdinPipe: Run returns no Process")
	process, err := alone.Start(testkit.Deadline(t), sandbox.WithStdinPipe())
	require.NoError(t, err)
	require.NoError(t, process.StdinPipe().Close())
	_, err = process.Wait()
	require.NoError(t, err)
	closePool(t, alone)
}

// TestRootlessPoolBudgetWithoutCgroups asks for what can't be enforced.
func TestRootlessPoolBudgetWithoutCgroups(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "no cgroups at hand")
	for name, o := range map[string]pool.Option{"pool.Memory": pool.Memory(100 * sandbox.MiB), "pool.CPUs": pool.CPUs(0.5)} {
		jobs := pool.New(runs.Shell("true"), 1, o)
		_, err := jobs.Run(testkit.Deadline(t))
		require.Equal(t, "cgroup", runs.SetupError(t, err).Stage)
		require.ErrorContains(t, err, name)
		closePool(t, jobs)
	}
}

// TestPoolLeavesNothing closes pools with runs that wait for a command, under budgets.
func TestPoolLeavesNothing(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	mark := testkit.ALongTime()
	for i := range 5 {
		jobs := pool.New(runs.Shell("sleep "+mark+" & exit 0"), 4, pool.Memory(200*sandbox.MiB))
		p, err := jobs.Start(testkit.Deadline(t), sandbox.WithCommand("sleep", "1000"))
		require.NoError(t, err)
		where := poolDirs(t, p.PID())
		require.NoError(t, p.Kill())
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				_, err := jobs.Run(testkit.Deadline(t))
				require.NoError(t, err)
			})
		}
		group.Wait()
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		closePool(t, jobs)
		for _, dir := range where {
			require.NoDirExists(t, dir)
		}
	}
	testkit.RequireGone(t, mark)
}

// poolDirs returns the pool's cgroups that a process is in.
func poolDirs(t *testing.T, pid int) (dirs []string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	require.NoError(t, err)
	for _, p := range regexp.MustCompile(`/[^:\n]*/pool-\d+/`).FindAllString(string(b), -1) {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, err := filepath.Glob(mount + strings.TrimSuffix(p, "/"))
			require.NoError(t, err)
			dirs = append(dirs, found...)
		}
	}
	require.NotEmpty(t, dirs, "%s", b)
	return dirs
}
