//go:build linux

package sandbox_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// prepared returns a sandbox with n runs prepared.
func prepared(t testing.TB, n int, opts ...sandbox.Option) *sandbox.Sandbox {
	t.Helper()
	s := runs.Prepared(t, n, opts...)
	require.Len(t, s.Waiting(), n)
	return s
}

func (s script) of(base *sandbox.Sandbox, opts ...sandbox.Option) *sandbox.Sandbox {
	return base.With(sandbox.WithCommand("sh", "-c", string(s))).With(opts...)
}

type script string

// gone waits until none of the processes exists any more.
func gone(t testing.TB, pids []int) {
	t.Helper()
	require.NotEmpty(t, pids)
	testkit.Eventually(t, "runs that wait end", func() bool {
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				return false
			}
		}
		return true
	})
}

// A prepared run does what a fresh one does, with the command, streams and files of the start that
// takes it.
func TestRootlessPrepared(t *testing.T) {
	t.Parallel()
	base := prepared(t, 2)
	waiting := base.Waiting()
	p := runs.Start(t, script("exit 7").of(base))
	require.Equal(t, waiting[0], p.PID(), "the oldest is taken")
	_, err := p.Wait()
	require.Equal(t, 7, runs.ExitError(t, err).ExitCode)

	extra, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	_, err = extra.WriteString("extra")
	require.NoError(t, err)
	_, err = extra.Seek(0, 0)
	require.NoError(t, err)
	defer extra.Close()
	const all = `cat; cat <&3; echo " $A $(pwd) $$ $(ulimit -n) $(hostname) $(id -u)"; echo err >&2; ls /tmp; grep -c . /proc/net/dev; touch /tmp/mine`
	opts := []sandbox.Option{sandbox.WithStdin(strings.NewReader("in ")), sandbox.WithExtraFiles(extra), sandbox.WithEnv("A=env"),
		sandbox.WithDir("/usr"), sandbox.WithRlimit("nofile", 60, 60), sandbox.WithTimeout(time.Minute)}
	var of [2]string
	for i := range of {
		s := base.With(sandbox.WithPrepared(0))
		if i > 0 {
			require.NoError(t, base.Prepare(testkit.Deadline(t)))
			s = base
		}
		out, err := script(all).of(s, append(opts, sandbox.WithStdin(strings.NewReader("in ")))...).CombinedOutput(testkit.Deadline(t))
		require.NoError(t, err)
		of[i] = string(out)
		_, err = extra.Seek(0, 0)
		require.NoError(t, err)
	}
	require.Equal(t, "in extra env /usr 2 60 sandbox 1000\nerr\n3\n", of[0])
	require.Equal(t, of[0], of[1])
	for range 5 { // each is used once
		require.NotContains(t, runs.Output(t, script("ls /tmp; touch /tmp/mine").of(base)), "mine")
	}
}

// More starts than runs that wait: the rest are fresh.
func TestRootlessMoreThanPrepared(t *testing.T) {
	t.Parallel()
	base := prepared(t, 2)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				out, err := script("echo done").of(base).Output(testkit.Deadline(t))
				if err != nil || string(out) != "done\n" {
					t.Errorf("%q, %v", out, err)
				}
			}
		})
	}
	all.Wait()
	testkit.Eventually(t, "they are replaced", func() bool { return len(base.Waiting()) == 2 })
}

// A sandbox that is used once prepares nothing, and one without the option never does.
func TestPreparedFromTheSecondStart(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	s := runs.Shell("", sandbox.WithPrepared(3))
	runs.Output(t, s)
	time.Sleep(50 * time.Millisecond)
	require.Empty(t, s.Waiting())
	runs.Output(t, s)
	testkit.Eventually(t, "three wait", func() bool { return len(s.Waiting()) == 3 })
	require.ErrorContains(t, runs.Shell("").Prepare(testkit.Deadline(t)), "WithPrepared: is missing")
	require.ErrorContains(t, runs.Shell("", sandbox.WithPrepared(1), sandbox.WithMemory(-1)).Prepare(testkit.Deadline(t)), "WithMemory")
	missing := runs.Shell("", sandbox.WithPrepared(1), sandbox.WithReadOnlyBind(testkit.OpenDir(t), "/usr/no-such-dir"))
	runs.SetupError(t, missing.Prepare(testkit.Deadline(t)), "WithReadOnlyBind /usr/no-such-dir")
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	cancel()
	require.ErrorIs(t, runs.Shell("", sandbox.WithPrepared(1)).Prepare(ctx), context.Canceled)
}

// Runs that died while they waited are never handed out.
func TestRootlessPreparedRunsThatDied(t *testing.T) {
	t.Parallel()
	for _, init := range []bool{true, false} {
		base := prepared(t, 2)
		dead := base.Waiting()[0]
		victim := dead
		if init {
			victim = testkit.Parent(t, dead)
		}
		require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
		gone(t, []int{dead})
		p := runs.Start(t, script("exit 0").of(base))
		require.NotEqual(t, dead, p.PID())
		_, err := p.Wait()
		require.NoError(t, err)
		require.NoError(t, base.Prepare(testkit.Deadline(t)))
		require.Len(t, base.Waiting(), 2)
	}
}

// What was replaced on the host after the runs were prepared is not what later ones see.
func TestPreparedAreNotOutdated(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	src := filepath.Join(testkit.OpenDir(t), "source")
	require.NoError(t, testkit.Mkdirs(src, "/old"))
	base := prepared(t, 2, sandbox.WithReadOnlyBind(src, "/tmp/it"))
	outdated := base.Waiting()
	require.NoError(t, os.Rename(src, src+".old"))
	require.NoError(t, testkit.Mkdirs(src, "/new"))
	require.Equal(t, "new", runs.Output(t, script("ls /tmp/it").of(base)))
	gone(t, outdated)
}

// Limits are those of the sandbox, and what a run used is its own.
func TestPreparedLimits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "cgroup pids")
	testkit.Need(t, "CPU accounting")
	base := prepared(t, 2, sandbox.WithMemory(32*sandbox.MiB), sandbox.WithPIDs(10))
	result, err := script("head -c 100m /dev/zero | tail >/dev/null").of(base).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Positive(t, result.Usage.OOMKills)
	base = prepared(t, 1, sandbox.WithCPUTime(time.Second))
	result, err = script("while :; do :; done").of(base).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCPUTime)
	require.GreaterOrEqual(t, result.Usage.UserCPU+result.Usage.SystemCPU, time.Second)
	require.NoError(t, base.Prepare(testkit.Deadline(t)))
	prepared := time.Now()
	time.Sleep(2 * time.Second) // waiting is not counted
	result, err = script("exit 0").of(base, sandbox.WithTimeout(2*time.Second)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Less(t, result.Usage.Wall, time.Since(prepared)-2*time.Second)
	require.Less(t, result.Usage.UserCPU+result.Usage.SystemCPU, time.Second)
}

// Cancelling, timeouts and commands that can't be executed give the same errors as without
// WithPrepared.
func TestRootlessPreparedErrors(t *testing.T) {
	t.Parallel()
	base := prepared(t, 3)
	_, err := base.With(sandbox.WithCommand("no-such-command")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = script("").of(base, sandbox.WithDir("/no/such/dir")).Run(testkit.Deadline(t))
	require.Equal(t, "WithDir", runs.SetupError(t, err).Stage)
	mark := testkit.ALongTime()
	_, err = script("sleep "+mark).of(base, sandbox.WithTimeout(50*time.Millisecond)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.NoError(t, base.Prepare(testkit.Deadline(t)))
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = script("sleep " + mark).of(base).Run(ctx)
	require.ErrorIs(t, err, context.Canceled)
	testkit.RequireGone(t, mark)
}

// Prepared runs end when nobody can use them any more.
func TestRootlessPreparedEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(c *sandbox.Cell){
		"the cell ends":          func(c *sandbox.Cell) { require.NoError(t, c.Close()) },
		"the sandbox is garbage": func(*sandbox.Cell) {},
	} {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		s := prepared(t, 3, sandbox.WithCell(c))
		waiting := s.Waiting()
		end(c)
		if strings.Contains(name, "garbage") {
			s = nil
			testkit.Eventually(t, name, func() bool { runtime.GC(); return syscall.Kill(waiting[0], 0) != nil })
		}
		gone(t, waiting)
		require.NoError(t, c.Close())
		runtime.KeepAlive(s)
	}
}

// A cell ends at once whatever is being prepared in it.
func TestPrepareWhileTheCellEnds(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	for i := range 10 {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		s := runs.Shell("", sandbox.WithPrepared(50), sandbox.WithCell(c))
		failed := make(chan error, 1)
		go func() { failed <- s.Prepare(testkit.Deadline(t)) }()
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-failed, sandbox.ErrCellLost)
		require.Empty(t, s.Waiting())
	}
}
