//go:build linux

package run_test

import (
	"bytes"
	"context"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/run"
)

// TestRootlessAssembleAhead assembles the base of a template before the first run. That run has the
// same files as one in a cell where nothing was, and nothing stays where it was assembled, whether
// the template has that base or not.
func TestRootlessAssembleAhead(t *testing.T) {
	etc := func(ahead bool, opts ...sandbox.Option) string {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		var out bytes.Buffer
		list := "cd /etc; for f in $(find . -type f | sort); do echo $f; cat $f; done; find . -type l -o -type d | sort | xargs ls -ld --time-style=+"
		s := made(append([]sandbox.Option{sandbox.WithCommand("sh", "-c", list), sandbox.WithCell(c), sandbox.WithStdout(&out)}, opts...)...)
		if ahead {
			cellOf(s).AssembleAhead(engine.Copying())
		}
		first := made(append([]sandbox.Option{sandbox.WithCommand("true"), sandbox.WithCell(c)}, opts...)...)
		before := mountsOf(t, first)
		require.NotContains(t, before, program.CellStaging)
		require.NoError(t, runOnce(t.Context(), s))
		cellOf(s).AssembleAhead(engine.Copying()) // there is a template
		require.Equal(t, before, mountsOf(t, first))
		return out.String()
	}
	if engine.HostFiles().Manager != "" {
		require.NotEmpty(t, engine.HostFiles().Entries)
	}
	require.Equal(t, etc(false), etc(true))
	if engine.Machine().AtLeast(5, 11) { // its template has another base
		changes := sandbox.WithWritableRoot(sandbox.MiB)
		require.Equal(t, etc(false, changes), etc(true, changes))
	}
}

// TestRootlessShutdownWhileAssembling ends a cell as soon as it is booted, since the context of its
// first run has ended meanwhile, while the base of a template is assembled in the background.
// Nothing of that is kept.
func TestRootlessShutdownWhileAssembling(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close it
	for range 5 {
		e := run.NewEngine()
		kept := copiesKept(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		require.ErrorIs(t, runOnce(ctx, e.New(describe(sandbox.WithCommand("true")))), context.DeadlineExceeded)
		cancel()
		require.NoError(t, e.Shutdown(t.Context()))
		require.Equal(t, kept, copiesKept(t))
	}
}

// TestRootlessCopiesNotKept has a first run. Once its template is there, this process keeps nothing
// that the copies were made from.
func TestRootlessCopiesNotKept(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close them
	e := run.NewEngine()
	kept := copiesKept(t)
	require.NoError(t, runOnce(t.Context(), e.New(describe(sandbox.WithCommand("true")))))
	require.Eventually(t, func() bool { return copiesKept(t) == kept }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, e.Shutdown(t.Context()))
}

// copiesKept returns how many files in memory this process has for copies of the host's files.
func copiesKept(t *testing.T) (n int) {
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "/memfd:files of the host's programs") {
			n++
		}
	}
	return n
}
