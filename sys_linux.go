package sandbox

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
)

// What a run has of /sys: files in memory from which programs learn how many CPUs there are and how
// large a page is, as this machine had them, and its own cgroup.

// sysFile is a file of the made-up /sys, or with a trailing slash a directory.
type sysFile struct{ path, content string }

const (
	mostCPUs     = 1024 // that are shown; sched_getaffinity(2) as glibc calls it knows no more
	mostTopology = 64   // those of which is shown how they belong together
	mostNodes    = 64
	mostSys      = 8 * KiB // of a file's content: a mask of all CPUs that the kernel can have takes 2.3
)

// readSys reads what runs may see of a /sys. It tells hardly more than /proc/cpuinfo and
// /proc/stat, which they see anyway.
func readSys(root string) (files []sysFile) {
	add := func(names ...string) {
		for _, name := range names {
			if content, err := readUpTo(filepath.Join(root, name), mostSys); err == nil {
				files = append(files, sysFile{"/sys/" + name, content})
			}
		}
	}
	const cpu, node = "devices/system/cpu", "devices/system/node"
	add(cpu+"/online", cpu+"/possible", cpu+"/present", cpu+"/kernel_max")
	for i, dir := range numbered(root, cpu+"/cpu", mostCPUs) {
		files = append(files, sysFile{path: "/sys/" + dir + "/"})
		if i < mostTopology {
			dir += "/topology/"
			add(dir+"core_id", dir+"physical_package_id")
			for _, group := range []string{"thread_siblings", "core_siblings", "core_cpus", "package_cpus"} {
				add(dir+group, dir+group+"_list")
			}
		}
	}
	add(node+"/online", node+"/possible")
	for _, dir := range numbered(root, node+"/node", mostNodes) {
		add(dir+"/cpulist", dir+"/cpumap")
	}
	add("kernel/mm/transparent_hugepage/enabled", "kernel/mm/transparent_hugepage/hpage_pmd_size")
	return files
}

// numbered returns the first n directories called prefix and a number, in order of that.
func numbered(root, prefix string, n int) (dirs []string) {
	entries, err := os.ReadDir(filepath.Join(root, path.Dir(prefix)))
	if err != nil {
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

// sysBelowDev is where the template of a root that is each run's own has /sys: on a mount point of
// its /dev, which becomes free when /sys is moved to its place.
const sysBelowDev = "shm"

// inPages is the size of a tmpfs for so many small files, and so many bytes of larger ones: each
// takes whole pages, of up to 64 KiB.
func inPages(files int, bytes int64) string {
	return fmt.Sprintf("size=%dk", (bytes+int64(files+64)*64*KiB)/KiB)
}

// addSys assembles /sys and attaches it.
func (k *compiler) addSys(b *program.Builder, root program.Slot, at string) {
	b.Stage("/sys")
	const attr = attrNoSUID | attrNoDev | attrNoExec
	sys := b.FileSystem("tmpfs", attr, "mode=755", inPages(len(k.m.sys), MiB))
	k.attachIn(b, sys, root, at)
	s := &skeleton{b: b, at: program.Use(sys), made: map[string]bool{"/sys": true}, below: "/sys"}
	s.mkdir("/sys" + cgroupDir)
	for _, h := range k.shape.views {
		if h.Name == "" {
			continue
		}
		s.mkdir(path.Join("/sys", cgroupDir, h.Name))
		for _, link := range h.Links() {
			s.symlink(path.Join("/sys", cgroupDir, link), h.Name)
		}
	}
	first := map[string]string{} // most CPUs are like others
	for _, f := range k.m.sys {
		switch same := first[f.content]; {
		case strings.HasSuffix(f.path, "/"):
			s.mkdir(path.Clean(f.path))
		case same != "":
			s.link(f.path, same)
		default:
			s.file(f.path, f.content)
			first[f.content] = f.path
		}
	}
	if !k.m.hasSetAttr() {
		b.Remount(sys, attr|attrRO) // elsewhere with the whole template
	}
	b.Close(sys)
}

const cgroupDir = "/fs/cgroup"

// addView mounts the run's own cgroup, read-only. The command does so when it is there, in a cgroup
// namespace of its own, and still has its capabilities: what the mount shows begins at that cgroup.
func (k *compiler) addView() {
	if !k.layout.sys || k.shape.view == (limits.View{}) {
		return
	}
	b := k.b
	b.Stage("the run's own cgroup")
	for _, h := range k.shape.view {
		if h.Type == "" {
			continue
		}
		var options []string
		if h.Options != "" {
			options = strings.Split(h.Options, ",")
		}
		m := b.FileSystem(h.Type, attrRO|attrNoSUID|attrNoDev|attrNoExec, options...)
		k.attachIn(b, m, k.tree, path.Join("sys", cgroupDir, h.Name))
		b.Close(m)
	}
}

// withoutSys leaves /sys out of a directory that needs no layer on top for anything else, and of
// what is missing: a layer keeps runs from seeing later changes of the directory, and takes Linux
// 5.11.
func (r *rootConfig) withoutSys(missing []point) []point {
	if len(r.rootfs.layers) > 1 || r.writable != nil || slices.ContainsFunc(missing, needsLayer) {
		return missing
	}
	return slices.DeleteFunc(missing, func(p point) bool {
		isSys := p.path == "/sys"
		r.noSys = r.noSys || isSys
		return isSys
	})
}

// needsLayer reports whether what is missing has to be put on a layer, for which /sys alone is no
// reason.
func needsLayer(p point) bool { return !p.over && p.path != "/sys" }

// link makes one more name of a file.
func (s *skeleton) link(p, of string) {
	s.add(p, false, func(rel string) {
		s.b.Call("linkat", unix.SYS_LINKAT, s.at, s.b.Str(s.rel(of)), s.at, s.b.Str(rel), program.Int(0))
	})
}
