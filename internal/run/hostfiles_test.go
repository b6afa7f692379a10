//go:build linux

package run_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/program"
)

// TestRootlessStage assembles the base of a template before the first run. That run has the same
// files as one in a cell where nothing was staged, and nothing stays where it was assembled, whether
// the template has that base or not.
func TestRootlessStage(t *testing.T) {
	etc := func(staged bool, opts ...sandbox.Option) string {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		var out bytes.Buffer
		list := "cd /etc; for f in $(find . -type f | sort); do echo $f; cat $f; done; find . -type l -o -type d | sort | xargs ls -ld --time-style=+"
		s := made(append([]sandbox.Option{sandbox.WithCommand("sh", "-c", list), sandbox.WithCell(c), sandbox.WithStdout(&out)}, opts...)...)
		if staged {
			cellOf(s).Stage(engine.Copying())
		}
		first := made(append([]sandbox.Option{sandbox.WithCommand("true"), sandbox.WithCell(c)}, opts...)...)
		before := mountsOf(t, first)
		require.NotContains(t, before, program.CellStaging)
		require.NoError(t, runOnce(t.Context(), s))
		cellOf(s).Stage(engine.Copying()) // there is a template
		require.Equal(t, before, mountsOf(t, first))
		return out.String()
	}
	require.NotEmpty(t, engine.HostFiles().Entries)
	require.Equal(t, etc(false), etc(true))
	if engine.Machine().AtLeast(5, 11) { // its template has another base
		changes := sandbox.WithWritableRoot(sandbox.MiB)
		require.Equal(t, etc(false, changes), etc(true, changes))
	}
}
