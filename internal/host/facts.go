//go:build linux

package host

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts is what programs of runs are compiled for, as far as it stays the same while this process
// lives.
type Facts struct {
	RootDirs  []string          // directories at the top with the host's programs, such as /usr
	RootLinks map[string]string // symbolic links to such, such as /bin -> usr/bin
	Shown     []string          // the paths of both

	Sys  []SysFile // what /sys tells of CPUs and pages
	Proc []ProcPath

	Kernel     [2]int            // major and minor
	LastCap    int               // the highest capability that the kernel knows
	HardLimits map[string]uint64 // of this process: nofile, sigpending, msgqueue and memlock

	Starved bool // some were left out for want of descriptors or memory
}

// ProcPath is an interface of the kernel in /proc that tells of the machine, or changes it, and is
// therefore to be covered.
type ProcPath struct {
	Path        string
	Dir         bool
	Controllers bool // it is /proc/cgroups, and lacks controllers of cgroup v2 that programs look for
}

// machineProc is what there can be of those that are covered altogether.
var machineProc = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/latency_stats",
	"/proc/locks", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats"}

// looks are at files. Those that can't be opened are mostly not there.
type looks struct {
	starved bool // or they were not opened for want of descriptors or memory
}

// opened reports whether a file could be opened.
func (l *looks) opened(err error) bool {
	l.starved = l.starved || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
	return err == nil
}

// Gather reads the facts. What can't be read is left out.
func Gather() Facts {
	var l looks
	f := Facts{RootLinks: map[string]string{}, Sys: l.readSys("/sys"), Proc: l.procPaths(), LastCap: l.lastCapability(), HardLimits: lowest(hardAtStart, hardLimits())}
	for _, dir := range []string{"/usr", "/bin", "/sbin"} {
		f.show(dir)
	}
	top, err := os.ReadDir("/")
	l.opened(err)
	for _, e := range top {
		if strings.HasPrefix(e.Name(), "lib") {
			f.show("/" + e.Name())
		}
	}
	f.Shown = slices.Concat(f.RootDirs, slices.Sorted(maps.Keys(f.RootLinks)))
	_, _ = fmt.Sscanf(release(), "%d.%d", &f.Kernel[0], &f.Kernel[1])
	f.Starved = l.starved
	return f
}

// HasSetAttr reports whether the kernel has mount_setattr(2), which came with Linux 5.12.
func (f *Facts) HasSetAttr() bool { return f.AtLeast(5, 12) }

// AtLeast reports whether the kernel is of this version or a later one.
func (f *Facts) AtLeast(major, minor int) bool {
	return f.Kernel[0] > major || f.Kernel[0] == major && f.Kernel[1] >= minor
}

func (f *Facts) show(p string) {
	info, err := os.Lstat(p)
	switch {
	case err != nil:
	case info.Mode()&os.ModeSymlink != 0:
		if to, err := os.Readlink(p); err == nil {
			f.RootLinks[p] = to
		}
	default:
		f.RootDirs = append(f.RootDirs, p)
	}
}

func (l *looks) procPaths() (paths []ProcPath) {
	for _, p := range machineProc {
		if info, err := os.Lstat(p); err == nil {
			paths = append(paths, ProcPath{Path: p, Dir: info.IsDir()})
		}
	}
	if cgroups, err := os.ReadFile("/proc/cgroups"); l.opened(err) && lacksControllers(string(cgroups)) {
		paths = append(paths, ProcPath{Path: "/proc/cgroups", Controllers: true})
	}
	return paths
}

// lacksControllers reports whether /proc/cgroups is that of a machine with cgroup v2 alone and
// lacks memory or cpuset, as it does for those that the kernel has not built for v1:
// cgroup1_subsys_absent in kernel/cgroup/cgroup-v1.c.
func lacksControllers(cgroups string) bool {
	var names []string
	for line := range strings.Lines(cgroups) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if f[1] != "0" {
			return false // a hierarchy of v1
		}
		names = append(names, f[0])
	}
	return !slices.Contains(names, "memory") || !slices.Contains(names, "cpuset")
}

func (l *looks) lastCapability() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	n := 0
	if _, scanErr := fmt.Sscan(strings.TrimSpace(string(b)), &n); !l.opened(err) || scanErr != nil {
		return unix.CAP_LAST_CAP
	}
	return n
}

// hardAtStart is the hard limits that this process was started with. On cgroup v2 libcontainer
// lifts RLIMIT_MEMLOCK when it makes a cell, which the runs of that cell are not to have, and may
// not.
var hardAtStart = hardLimits()

// lowest returns the lower one of each limit.
func lowest(a, b map[string]uint64) map[string]uint64 {
	low := map[string]uint64{}
	for name, limit := range a {
		low[name] = min(limit, b[name])
	}
	return low
}

func hardLimits() map[string]uint64 {
	hard := map[string]uint64{}
	for name, number := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "sigpending": unix.RLIMIT_SIGPENDING, "msgqueue": unix.RLIMIT_MSGQUEUE, "memlock": unix.RLIMIT_MEMLOCK} {
		var l unix.Rlimit
		_ = unix.Getrlimit(number, &l) // fails for unknown numbers only
		hard[name] = l.Max
	}
	return hard
}

// release is the kernel's, such as 6.12.1-amd64.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// HasOverlay reports whether the kernel has overlayfs, or a module of it that the first mount
// loads.
func HasOverlay() bool {
	loaded, _ := os.ReadFile("/proc/filesystems")
	if strings.Contains(string(loaded), "\toverlay\n") {
		return true
	}
	found, _ := filepath.Glob("/lib/modules/" + release() + "/kernel/fs/overlayfs/overlay.ko*")
	return len(found) > 0
}

// Resolv returns the host's resolv.conf, also where that is a link to what a daemon keeps in /run.
func Resolv() string {
	f, err := os.OpenFile("/etc/resolv.conf", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 64<<10)) // what can't be read names no server
	return string(b)
}
