//go:build linux

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeSys is a /sys with so many CPUs.
func fakeSys(t *testing.T, cpus int) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, content string) {
		name = filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
	}
	all := fmt.Sprintf("0-%d\n", cpus-1)
	for _, name := range []string{"online", "possible", "present"} {
		write("devices/system/cpu/"+name, all)
	}
	write("devices/system/cpu/kernel_max", strings.Repeat("9", 100_000)) // no such kernel
	write("devices/system/cpu/cpufreq/boost", "1\n")
	write("devices/system/cpu/vulnerabilities/meltdown", "Vulnerable\n")
	for i := range cpus {
		dir := fmt.Sprintf("devices/system/cpu/cpu%d/", i)
		if i > mostTopology+1 { // enough to be left out
			require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o755))
			continue
		}
		write(dir+"topology/core_id", fmt.Sprintln(i/2))
		write(dir+"topology/physical_package_id", "0\n")
		write(dir+"topology/core_siblings_list", all)
		write(dir+"topology/package_cpus_list", all)
		write(dir+"cache/index0/size", "32K\n")
		write(dir+"cpufreq/cpuinfo_max_freq", "1\n")
	}
	write("devices/system/node/online", "0\n")
	write("devices/system/node/node0/cpulist", all)
	write("devices/system/node/node0/meminfo", "Node 0 MemTotal: 1 kB\n")
	write("kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
	write("kernel/mm/transparent_hugepage/khugepaged/defrag", "1\n")
	write("class/dmi/id/product_uuid", "secret\n")
	return root
}

func TestReadSys(t *testing.T) {
	var paths []string
	for _, f := range new(looks).readSys(fakeSys(t, 2)) {
		paths = append(paths, strings.TrimPrefix(f.Path, "/sys/devices/system/"))
		require.LessOrEqual(t, len(f.Content), int(mostSys), f.Path)
	}
	require.Equal(t, []string{"cpu/online", "cpu/possible", "cpu/present", "cpu/kernel_max",
		"cpu/cpu0/", "cpu/cpu0/topology/core_id", "cpu/cpu0/topology/physical_package_id", "cpu/cpu0/topology/core_siblings_list", "cpu/cpu0/topology/package_cpus_list",
		"cpu/cpu1/", "cpu/cpu1/topology/core_id", "cpu/cpu1/topology/physical_package_id", "cpu/cpu1/topology/core_siblings_list", "cpu/cpu1/topology/package_cpus_list",
		"node/online", "node/node0/cpulist", "/sys/kernel/mm/transparent_hugepage/enabled"}, paths)
	require.Empty(t, new(looks).readSys(t.TempDir()), "in a container without one")
}

// However many CPUs a machine has, few files tell of them.
func TestReadSysOfALargeMachine(t *testing.T) {
	dirs, files := 0, 0
	for _, f := range new(looks).readSys(fakeSys(t, mostCPUs+9)) {
		if strings.HasSuffix(f.Path, "/") {
			dirs++
		} else {
			files++
		}
	}
	require.Equal(t, mostCPUs, dirs)
	require.Less(t, files, 12*mostTopology)
}
