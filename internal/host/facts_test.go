//go:build linux

package host

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGather(t *testing.T) {
	f := Gather()
	require.Contains(t, f.Shown, "/usr")
	require.Len(t, f.Shown, len(f.RootDirs)+len(f.RootLinks))
	for link, target := range f.RootLinks {
		have, err := os.Readlink(link)
		require.NoError(t, err)
		require.Equal(t, have, target)
	}
	require.NotEmpty(t, f.Proc)
	for _, p := range f.Proc {
		info, err := os.Lstat(p.Path)
		require.NoError(t, err)
		require.Equal(t, info.IsDir(), p.Dir, p.Path)
	}
	require.True(t, f.AtLeast(5, 10), f.Kernel)
	require.GreaterOrEqual(t, f.LastCap, 39) // CAP_BPF, Linux 5.8
	require.Len(t, f.HardLimits, 4)
	require.NotZero(t, f.HardLimits["nofile"])
}

func TestAtLeast(t *testing.T) {
	f := Facts{Kernel: [2]int{6, 1}}
	for version, want := range map[[2]int]bool{{5, 19}: true, {6, 0}: true, {6, 1}: true, {6, 2}: false, {7, 0}: false} {
		require.Equal(t, want, f.AtLeast(version[0], version[1]), version)
	}
}
