//go:build linux

package run_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Nothing is compiled from a look at a root for which there were too few descriptors: directories
// that it has would be made once more, for all, above those that are not for all.
func TestRootWithoutDescriptors(t *testing.T) {
	testkit.Need(t, "overlayfs for runs")
	layers := []string{t.TempDir(), t.TempDir()}
	require.NoError(t, os.MkdirAll(layers[0]+"/private/data", 0o700))
	explain := func() (string, error) {
		return made(sandbox.WithCommand("true"), sandbox.WithRootfs(sandbox.LayersRootfs(layers...)), sandbox.WithTmpfs("/private/data/x", sandbox.MiB)).Explain()
	}
	want, err := explain()
	require.NoError(t, err)
	require.Contains(t, want, "0700")
	testkit.Eventually(t, "nobody gave descriptors back meanwhile", func() bool {
		var text string
		var err error
		// Each layer is opened, and then no directory in it.
		testkit.WithDescriptors(t, len(layers), func() { text, err = explain() })
		if err == nil {
			require.Equal(t, want, text)
			return false
		}
		require.ErrorIs(t, err, unix.EMFILE)
		require.ErrorContains(t, err, "WithRootfs")
		return true
	})
	again, err := explain()
	require.NoError(t, err)
	require.Equal(t, want, again)
}

// Nothing is kept that was compiled for a machine of which too little could be read.
func TestPlanWithoutDescriptors(t *testing.T) {
	c := describe(sandbox.WithCommand("true"), sandbox.WithRootfs(sandbox.EmptyRootfs()))
	want, err := run.NewEngine().New(c).Explain()
	require.NoError(t, err)
	s := run.NewEngine().New(c)
	testkit.WithDescriptors(t, 0, func() { _, _ = s.Explain() })
	again, err := s.Explain()
	require.NoError(t, err)
	require.Equal(t, want, again)
}

// This program's libraries are looked for again if that failed.
func TestLibrariesWithoutDescriptors(t *testing.T) {
	c := describe(sandbox.WithCommand("true"))
	c.Root.Rootfs = spec.Rootfs{Parts: spec.OwnProgram}
	want, err := run.NewEngine().New(c).Explain()
	require.NoError(t, err)
	e := run.NewEngine()
	e.Machine()
	testkit.WithDescriptors(t, 0, func() { _, _ = e.New(c).Explain() })
	again, err := e.New(c).Explain()
	require.NoError(t, err)
	require.Equal(t, want, again)
}

// A first run for which there were no descriptors leaves nothing behind that later ones fail by.
func TestRootlessFirstRunWithoutDescriptors(t *testing.T) {
	for _, n := range []int{0, 1, 3, 10} {
		e := run.NewEngine()
		c := describe(sandbox.WithCommand("true"))
		testkit.WithDescriptors(t, n, func() { require.Error(t, runOnce(t.Context(), e.New(c))) })
		require.NoError(t, runOnce(t.Context(), e.New(c)), n)
		require.Equal(t, engine.Machine().Facts, e.Machine().Facts, n)
		require.NoError(t, e.Shutdown(t.Context()))
	}
}
