//go:build linux

package host

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGather(t *testing.T) {
	f := Gather()
	require.False(t, f.Starved)
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

func TestLacksControllers(t *testing.T) {
	const head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
	for name, test := range map[string]struct {
		cgroups string
		want    bool
	}{
		"v1":                         {head + "cpuset\t3\t1\t1\ncpu\t1\t1\t1\n", false},
		"hybrid without v1's memory": {head + "cpuset\t0\t1\t1\ncpu\t1\t1\t1\n", false},
		"v2":                         {head + "cpuset\t0\t1\t1\ncpu\t0\t1\t1\nmemory\t0\t1\t1\n", false},
		"v2 without v1's memory":     {head + "cpuset\t0\t1\t1\ncpu\t0\t1\t1\n", true},
		"v2 without v1's cpuset":     {head + "cpu\t0\t1\t1\nmemory\t0\t1\t1\n", true},
	} {
		require.Equal(t, test.want, lacksControllers(test.cgroups), name)
	}
}
