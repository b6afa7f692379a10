//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Booting a cell must not move this process's first thread, whose view of the system /proc/self
// shows, into the cell.
func TestBootLeavesMainThread(t *testing.T) {
	testkit.Need(t, "root")
	before, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	for range 10 {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		after, err := os.Readlink("/proc/self/ns/mnt")
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.Equal(t, before, after)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	r, w := io.Pipe()
	p := runs.Start(t, runs.Shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done", sandbox.WithStdout(w)))
	lines := bufio.NewScanner(r)
	require.True(t, lines.Scan())
	require.Equal(t, "ready", lines.Text())
	require.Equal(t, "sh", strings.Join(status(t, p.PID(), "Name:"), ""))
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.Wall)
	require.NoError(t, p.Signal(syscall.SIGUSR1))
	require.True(t, lines.Scan())
	require.Equal(t, "caught", lines.Text())

	type end struct {
		result *sandbox.Result
		err    error
	}
	ends := make(chan end)
	for range 5 {
		go func() {
			result, err := p.Wait()
			ends <- end{result, err}
		}()
	}
	first := <-ends
	require.Equal(t, 5, runs.ExitError(t, first.err).ExitCode)
	for range 4 {
		require.Equal(t, first, <-ends)
	}
	again, err := p.Wait()
	require.Equal(t, first, end{again, err})
	require.ErrorIs(t, p.Signal(syscall.SIGTERM), os.ErrProcessDone)
	require.ErrorIs(t, p.Kill(), os.ErrProcessDone)
	require.ErrorIs(t, p.Pause(), os.ErrProcessDone)
	require.ErrorIs(t, p.Resume(), os.ErrProcessDone)
	usage, err = p.Usage()
	require.NoError(t, err)
	require.Equal(t, first.result.Usage, usage)
}

func TestKill(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	mark := testkit.ALongTime()
	p := runs.Start(t, runs.Shell("setsid sleep "+mark+" & sleep "+mark))
	testkit.Eventually(t, "both are there", func() bool { return len(testkit.Running(mark)) == 2 })
	require.NoError(t, p.Kill())
	result, err := p.Wait()
	require.Equal(t, sandbox.Signaled, runs.ExitError(t, err).Reason)
	require.Equal(t, syscall.SIGKILL, result.Signal)
	testkit.RequireGone(t, mark)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	mark := testkit.ALongTime()
	for _, script := range []string{"exec sleep " + mark, "trap '' TERM INT; while :; do sleep " + mark + "; done"} {
		ctx, cancel := context.WithCancel(testkit.Deadline(t))
		p, err := runs.Shell(script).Start(ctx)
		require.NoError(t, err)
		cancel()
		result, err := p.Wait()
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, sandbox.Canceled, runs.ExitError(t, err).Reason)
		require.Equal(t, sandbox.Canceled, result.Reason)
		testkit.RequireGone(t, mark)
	}
	ctx, cancel := context.WithTimeout(testkit.Deadline(t), testkit.Patience/200)
	defer cancel()
	_, err := runs.Shell("exec sleep 1000").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, sandbox.ErrTimeout)

	_, err = runs.Shell("").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "a context that has ended already")
	// The context may end at any moment of a start.
	for i := range 50 {
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), time.Duration(i)*100*time.Microsecond)
		_, err := runs.Shell("exec sleep 1000").Run(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
	}
}

// A process left in the background neither makes Wait wait nor outlives the run, whatever it did to
// escape.
func TestBackgroundProcesses(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	mark := testkit.ALongTime()
	for _, s := range []*sandbox.Sandbox{
		runs.Shell("sleep " + mark + " & echo done"),
		runs.Shell("setsid sleep " + mark + " & echo done"),
		runs.Shell("(setsid sh -c 'trap \"\" TERM HUP; (sleep " + mark + " &) ; sleep " + mark + "' &) ; echo done"),
		runs.Helper("orphan", "sleep", mark).With(sandbox.WithStdin(strings.NewReader("input"))),
	} {
		out, err := s.Output(testkit.Deadline(t))
		require.NoError(t, err)
		require.Contains(t, []string{"done\n", ""}, string(out))
		testkit.RequireGone(t, mark)
	}
}

// PID 1 reaps orphans. If it did not, no process could be made here, because there are more orphans
// than the limit allows.
func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup pids")
	orphans := 300
	if testkit.InGuest {
		orphans = 200
	}
	// Who reaps them needs a CPU now and then.
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do (:&) || exit 1; i=$((i+1)); [ $((i %% %d)) != 0 ] || sleep 0.05; done; echo $i", orphans, orphans/10)
	require.Equal(t, fmt.Sprint(orphans), runs.Output(t, runs.Shell(script, sandbox.WithPIDs(int64(orphans/3)))))
}

func TestPause(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "freezer")
	p := runs.Start(t, runs.Helper("spin", "1h"))
	busy := func() time.Duration {
		u, err := p.Usage()
		require.NoError(t, err)
		return u.UserCPU + u.SystemCPU
	}
	testkit.Eventually(t, "it uses CPU", func() bool { return busy() > 20*time.Millisecond })
	require.NoError(t, p.Resume(), "without a pause it does nothing")
	require.NoError(t, p.Pause())
	require.NoError(t, p.Pause(), "twice is once")
	before := busy()
	time.Sleep(100 * time.Millisecond) // to see that nothing happens
	require.Less(t, busy()-before, 20*time.Millisecond)
	require.NoError(t, p.Signal(syscall.SIGTERM), "delivered after Resume")
	require.NoError(t, p.Resume())
	_, err := p.Wait()
	require.Equal(t, syscall.SIGTERM, runs.ExitError(t, err).Signal)
}

func TestEndWhilePaused(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "freezer")
	sleep := sandbox.New(sandbox.WithCommand("sleep", testkit.ALongTime()))
	paused := func(s *sandbox.Sandbox, ctx context.Context) *sandbox.Process {
		p, err := s.Start(ctx)
		require.NoError(t, err)
		require.NoError(t, p.Pause())
		return p
	}
	p := paused(sleep, testkit.Deadline(t))
	require.NoError(t, p.Kill())
	_, err := p.Wait()
	require.Equal(t, sandbox.Signaled, runs.ExitError(t, err).Reason)

	p = paused(sleep.With(sandbox.WithTimeout(testkit.Patience/100)), testkit.Deadline(t))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	p = paused(sleep, ctx)
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled)

	c, err := sandbox.NewCell()
	require.NoError(t, err)
	p = paused(sleep.With(sandbox.WithCell(c)), testkit.Deadline(t))
	require.NoError(t, c.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

func TestCell(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	mark := testkit.ALongTime()
	inCell := runs.Shell("sleep "+mark+" & sleep "+mark, sandbox.WithCell(c))
	p1, p2 := runs.Start(t, inCell), runs.Start(t, inCell)
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine", sandbox.WithCell(c))))
	require.NoError(t, c.Close())
	testkit.RequireGone(t, mark)
	for _, p := range []*sandbox.Process{p1, p2} {
		_, err := p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
		require.ErrorIs(t, p.Kill(), os.ErrProcessDone)
	}
	_, err = inCell.Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.NoError(t, c.Close(), "again")
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine")), "the default cell is another")
}

// The following tests use the default cell, so no other test may run at the same time.

func TestCellKilledFromOutside(t *testing.T) {
	testkit.Need(t, "root")
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)))
	mark := testkit.ALongTime()
	p := runs.Start(t, runs.Shell("sleep "+mark+" & sleep "+mark))
	server, why := initOf(t, p.PID()), "sandbox: the cell is gone (the fork server has ended"
	if children := testkit.ChildPIDs(); len(children) > 0 { // in a daemon's container there is none
		require.Len(t, children, 1, "the only child is the default cell's fork server, or stands for it")
		server, why = children[0], why+": signal: killed)"
	}
	require.NoError(t, syscall.Kill(server, syscall.SIGKILL))
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	if require.ErrorContains(t, err, why); testkit.Wall == "" {
		require.EqualError(t, err, why)
	}
	testkit.RequireGone(t, mark)
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine")))

	// If the fork server is killed at any moment, a start fails with ErrCellLost or is repeated
	// in another cell.
	for range 10 {
		ended := make(chan error)
		go func() {
			_, err := runs.Shell("exit 0").Run(testkit.Deadline(t))
			ended <- err
		}()
		for _, pid := range testkit.ChildPIDs() {
			// Except libcontainer's processes, which make the cell.
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "sandbox-forkserver") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := <-ended; err != nil {
			require.ErrorIs(t, err, sandbox.ErrCellLost)
		}
	}
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine")))
}

// A fork server that does not answer delays no run beyond that run's own time limit.
func TestStoppedServer(t *testing.T) {
	testkit.Need(t, "root")
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)))
	p := runs.Start(t, runs.Shell("sleep 1000 & sleep 1000", sandbox.WithTimeout(testkit.Patience/60)))
	serving := testkit.ChildrenOf(initOf(t, p.PID()))
	require.Len(t, serving, 1)
	require.NoError(t, syscall.Kill(serving[0], syscall.SIGSTOP))
	defer syscall.Kill(serving[0], syscall.SIGCONT)

	paused := make(chan error, 1)
	go func() { paused <- p.Pause() }() // takes the fork server on cgroup v1
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	ctx, cancel := context.WithTimeout(testkit.Deadline(t), testkit.Patience/60)
	defer cancel()
	_, err = runs.Shell("exit 0").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.NoError(t, syscall.Kill(serving[0], syscall.SIGCONT))
	if err := <-paused; err != nil && testkit.Controller("freezer") {
		require.ErrorIs(t, err, os.ErrProcessDone)
	}
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine")))
	testkit.Eventually(t, "nothing is left of the other two", func() bool { return len(testkit.ChildrenOf(serving[0])) == 0 })
}

// A run reports that its cell was lost, also while the fork server, which was killed, is there yet:
// it waits for all of the cell, and a busy machine gives them no time to end. Here one is frozen.
func TestCellKilledSlowly(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "cgroup v1") // whose frozen processes can't die
	testkit.Need(t, "freezer")
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	p := runs.Start(t, runs.Shell("exec sleep 1000", sandbox.WithCell(c)))
	e, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("sleep", "1000"))
	require.NoError(t, err)
	server := initOf(t, p.PID())
	serving := testkit.Parent(t, testkit.Parent(t, p.PID()))
	require.NotEqual(t, server, serving)

	group := "/sys/fs/cgroup/freezer/sandbox-test-" + testkit.ALongTime()
	write := func(file, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(group, file), []byte(content), 0))
	}
	require.NoError(t, os.Mkdir(group, 0o755))
	defer testkit.Eventually(t, "the cgroup is empty", func() bool { return os.Remove(group) == nil })
	write("cgroup.procs", fmt.Sprint(serving))
	write("freezer.state", "FROZEN")
	defer write("freezer.state", "THAWED")
	testkit.Eventually(t, "it is frozen", func() bool {
		state, err := os.ReadFile(filepath.Join(group, "freezer.state"))
		return err == nil && string(state) == "FROZEN\n"
	})

	require.NoError(t, syscall.Kill(server, syscall.SIGKILL))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	_, err = e.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.NoError(t, syscall.Kill(server, 0), "it is there yet")
	write("freezer.state", "THAWED")
	require.NoError(t, c.Close())
}

// Pausing must not keep a cell from ending, whatever comes first.
func TestCloseWhilePausing(t *testing.T) {
	testkit.Need(t, "freezer")
	for range 10 {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		p := runs.Start(t, runs.Shell("sleep 1000 & sleep 1000", sandbox.WithCell(c)))
		paused := make(chan struct{})
		go func() {
			_ = p.Pause()
			close(paused)
		}()
		require.NoError(t, c.Close())
		_, err = p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
		<-paused
	}
}

func TestShutdown(t *testing.T) {
	testkit.Need(t, "root")
	before := testkit.TakeInventory()
	mark := testkit.ALongTime()
	p := runs.Start(t, runs.Shell("sleep "+mark+" & sleep "+mark))
	host := runs.Start(t, runs.Shell("sleep "+mark, sandbox.WithNetwork(sandbox.NetworkHost)))
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)))
	testkit.RequireGone(t, mark)
	for _, p := range []*sandbox.Process{p, host} {
		_, err := p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
	}
	require.Empty(t, testkit.ChildPIDs())
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)), "there is nothing to shut down")

	// Concurrent first runs share one cell.
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := runs.Shell("exit 0").Run(testkit.Deadline(t))
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
	require.Len(t, testkit.Cells(), 1)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p = runs.Start(t, runs.Shell("sleep "+mark))
	if err := sandbox.Shutdown(ended); err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.Empty(t, before.AwaitNothingAdded(testkit.Patience))
}
