//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// A Sandbox that is used again finds the host's files as they are now, at the latest on the start
// after one that failed because they had changed.
func TestChangedSources(t *testing.T) {
	t.Parallel()
	need(t, "root")
	src := openDir(t) + "/source"
	writeFile(t, src, "file", 0o644)
	s := shell("cat /tmp/it 2>/dev/null || ls /tmp/it", sandbox.WithReadOnlyBind(src, "/tmp/it"))
	require.Equal(t, "file", output(t, s))
	require.NoError(t, os.Remove(src))
	require.NoError(t, mkdirs(src, "/directory"))
	setupError(t, errOf(s.Run(deadline(t))), "WithReadOnlyBind /tmp/it")
	require.Equal(t, "directory", output(t, s))

	need(t, "overlayfs for runs")
	root := busyboxRoot(t, "/proc", "/dev", "/tmp", "/home/sandbox")
	s = sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand("touch", "/tmp/x"))
	output(t, s)
	require.NoError(t, os.Remove(root+"/tmp"))
	setupError(t, errOf(s.Run(deadline(t))), "WithTmpfs /tmp")
	output(t, s)
}

func TestHintsOfRuns(t *testing.T) {
	t.Parallel()
	need(t, "root")
	closed := busyboxRoot(t)
	require.NoError(t, os.Chmod(closed, 0o700))
	host := openDir(t)
	for _, test := range []struct {
		s    *sandbox.Sandbox
		want string
	}{
		{sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(closed)), sandbox.WithCommand("true")), "must be open to others"},
		{shell("", sandbox.WithReadOnlyBind(host, "/etc/passwd")), "must both be directories, or neither"},
		{shell("", sandbox.WithReadOnlyBind("/etc/passwd", "/usr/bin")), "must both be directories, or neither"},
		{shell("", sandbox.WithReadOnlyBind(host, "/usr/no-such-dir")), "in a directory of the host, or in a bind"},
		{shell("", sandbox.WithReadOnlyBind(host, "/a"), sandbox.WithTmpfs("/a/none", sandbox.MiB)), "in a directory of the host, or in a bind"},
		{shell("", sandbox.WithEnv("A="+strings.Repeat("x", 200*sandbox.KiB))), "WithCommand and WithEnv are too large"},
	} {
		require.Contains(t, setupError(t, errOf(test.s.Run(deadline(t)))).Hint, test.want)
	}
	_, err := shell("", sandbox.WithEnv("A="+strings.Repeat("x", 200*sandbox.KiB))).Run(deadline(t))
	require.ErrorIs(t, err, syscall.E2BIG)
}

func TestClosedCell(t *testing.T) {
	t.Parallel()
	need(t, "root")
	c, err := sandbox.NewCell(nil)
	require.NoError(t, err)
	network := shell("", sandbox.WithCell(c), sandbox.WithNetwork(sandbox.NetworkHost), sandbox.WithPIDs(-1))
	_, err = network.Run(deadline(t))
	require.ErrorContains(t, err, "WithCell: the cell was made for another network")
	require.ErrorContains(t, err, "WithPIDs: -1 is less than 1")
	require.NoError(t, c.Close())
	_, err = shell("", sandbox.WithCell(c)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.True(t, strings.HasPrefix(err.Error(), "sandbox: the cell is gone (the fork server has ended"), "%v", err)
}

func TestCancelBeforeStart(t *testing.T) {
	t.Parallel()
	mine := errors.New("the client has gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(mine)
	_, err := shell("").Run(ctx)
	require.EqualError(t, err, "sandbox: not started: context canceled: the client has gone")
	require.ErrorIs(t, err, mine)
	require.ErrorIs(t, err, context.Canceled)
}
