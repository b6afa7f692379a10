package sandbox

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
	for _, f := range readSys(fakeSys(t, 2)) {
		paths = append(paths, strings.TrimPrefix(f.path, "/sys/devices/system/"))
		require.LessOrEqual(t, len(f.content), int(mostSys), f.path)
	}
	require.Equal(t, []string{"cpu/online", "cpu/possible", "cpu/present", "cpu/kernel_max",
		"cpu/cpu0/", "cpu/cpu0/topology/core_id", "cpu/cpu0/topology/physical_package_id", "cpu/cpu0/topology/core_siblings_list", "cpu/cpu0/topology/package_cpus_list",
		"cpu/cpu1/", "cpu/cpu1/topology/core_id", "cpu/cpu1/topology/physical_package_id", "cpu/cpu1/topology/core_siblings_list", "cpu/cpu1/topology/package_cpus_list",
		"node/online", "node/node0/cpulist", "/sys/kernel/mm/transparent_hugepage/enabled"}, paths)
	require.Empty(t, readSys(t.TempDir()), "in a container without one")
}

// However many CPUs a machine has, the template of a root stays small.
func TestReadSysOfALargeMachine(t *testing.T) {
	m := goldenMachine()
	m.sys = readSys(fakeSys(t, mostCPUs+9))
	dirs, files := 0, 0
	for _, f := range m.sys {
		if strings.HasSuffix(f.path, "/") {
			dirs++
		} else {
			files++
		}
	}
	require.Equal(t, mostCPUs, dirs)
	require.Less(t, files, 12*mostTopology)
	c := &New(WithCommand("true")).config
	p, err := compile(c, m, shape{}, nil)
	require.NoError(t, err)
	require.Less(t, len(p.template.Image()), 1<<20)
	require.Less(t, p.template.Len(), 4000)
}

// Files with the same content are one file.
func TestSysSharesFiles(t *testing.T) {
	m := goldenMachine()
	m.sys = []sysFile{{"/sys/devices/system/cpu/online", "0-1\n"}, {"/sys/devices/system/cpu/present", "0-1\n"}, {path: "/sys/devices/system/cpu/cpu0/"}}
	p, err := compile(&New(WithCommand("true")).config, m, shape{}, nil)
	require.NoError(t, err)
	text := p.template.Explain()
	require.Contains(t, text, `linkat($`)
	require.Contains(t, text, `"devices/system/cpu/cpu0"`)
}
