//go:build linux

package scratch

import (
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// TestStaysBelow has links for which CopyOut does not know what else is in their tree.
func TestStaysBelow(t *testing.T) {
	for target, want := range map[string]bool{
		"x": true, "./x": true, "..": true, "../x": true, "../../x/y": true, "..//../": true,
		"": false, "/x": false, "../../..": false, "../../../x": false,
		"x/..": false, "x/../y": false, "../x/../../y": false, // x may be a link
	} {
		require.Equal(t, want, staysBelow("a/b/link", target), target)
	}
	require.False(t, staysBelow("link", ".."))
}

// TestUse makes one scratch a place for files, and another one that takes the changes of a root.
func TestUse(t *testing.T) {
	var files, root Scratch
	require.NoError(t, files.Use(false))
	require.NoError(t, files.Use(false))
	require.EqualError(t, files.Use(true), "the scratch has files: it can't take the changes of a root")
	require.NoError(t, root.Use(true))
	require.NoError(t, root.Use(true))
	require.EqualError(t, root.Use(false), "the scratch takes the changes of a root: it can't be mounted")
}

// TestRunsTakeTurns checks that a second run waits until the mounts of the first one are gone.
func TestRunsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Scratch
		require.NoError(t, s.BeginRun())
		require.EqualError(t, s.BeginRun(), "the scratch is the root of another run, which has not ended")
		gone := s.EndRun()
		began := make(chan error, 1)
		go func() { began <- s.BeginRun() }()
		synctest.Wait()
		require.Empty(t, began)
		gone()
		synctest.Wait()
		require.NoError(t, <-began)
		s.EndRun()()
	})
}

func TestMeasure(t *testing.T) {
	bytes, files, err := measure(fstest.MapFS{
		"empty":   {},
		"dir/one": {Data: []byte("x")},
		"dir/two": {Data: []byte(strings.Repeat("x", page+1))},
	})
	require.NoError(t, err)
	require.EqualValues(t, 5, files) // the root and dir too
	require.EqualValues(t, (5+1+2)*page, bytes)
}

func TestZeroScratchIsClosed(t *testing.T) {
	_, err := new(Scratch).Get()
	require.EqualError(t, err, "the scratch is closed")
}
