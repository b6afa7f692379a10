package cell

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestNetworkGive gives namespaces back after what stands for a run. They serve again only if the
// kernel has said that its /proc is gone.
func TestNetworkGive(t *testing.T) {
	c, err := Boot(Config{})
	require.NoError(t, err)
	defer c.Close(context.Background())
	s := &c.networks
	give := func(use func(n *Network)) (again bool) {
		n, err := s.make()
		require.NoError(t, err)
		use(n)
		n.Give()
		require.Empty(t, s.procs.watched)
		again = len(s.idle) > 0
		s.idle = nil
		if again {
			n.close()
		}
		require.ErrorIs(t, n.counts[0].Close(), os.ErrClosed)
		return again
	}
	require.True(t, give(func(*Network) {}), "no run began in it")
	require.True(t, give(func(n *Network) { withProc(t, c, n.Watch) }))
	var has *os.File
	require.False(t, give(func(n *Network) {
		withProc(t, c, func(pid int) {
			n.Watch(pid)
			has, err = os.Open(fmt.Sprintf("/proc/%d/root/proc", pid))
			require.NoError(t, err)
		})
	}), "somebody has a file")
	require.NoError(t, has.Close())
	require.False(t, give(func(n *Network) { n.Watch(-1) }), "it can't be watched")
	require.False(t, give(func(n *Network) { withProc(t, c, func(pid int) { n.Watch(pid); overflow(t, &s.procs) }) }), "the event is lost")
	require.True(t, give(func(n *Network) { withProc(t, c, n.Watch) }), "after all of that")

	for _, watches := range []bool{false, true} { // and the cell ends before
		require.False(t, give(func(n *Network) {
			if watches {
				withProc(t, c, n.Watch)
			}
			s.close()
		}))
		require.Negative(t, s.procs.events)
	}
}

// withProc calls f with the pid of a process that has a proc file system of its own, and waits
// until that is gone, if f keeps no file of it.
func withProc(t *testing.T, c *Cell, f func(pid int)) {
	b := program.NewBuilder()
	b.AttachAt(b.FileSystem("proc", 0), "/proc")
	b.Event(program.Ready)
	b.Wait(program.Report)
	p, err := b.Program()
	require.NoError(t, err)
	conn, err := c.send(&forkserver.Request{CloneFlags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Image: p.Image()}, nil)
	require.NoError(t, err)
	pid, pidfd := 0, (*os.File)(nil)
	for pid == 0 || pidfd == nil {
		m, err := conn.Next()
		require.NoError(t, err)
		switch m.Kind {
		case program.Ready:
			pid = m.PID
		case program.Cloned:
			pidfd = m.File
		default:
			require.FailNow(t, "no process", "%v", m)
		}
	}
	defer pidfd.Close()
	f(pid)
	conn.Close() // for which it waits
	testkit.Eventually(t, "it has ended", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// overflow has more events for the watch than the kernel keeps: inotify(7), max_queued_events.
func overflow(t *testing.T, w *procWatch) {
	dir := t.TempDir()
	_, err := w.watch(dir, unix.IN_ATTRIB)
	require.NoError(t, err)
	most, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(most)))
	require.NoError(t, err)
	paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, path := range paths {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	for i := range n + 1 { // two that are alike would be one
		require.NoError(t, unix.Chmod(paths[i%2], 0o600))
	}
}
