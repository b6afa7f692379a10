package sandbox

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Sizes in bytes.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30
)

// IOLimit limits a run's access to the block device that Path lies on, in
// bytes and operations per second. Zero means no limit.
type IOLimit struct {
	Path                  string
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

type cgroupConfig struct {
	memory, swap, pids *int64
	cpus               *float64
	weight             *uint64
	cpuset             *string
	cpuTime            *time.Duration
	io                 []IOLimit
	rlimits            map[string]rlimit
	parent             string
	pool               *budget // of the pool that the run is in
}

// same tells whether both make the same cgroup. The resource limits are the command's own.
func (g *cgroupConfig) same(o *cgroupConfig) bool {
	return equalPointed(g.memory, o.memory) && equalPointed(g.swap, o.swap) && equalPointed(g.pids, o.pids) && equalPointed(g.cpus, o.cpus) &&
		equalPointed(g.weight, o.weight) && equalPointed(g.cpuset, o.cpuset) && equalPointed(g.cpuTime, o.cpuTime) &&
		slices.Equal(g.io, o.io) && g.parent == o.parent && g.pool == o.pool
}

type rlimit struct{ soft, hard uint64 }

// defaultPIDs is also enforced where nothing is asked for, if it can be.
const defaultPIDs = 512

// maxPIDs is PID_MAX_LIMIT of include/linux/threads.h.
const maxPIDs = 4 << 20

// minMemory is less than any process can start with: a smaller number is a
// mistake in its unit.
const minMemory = 64 * KiB

// WithMemory limits the memory of all processes of the run together, in bytes,
// page cache and tmpfs included. A run that needs more is killed:
// ErrOutOfMemory. Needs the memory controller. Default, and 0: none.
func WithMemory(bytes int64) Option { return func(c *config) { c.cgroup.memory = limit(bytes) } }

// WithSwap sets how many bytes the run may swap out on top of WithMemory, which
// it needs. Default: none where WithMemory is set and the kernel counts swap.
func WithSwap(bytes int64) Option { return func(c *config) { c.cgroup.swap = limit(bytes) } }

// WithCPUs limits the CPU time that the run gets, in CPUs: 0.5 is half of one,
// enforced over periods of 100 ms. At least 0.01, at most what this process
// has. Needs the cpu controller. Default, and 0: none.
func WithCPUs(n float64) Option { return func(c *config) { c.cgroup.cpus = limit(n) } }

// WithCPUWeight sets the run's share of busy CPUs in proportion to others, from
// 1 to 10000. Needs the cpu controller. Default, and 0: 100.
func WithCPUWeight(weight uint64) Option { return func(c *config) { c.cgroup.weight = limit(weight) } }

// WithCPUSet binds the run to CPUs, as in "0-2,5". Needs the cpuset controller.
// Default: all.
func WithCPUSet(cpus string) Option { return func(c *config) { c.cgroup.cpuset = &cpus } }

// WithPIDs limits the number of processes and threads of the run. The kernel
// refuses more (EAGAIN); if the command then fails, the run's error is
// ErrPIDLimit. Needs the pids controller. Default, and 0: 512, where the
// controller is there. There is no unlimited number; at most it is what a machine
// can have, 4194304.
func WithPIDs(n int64) Option { return func(c *config) { c.cgroup.pids = limit(n) } }

// WithCPUTime limits the CPU time, user and system, that all processes of the
// run use together. A run that uses more is killed: ErrCPUTime. The limit is
// checked as often as it could be reached, but not more than once per
// millisecond. Needs a cgroup. Default, and 0: none.
func WithCPUTime(d time.Duration) Option { return func(c *config) { c.cgroup.cpuTime = limit(d) } }

// WithIO limits access to block devices. Several limits, and several calls, add
// up; one that limits nothing is left out. Needs the io (v1: blkio) controller. Default: none.
func WithIO(limits ...IOLimit) Option {
	return func(c *config) {
		for _, l := range limits {
			if l != (IOLimit{Path: l.Path}) {
				c.cgroup.io = append(slices.Clip(c.cgroup.io), l)
			}
		}
	}
}

// WithRlimit sets a resource limit of getrlimit(2) by its name: "as", "core", "cpu", "data",
// "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
// "sigpending" or "stack", in the units given there. RlimitInfinity means no limit. Several calls
// add up. Raising a hard limit of this process needs CAP_SYS_RESOURCE, which no run has. Default:
// core 1, with which nothing is dumped, not even to a program that the host has for it; nofile 1024
// with this process's hard limit, sigpending 1024, msgqueue 128 KiB, memlock 8 MiB, nice and rtprio
// 0, the rest as this process.
func WithRlimit(resource string, soft, hard uint64) Option {
	return func(c *config) {
		if c.cgroup.rlimits == nil {
			c.cgroup.rlimits = map[string]rlimit{}
		}
		c.cgroup.rlimits[resource] = rlimit{soft, hard}
	}
}

// RlimitInfinity is no limit, for WithRlimit.
const RlimitInfinity = math.MaxUint64

// WithCgroupParent places the runs' cgroups below the given one, a path as in
// /proc/self/cgroup, which must be writable for this process and, on cgroup v2, hold
// no process itself. If it does not exist it is made, and removed with the
// last cell; if this process is killed it stays, empty. Default, on v2: a cgroup above
// this process's own that was delegated to it, if it holds no process; else a transient scope that
// systemd makes, the system's for root and the user's own for others; else, as root, a
// cgroup "sandbox" at the top, as always on v1. docs/CGROUPS.md has the whole table, and
// Check tells what was chosen. Sandboxes with different parents use different cells.
func WithCgroupParent(path string) Option { return func(c *config) { c.cgroup.parent = path } }

// DelegateSubgroup moves this process, and all others of its cgroup, into a child
// of that cgroup with the given name, so that runs can have their cgroups beside it: a
// cgroup with processes of its own gives its children no controllers (cgroups(7), "no
// internal processes"). Call it first thing, in a service with Delegate=yes where systemd has
// no DelegateSubgroup= (before version 254), or in a container whose cgroup is
// writable. It does nothing where nothing is in the way: on cgroup v1, at the top of v2,
// or if it was called before. It is the only thing that moves this process.
// It needs write permission on the cgroup.
func DelegateSubgroup(name string) error { return delegateSubgroup(name) }

// rlimits by name, with their numbers on amd64 and arm64: asm-generic/resource.h.
var rlimitNumbers = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7,
	"memlock": 8, "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}

func (g *cgroupConfig) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, optionError(option, format, args...))
	}
	errs = append(errs, checkMemory("WithMemory", g.memory), checkCPUs("WithCPUs", g.cpus))
	if g.pool != nil {
		errs = append(errs, g.pool.check(g.cpus)...)
	}
	if g.swap != nil && *g.swap < 0 {
		bad("WithSwap", "%d is not a number of bytes", *g.swap)
	}
	if g.swap != nil && g.memory == nil {
		bad("WithSwap", "%w", fault.Needs{Option: "WithMemory"})
	}
	if g.weight != nil && (*g.weight < 1 || *g.weight > 10000) {
		bad("WithCPUWeight", "%d is not between 1 and 10000", *g.weight)
	}
	if g.cpuset != nil {
		if _, err := parseCPUSet(*g.cpuset); err != nil {
			bad("WithCPUSet", "%w", err)
		}
	}
	if g.pids != nil && *g.pids < 1 {
		bad("WithPIDs", "%d is less than 1", *g.pids)
	}
	if g.pids != nil && *g.pids > maxPIDs {
		bad("WithPIDs", "%d is more than a machine can have, %d", *g.pids, maxPIDs)
	}
	if g.cpuTime != nil && *g.cpuTime <= 0 {
		bad("WithCPUTime", "%v is not a positive duration", *g.cpuTime)
	}
	for _, l := range g.io {
		if err := l.check(); err != nil {
			bad("WithIO", "%w", err)
		}
	}
	if err := checkCgroupParent(g.parent); err != nil {
		bad("WithCgroupParent", "%w", err)
	}
	errs = append(errs, g.checkRlimits()...)
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func checkMemory(option string, bytes *int64) error {
	if bytes != nil && *bytes < minMemory {
		return optionError(option, "%d bytes is less than the least that makes sense, %d", *bytes, minMemory)
	}
	return nil
}

func checkCPUs(option string, cpus *float64) error {
	if n := float64(runtime.NumCPU()); cpus != nil && !(*cpus >= 0.01 && *cpus <= n) {
		return optionError(option, "%v is not between 0.01 and the %v CPUs of this process", *cpus, n)
	}
	return nil
}

func (l IOLimit) check() error {
	if err := checkPath(l.Path); err != nil {
		return err
	}
	return nil
}

// cgroupMount is where systems have their cgroups.
const cgroupMount = "/sys/fs/cgroup"

// checkCgroupParent accepts a path as in /proc/self/cgroup, or "" for the default.
func checkCgroupParent(p string) error {
	if p == "" {
		return nil
	}
	if err := checkPath(p); err != nil {
		return err
	}
	switch {
	case path.Clean(p) != p:
		return fmt.Errorf("%q is not in its shortest form, %q", p, path.Clean(p))
	case p == cgroupMount || strings.HasPrefix(p, cgroupMount+"/"):
		return fmt.Errorf("%q begins with where cgroups are mounted: leave that out, as in \"/jobs\"", p)
	case strings.Contains(p, "\n"): // no cgroup can have it in its name: cgroup_mkdir in kernel/cgroup/cgroup.c
		return fmt.Errorf("%q contains a line break", p)
	}
	return nil
}

func (g *cgroupConfig) checkRlimits() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(g.rlimits)) {
		l := g.rlimits[name]
		if _, ok := rlimitNumbers[name]; !ok {
			errs = append(errs, optionError("WithRlimit", "%q is unknown: use one of %s", name,
				strings.Join(slices.Sorted(maps.Keys(rlimitNumbers)), ", ")))
		} else if l.soft > l.hard {
			errs = append(errs, optionError("WithRlimit", "%s: the soft limit %d is above the hard limit %d", name, l.soft, l.hard))
		}
	}
	return errs
}

// parseCPUSet reads the list format of cpuset(7).
func parseCPUSet(list string) (map[uint64]bool, error) {
	cpus := map[uint64]bool{}
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return nil, fmt.Errorf("%q is not a list of CPUs such as 0-2,5", list)
		}
		for cpu := a; cpu <= b; cpu++ {
			cpus[cpu] = true
		}
	}
	return cpus, nil
}

// checkOnline looks whether the machine has the CPUs, where it tells.
func (g *cgroupConfig) checkOnline() error {
	if g.cpuset == nil {
		return nil
	}
	asked, err := parseCPUSet(*g.cpuset)
	if err != nil {
		return nil // refused by check
	}
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	online := strings.TrimSpace(string(b))
	have, parseErr := parseCPUSet(online)
	if err != nil || parseErr != nil {
		return nil
	}
	for _, cpu := range slices.Sorted(maps.Keys(asked)) {
		if !have[cpu] {
			return optionError("WithCPUSet", "%q: there is no CPU %d: use some of %s", *g.cpuset, cpu, online)
		}
	}
	return nil
}

// budget is what the runs of a pool have together.
type budget struct {
	name   string
	memory *int64
	cpus   *float64
	cells  sync.Map // that have had runs
}

// check reports what is wrong with it, for a run with the given limit of its own: cgroup v1 refuses a child more than its parent has.
func (b *budget) check(cpus *float64) []error {
	errs := []error{checkMemory("PoolMemory", b.memory), checkCPUs("PoolCPUs", b.cpus)}
	if b.cpus != nil && cpus != nil && *cpus > *b.cpus {
		errs = append(errs, optionError("WithCPUs", "%v is more than the %v that PoolCPUs gives to all runs together", *cpus, *b.cpus))
	}
	return errs
}
