//go:build linux

package sandbox_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// Booting a cell must not take this process's first thread, whose view of the
// system /proc/self shows, into the cell.
func TestBootLeavesMainThread(t *testing.T) {
	need(t, "root")
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
	need(t, "root")
	r, w := io.Pipe()
	p := start(t, shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done", sandbox.WithStdout(w)))
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
	require.Equal(t, 5, exitError(t, first.err).ExitCode)
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
	need(t, "root")
	mark := aLongTime()
	p := start(t, shell("setsid sleep "+mark+" & sleep "+mark))
	eventually(t, "both are there", func() bool { return len(running(mark)) == 2 })
	require.NoError(t, p.Kill())
	result, err := p.Wait()
	require.Equal(t, sandbox.Signaled, exitError(t, err).Reason)
	require.Equal(t, syscall.SIGKILL, result.Signal)
	requireGone(t, mark)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	need(t, "root")
	mark := aLongTime()
	for _, script := range []string{"exec sleep " + mark, "trap '' TERM INT; while :; do sleep " + mark + "; done"} {
		ctx, cancel := context.WithCancel(deadline(t))
		p, err := shell(script).Start(ctx)
		require.NoError(t, err)
		cancel()
		result, err := p.Wait()
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, sandbox.Canceled, exitError(t, err).Reason)
		require.Equal(t, sandbox.Canceled, result.Reason)
		requireGone(t, mark)
	}
	ctx, cancel := context.WithTimeout(deadline(t), patience/200)
	defer cancel()
	_, err := shell("exec sleep 1000").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, sandbox.ErrTimeout)

	_, err = shell("").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "a context that has ended already")
	// The context may end at any moment of a start.
	for i := range 50 {
		ctx, cancel := context.WithTimeout(deadline(t), time.Duration(i)*100*time.Microsecond)
		_, err := shell("exec sleep 1000").Run(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
	}
}

// A process left in the background neither keeps Wait waiting nor outlives the
// run, whatever it did to get away.
func TestBackgroundProcesses(t *testing.T) {
	t.Parallel()
	need(t, "root")
	mark := aLongTime()
	for _, s := range []*sandbox.Sandbox{
		shell("sleep " + mark + " & echo done"),
		shell("setsid sleep " + mark + " & echo done"),
		shell("(setsid sh -c 'trap \"\" TERM HUP; (sleep " + mark + " &) ; sleep " + mark + "' &) ; echo done"),
		helper("orphan", "sleep", mark).With(sandbox.WithStdin(strings.NewReader("input"))),
	} {
		out, err := s.Output(deadline(t))
		require.NoError(t, err)
		require.Contains(t, []string{"done\n", ""}, string(out))
		requireGone(t, mark)
	}
}

// PID 1 reaps orphans: with fewer processes allowed than there are orphans, none could be
// made if it did not.
func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	need(t, "cgroup pids")
	orphans := 300
	if inGuest() {
		orphans = 200
	}
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do (:&) || exit 1; i=$((i+1)); done; echo $i", orphans)
	require.Equal(t, fmt.Sprint(orphans), output(t, shell(script, sandbox.WithPIDs(int64(orphans/3)))))
}

func TestPause(t *testing.T) {
	t.Parallel()
	need(t, "freezer")
	p := start(t, helper("spin", "1h"))
	busy := func() time.Duration {
		u, err := p.Usage()
		require.NoError(t, err)
		return u.UserCPU + u.SystemCPU
	}
	eventually(t, "it uses CPU", func() bool { return busy() > 20*time.Millisecond })
	require.NoError(t, p.Resume(), "without a pause it does nothing")
	require.NoError(t, p.Pause())
	require.NoError(t, p.Pause(), "twice is once")
	before := busy()
	time.Sleep(100 * time.Millisecond) // the thing to see is that nothing happens
	require.Less(t, busy()-before, 20*time.Millisecond)
	require.NoError(t, p.Signal(syscall.SIGTERM), "delivered after Resume")
	require.NoError(t, p.Resume())
	_, err := p.Wait()
	require.Equal(t, syscall.SIGTERM, exitError(t, err).Signal)
}

func TestEndWhilePaused(t *testing.T) {
	t.Parallel()
	need(t, "freezer")
	sleep := sandbox.New(sandbox.WithCommand("sleep", aLongTime()))
	paused := func(s *sandbox.Sandbox, ctx context.Context) *sandbox.Process {
		p, err := s.Start(ctx)
		require.NoError(t, err)
		require.NoError(t, p.Pause())
		return p
	}
	p := paused(sleep, deadline(t))
	require.NoError(t, p.Kill())
	_, err := p.Wait()
	require.Equal(t, sandbox.Signaled, exitError(t, err).Reason)

	p = paused(sleep.With(sandbox.WithTimeout(patience/100)), deadline(t))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	ctx, cancel := context.WithCancel(deadline(t))
	p = paused(sleep, ctx)
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled)

	c, err := sandbox.NewCell()
	require.NoError(t, err)
	p = paused(sleep.With(sandbox.WithCell(c)), deadline(t))
	require.NoError(t, c.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

func TestCell(t *testing.T) {
	t.Parallel()
	need(t, "root")
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	mark := aLongTime()
	inCell := shell("sleep "+mark+" & sleep "+mark, sandbox.WithCell(c))
	p1, p2 := start(t, inCell), start(t, inCell)
	require.Equal(t, "fine", output(t, shell("echo fine", sandbox.WithCell(c))))
	require.NoError(t, c.Close())
	requireGone(t, mark)
	for _, p := range []*sandbox.Process{p1, p2} {
		_, err := p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
		require.ErrorIs(t, p.Kill(), os.ErrProcessDone)
	}
	_, err = inCell.Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.NoError(t, c.Close(), "again")
	require.Equal(t, "fine", output(t, shell("echo fine")), "the default cell is another")
}

// What follows is about the default cell, so no other test may be under way.

func TestCellKilledFromOutside(t *testing.T) {
	need(t, "root")
	require.NoError(t, sandbox.Shutdown(deadline(t)))
	mark := aLongTime()
	p := start(t, shell("sleep "+mark+" & sleep "+mark))
	servers := childPIDs()
	require.Len(t, servers, 1, "the only child is the default cell's fork server")
	require.NoError(t, syscall.Kill(servers[0], syscall.SIGKILL))
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.EqualError(t, err, "sandbox: the cell is gone (the fork server has ended: signal: killed)")
	requireGone(t, mark)
	require.Equal(t, "fine", output(t, shell("echo fine")))

	// Killed at any moment, a start fails with ErrCellLost or is made again in another cell.
	for range 10 {
		ended := make(chan error)
		go func() {
			_, err := shell("exit 0").Run(deadline(t))
			ended <- err
		}()
		for _, pid := range childPIDs() {
			// Not libcontainer's processes, which make the cell.
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "sandbox-forkserver") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := <-ended; err != nil {
			require.ErrorIs(t, err, sandbox.ErrCellLost)
		}
	}
	require.Equal(t, "fine", output(t, shell("echo fine")))
}

// A fork server that does not answer holds up nobody beyond his own time limit.
func TestStoppedServer(t *testing.T) {
	need(t, "root")
	require.NoError(t, sandbox.Shutdown(deadline(t)))
	p := start(t, shell("sleep 1000 & sleep 1000", sandbox.WithTimeout(patience/60)))
	servers := childPIDs()
	require.Len(t, servers, 1)
	serving := pidsOf(childrenOf(servers[0]))
	require.Len(t, serving, 1)
	require.NoError(t, syscall.Kill(serving[0], syscall.SIGSTOP))
	defer syscall.Kill(serving[0], syscall.SIGCONT)

	paused := make(chan error, 1)
	go func() { paused <- p.Pause() }() // on cgroup v1 that takes the fork server
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	ctx, cancel := context.WithTimeout(deadline(t), patience/60)
	defer cancel()
	_, err = shell("exit 0").Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.NoError(t, syscall.Kill(serving[0], syscall.SIGCONT))
	if err := <-paused; err != nil && controller("freezer")() {
		require.ErrorIs(t, err, os.ErrProcessDone)
	}
	require.Equal(t, "fine", output(t, shell("echo fine")))
	eventually(t, "nothing is left of the other two", func() bool { return len(childrenOf(serving[0])) == 0 })
}

// Pausing must not keep a cell from ending, whatever comes first.
func TestCloseWhilePausing(t *testing.T) {
	need(t, "freezer")
	for range 10 {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		p := start(t, shell("sleep 1000 & sleep 1000", sandbox.WithCell(c)))
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

func childPIDs() []int { return pidsOf(childProcesses()) }

func pidsOf(children []string) (pids []int) {
	for _, child := range children {
		pid, _ := strconv.Atoi(strings.Fields(child)[0])
		pids = append(pids, pid)
	}
	return pids
}

func TestShutdown(t *testing.T) {
	need(t, "root")
	before := takeInventory()
	mark := aLongTime()
	p := start(t, shell("sleep "+mark+" & sleep "+mark))
	host := start(t, shell("sleep "+mark, sandbox.WithNetwork(sandbox.NetworkHost)))
	require.NoError(t, sandbox.Shutdown(deadline(t)))
	requireGone(t, mark)
	for _, p := range []*sandbox.Process{p, host} {
		_, err := p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
	}
	require.Empty(t, childPIDs())
	require.NoError(t, sandbox.Shutdown(deadline(t)), "there is nothing to shut down")

	// Concurrent first runs share one cell.
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := shell("exit 0").Run(deadline(t))
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
	require.Len(t, childPIDs(), 1)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p = start(t, shell("sleep "+mark))
	if err := sandbox.Shutdown(ended); err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
	_, err := p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.Empty(t, before.awaitNothingAdded(patience))
}
