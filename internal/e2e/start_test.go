//go:build linux

package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A sandbox that is used again sees the host's files as they are now, at the latest in the start
// that follows a failure because they had changed.
func TestChangedSources(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	src := testkit.OpenDir(t) + "/source"
	testkit.WriteFile(t, src, "file", 0o644)
	s := runs.Shell("cat /tmp/it 2>/dev/null || ls /tmp/it", sandbox.WithReadOnlyBind(src, "/tmp/it"))
	require.Equal(t, "file", runs.Output(t, s))
	require.NoError(t, os.Remove(src))
	require.NoError(t, testkit.Mkdirs(src, "/directory"))
	runs.SetupError(t, errOf(s.Run(testkit.Deadline(t))), "WithReadOnlyBind /tmp/it")
	require.Equal(t, "directory", runs.Output(t, s))

	testkit.Need(t, "overlayfs for runs")
	root := testkit.BusyboxRoot(t, "/proc", "/dev", "/tmp", "/home/sandbox")
	s = sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand("touch", "/tmp/x"))
	runs.Output(t, s)
	require.NoError(t, os.Remove(root+"/tmp"))
	runs.SetupError(t, errOf(s.Run(testkit.Deadline(t))), "WithTmpfs /tmp")
	runs.Output(t, s)
}

func TestHintsOfRuns(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	closed := testkit.BusyboxRoot(t)
	require.NoError(t, os.Chmod(closed, 0o700))
	host := testkit.OpenDir(t)
	for _, test := range []struct {
		s    *sandbox.Sandbox
		want string
	}{
		{sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(closed)), sandbox.WithCommand("true")), "must be open to others"},
		{runs.Shell("", sandbox.WithReadOnlyBind(host, "/etc/passwd")), "must both be directories, or neither"},
		{runs.Shell("", sandbox.WithReadOnlyBind("/etc/passwd", "/usr/bin")), "must both be directories, or neither"},
		{runs.Shell("", sandbox.WithReadOnlyBind(host, "/usr/no-such-dir")), "in a directory of the host, or in a bind"},
		{runs.Shell("", sandbox.WithReadOnlyBind(host, "/a"), sandbox.WithTmpfs("/a/none", sandbox.MiB)), "in a directory of the host, or in a bind"},
		{runs.Shell("", sandbox.WithEnv("A="+strings.Repeat("x", 200*sandbox.KiB))), "WithCommand and WithEnv are too large"},
	} {
		require.Contains(t, runs.SetupError(t, errOf(test.s.Run(testkit.Deadline(t)))).Hint, test.want)
	}
	_, err := runs.Shell("", sandbox.WithEnv("A="+strings.Repeat("x", 200*sandbox.KiB))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, syscall.E2BIG)
}

func TestClosedCell(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	c, err := sandbox.NewCell(nil)
	require.NoError(t, err)
	network := runs.Shell("", sandbox.WithCell(c), sandbox.WithNetwork(sandbox.NetworkHost), sandbox.WithPIDs(-1))
	_, err = network.Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithCell: the cell was made for another network")
	require.ErrorContains(t, err, "WithPIDs: -1 is less than 1")
	require.NoError(t, c.Close())
	_, err = runs.Shell("", sandbox.WithCell(c)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.EqualError(t, err, "sandbox: the cell is gone (the fork server has ended, by Close or Shutdown)")
}

func TestCancelBeforeStart(t *testing.T) {
	t.Parallel()
	mine := errors.New("the client has gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(mine)
	_, err := runs.Shell("").Run(ctx)
	require.EqualError(t, err, "sandbox: not started: context canceled: the client has gone")
	require.ErrorIs(t, err, mine)
	require.ErrorIs(t, err, context.Canceled)
}

// What is called before the command is waited for, and its error keeps the command from being
// started, in a fresh run and in a prepared one, of which nothing is left then. Descriptors of this
// process are counted, so it is not parallel to others.
func TestBefore(t *testing.T) {
	dir := testkit.OpenDir(t)
	require.NoError(t, os.Chmod(dir, 0o777))
	s := sandbox.New(sandbox.WithCommand("touch", "/out/begun"), sandbox.WithBind(dir, "/out"))
	prepared := s.With(sandbox.WithPrepared(1))
	require.NoError(t, prepared.Prepare(testkit.Deadline(t)))
	refused := errors.New("it is another's")
	run := func(s *sandbox.Sandbox, wait time.Duration, result error) error {
		before := func(context.Context) error {
			time.Sleep(wait)
			assert.NoFileExists(t, dir+"/begun")
			return result
		}
		return errOf(s.With(func(c *spec.Spec) { c.Supervision.Before = before }).Run(testkit.Deadline(t)))
	}
	for _, s := range []*sandbox.Sandbox{s, prepared, s} {
		require.ErrorIs(t, run(s, 100*time.Millisecond, refused), refused)
		require.NoFileExists(t, dir+"/begun")
		require.NoError(t, run(s, 100*time.Millisecond, nil))
		require.NoError(t, os.Remove(dir+"/begun"))
	}
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	const many = 20 // more than any number that comes and goes
	was := open()
	for range many {
		require.ErrorIs(t, run(s, 0, refused), refused)
	}
	testkit.Eventually(t, "what the refused had is closed", func() bool { return open() < was+many })
}

// A start whose context ends while it waits is given up.
func TestCancelBefore(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(testkit.Deadline(t))
	mine := errors.New("the client has gone")
	_, err := runs.Shell("", func(c *spec.Spec) {
		c.Supervision.Before = func(ctx context.Context) error {
			cancel(mine)
			<-ctx.Done()
			return ctx.Err()
		}
	}).Run(ctx)
	require.ErrorIs(t, err, mine)
	require.ErrorContains(t, err, "not started")
}
