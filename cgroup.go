package sandbox

import (
	"math"
	"slices"
	"time"

	"github.com/cellkit/sandbox/internal/spec"
)

// Sizes in bytes.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30
)

// IOLimit limits a run's access to the block device that Path lies on, in bytes and operations per
// second. Zero means no limit.
type IOLimit struct {
	Path                  string
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// WithMemory limits the memory of all processes of the run together, in bytes, page cache and tmpfs
// included. A run that needs more is killed: ErrOutOfMemory. Needs the memory controller. Default,
// and 0: none.
func WithMemory(bytes int64) Option { return func(c *spec.Spec) { c.Limits.Memory = bytes } }

// WithSwap sets how many bytes the run may swap out on top of WithMemory, which must be set too.
// Default: none, if WithMemory is set and the kernel counts swap.
func WithSwap(bytes int64) Option { return func(c *spec.Spec) { c.Limits.Swap = bytes } }

// WithCPUs limits the CPU time that the run gets, in CPUs: 0.5 is half of one, enforced over
// periods of 100 ms. At least 0.01, at most the CPUs that this process has. Needs the cpu
// controller. Default, and 0: none.
func WithCPUs(n float64) Option { return func(c *spec.Spec) { c.Limits.CPUs = n } }

// WithCPUWeight sets the run's share of busy CPUs in proportion to others, from 1 to 10000. Needs
// the cpu controller. Default, and 0: 100.
func WithCPUWeight(weight uint64) Option { return func(c *spec.Spec) { c.Limits.CPUWeight = weight } }

// WithCPUSet binds the run to CPUs, as in "0-2,5". Needs the cpuset controller. Default: all.
func WithCPUSet(cpus string) Option { return func(c *spec.Spec) { c.Limits.CPUSet = &cpus } }

// WithPIDs limits the number of processes and threads of the run. The kernel refuses more (EAGAIN);
// if the command then fails, the run's error is ErrPIDLimit. Needs the pids controller. Default,
// and 0: 512, if the controller is there. The number can't be unlimited: it is at most 4194304, as
// many as a machine can have.
func WithPIDs(n int64) Option { return func(c *spec.Spec) { c.Limits.PIDs = n } }

// WithCPUTime limits the CPU time, user and system, that all processes of the run use together. A
// run that uses more is killed: ErrCPUTime. The limit is checked whenever it could have been
// reached, but at most once per millisecond. Needs a cgroup. Default, and 0: none.
func WithCPUTime(d time.Duration) Option { return func(c *spec.Spec) { c.Limits.CPUTime = d } }

// WithIO limits access to block devices. Several limits, and several calls, add up; one that limits
// nothing is ignored. Needs the io (v1: blkio) controller. Default: none.
func WithIO(limits ...IOLimit) Option {
	return func(c *spec.Spec) {
		for _, l := range limits {
			if l != (IOLimit{Path: l.Path}) {
				c.Limits.IO = append(slices.Clip(c.Limits.IO), spec.IO(l))
			}
		}
	}
}

// WithRlimit sets a resource limit of getrlimit(2) by its name: "as", "core", "cpu", "data",
// "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
// "sigpending" or "stack", in the units given there. RlimitInfinity means no limit. Several calls
// add up. Raising a hard limit of this process needs CAP_SYS_RESOURCE, which no run has. Default:
// core 1, with which no core is dumped, not even to a program of the host that handles core dumps;
// nofile 1024 with this process's hard limit, sigpending 1024, msgqueue 128 KiB, memlock 8 MiB,
// nice and rtprio 0, the rest as for this process.
func WithRlimit(resource string, soft, hard uint64) Option {
	return func(c *spec.Spec) {
		if c.Command.Rlimits == nil {
			c.Command.Rlimits = map[string]spec.Rlimit{}
		}
		c.Command.Rlimits[resource] = spec.Rlimit{Soft: soft, Hard: hard}
	}
}

// RlimitInfinity means no limit, as a value of WithRlimit.
const RlimitInfinity = math.MaxUint64

// WithCgroupParent places the runs' cgroups below the given one, a path as in /proc/self/cgroup,
// which must be writable for this process and, on cgroup v2, must hold no process itself. If it
// does not exist it is made, and removed with the last cell; if this process is killed it stays,
// empty. Default, on v2: a cgroup above this process's own that was delegated to it, if it holds no
// process; else a transient scope that systemd makes, the system's for root and the user's own for
// others; else, as root, a cgroup "sandbox" at the top, as always on v1. docs/CGROUPS.md has the
// whole table, and Check reports what was chosen. Sandboxes with different parents use different
// cells.
func WithCgroupParent(path string) Option { return func(c *spec.Spec) { c.Limits.Parent = path } }

// DelegateSubgroup moves this process, and all others of its cgroup, into a child of that cgroup
// with the given name, so that runs can have their cgroups beside it: a cgroup with processes of
// its own gives its children no controllers (cgroups(7), "no internal processes"). Call it first
// thing, in a service with Delegate=yes where systemd has no DelegateSubgroup= (before version
// 254), or in a container whose cgroup is writable. It does nothing if nothing is in the way: on
// cgroup v1, at the top of v2, or if it was called before. It is the only thing that moves this
// process. It needs write permission on the cgroup.
func DelegateSubgroup(name string) error { return delegateSubgroup(name) }
