//go:build linux

package scratch

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// One of those that fill a directory at once does it, and all of it is there when any returns.
func TestFillDirOnce(t *testing.T) {
	layer, dir := t.TempDir(), t.TempDir()+"/dir"
	require.NoError(t, os.Mkdir(dir, 0o755))
	const files = 300
	for i := range files {
		require.NoError(t, os.WriteFile(layer+"/"+strconv.Itoa(i), nil, 0o644))
	}
	of := &spec.Spec{}
	of.SetImage(spec.Image{Name: "x", Layers: []string{layer}})
	for range 6 {
		var all sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			all.Go(func() {
				errs[i] = FillDir(context.Background(), of, "/", dir)
				if list, err := os.ReadDir(dir); errs[i] == nil && (err != nil || len(list) != files) {
					errs[i] = fmt.Errorf("%d files: %w", len(list), err)
				}
			})
		}
		all.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		require.NoFileExists(t, dir+"~")
		require.NoError(t, os.RemoveAll(dir))
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
}

// Who waits for another gives up with the context, and takes over from one that was killed before
// it made any file.
func TestFillDirWaits(t *testing.T) {
	layer, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(layer+"/file", nil, 0o644))
	of := &spec.Spec{}
	of.SetImage(spec.Image{Name: "x", Layers: []string{layer}})
	ctx, cancel := context.WithCancel(context.Background())
	other, err := lockMark(ctx, dir+"~")
	require.NoError(t, err)
	cancel()
	require.ErrorIs(t, FillDir(ctx, of, "/", dir), context.Canceled)
	require.NoFileExists(t, dir+"/file")
	require.NoError(t, other.Close())
	require.NoError(t, FillDir(context.Background(), of, "/", dir))
	require.FileExists(t, dir+"/file")
	require.NoFileExists(t, dir+"~")
}
