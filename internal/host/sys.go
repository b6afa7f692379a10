//go:build linux

package host

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// SysFile is a file of /sys with its content, or with a trailing slash a directory.
type SysFile struct{ Path, Content string }

const (
	mostCPUs     = 1024 // that are shown; sched_getaffinity(2) as glibc calls it knows no more
	mostTopology = 64   // those of which is shown how they belong together
	mostNodes    = 64
	mostSys      = 8 << 10 // of a file's content: a mask of all CPUs that the kernel can have takes 2.3
)

// readSys reads what runs may see of a /sys. It tells hardly more than /proc/cpuinfo and
// /proc/stat, which they see anyway.
func (l *looks) readSys(root string) (files []SysFile) {
	add := func(names ...string) {
		for _, name := range names {
			if content, err := readUpTo(filepath.Join(root, name), mostSys); l.opened(err) {
				files = append(files, SysFile{"/sys/" + name, content})
			}
		}
	}
	const cpu, node = "devices/system/cpu", "devices/system/node"
	add(cpu+"/online", cpu+"/possible", cpu+"/present", cpu+"/kernel_max")
	for i, dir := range l.numbered(root, cpu+"/cpu", mostCPUs) {
		files = append(files, SysFile{Path: "/sys/" + dir + "/"})
		if i < mostTopology {
			dir += "/topology/"
			add(dir+"core_id", dir+"physical_package_id")
			for _, group := range []string{"thread_siblings", "core_siblings", "core_cpus", "package_cpus"} {
				add(dir+group, dir+group+"_list")
			}
		}
	}
	add(node+"/online", node+"/possible")
	for _, dir := range l.numbered(root, node+"/node", mostNodes) {
		add(dir+"/cpulist", dir+"/cpumap")
	}
	add("kernel/mm/transparent_hugepage/enabled", "kernel/mm/transparent_hugepage/hpage_pmd_size")
	return files
}

// numbered returns the first n directories called prefix and a number, in order of that.
func (l *looks) numbered(root, prefix string, n int) (dirs []string) {
	entries, err := os.ReadDir(filepath.Join(root, path.Dir(prefix)))
	if !l.opened(err) {
		return nil
	}
	var numbers []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), path.Base(prefix))
		if number, err := strconv.ParseUint(digits, 10, 16); ok && err == nil {
			numbers = append(numbers, int(number))
		}
	}
	slices.Sort(numbers)
	for _, number := range numbers[:min(n, len(numbers))] {
		dirs = append(dirs, prefix+strconv.Itoa(number))
	}
	return dirs
}

func readUpTo(name string, most int64) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	return string(b), err
}
