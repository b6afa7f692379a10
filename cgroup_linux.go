package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
)

// spec is what the run's cgroup enforces. It looks up devices.
func (g *cgroupConfig) spec() (limits.Spec, error) {
	s := limits.Spec{PIDs: defaultPIDs}
	set(&s.Memory, g.memory)
	set(&s.Swap, g.swap)
	set(&s.PIDs, g.pids)
	set(&s.CPUs, g.cpus)
	set(&s.CPUWeight, g.weight)
	set(&s.CPUSet, g.cpuset)
	if g.pool != nil {
		s.Pool = g.pool.name
	}
	for _, l := range g.io {
		major, minor, err := blockDevice(l.Path)
		if err != nil {
			return s, optionError("WithIO", "%s: %w", l.Path, err)
		}
		s.IO = append(s.IO, limits.IO{Major: major, Minor: minor,
			ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, ReadOps: l.ReadOps, WriteOps: l.WriteOps})
	}
	return s, nil
}

// spec is what holds for all runs of a pool together.
func (b *budget) spec() (s limits.Spec) {
	set(&s.Memory, b.memory)
	set(&s.CPUs, b.cpus)
	return s
}

// within returns the limits of a run with the pool's where its own are not lower. That changes
// nothing, but a run sees its own limits and not those above it.
func (b *budget) within(run limits.Spec) limits.Spec {
	all := b.spec()
	if all.Memory != 0 && (run.Memory == 0 || all.Memory < run.Memory) {
		run.Memory = all.Memory
	}
	if all.CPUs != 0 && (run.CPUs == 0 || all.CPUs < run.CPUs) {
		run.CPUs = all.CPUs
	}
	return run
}

// in makes the pool's cgroup in the cell of a run that is about to start, if it is not there yet.
func (b *budget) in(c *cell.Cell) error {
	b.cells.Store(c, nil)
	return c.Limits.Pool(b.name, b.spec())
}

// end removes the pool's cgroups, with all that is still in them.
func (b *budget) end() error {
	var errs []error
	b.cells.Range(func(c, _ any) bool {
		if c := c.(*cell.Cell); !c.Dying() { // else they go with it
			errs = append(errs, c.Limits.DeletePool(b.name))
		}
		return true
	})
	return errors.Join(errs...)
}

func delegateSubgroup(name string) error {
	if err := limits.Subgroup(name); err != nil {
		return fmt.Errorf("sandbox: DelegateSubgroup: %w", err)
	}
	return nil
}

// blockDevice finds the whole device that a path lies on, or is: the kernel
// does not limit partitions of their own (block/blk-cgroup.c, blkg_conf_open_bdev).
func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	if _, err := os.Stat(sys + "/partition"); err == nil {
		sys += "/.."
	}
	b, err := os.ReadFile(sys + "/dev")
	if err != nil {
		return 0, 0, errors.New("it does not lie on a single block device: name the device itself, such as /dev/sda")
	}
	_, err = fmt.Sscanf(string(b), "%d:%d", &major, &minor)
	return major, minor, err
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// options names those that were given and take a cgroup.
func (g *cgroupConfig) options() (names []string) {
	for _, o := range []struct {
		name  string
		given bool
	}{
		{"WithMemory", g.memory != nil}, {"WithSwap", g.swap != nil}, {"WithCPUs", g.cpus != nil}, {"WithCPUWeight", g.weight != nil},
		{"PoolMemory", g.pool != nil && g.pool.memory != nil}, {"PoolCPUs", g.pool != nil && g.pool.cpus != nil},
		{"WithCPUSet", g.cpuset != nil}, {"WithPIDs", g.pids != nil}, {"WithCPUTime", g.cpuTime != nil}, {"WithIO", len(g.io) > 0},
	} {
		if o.given {
			names = append(names, o.name)
		}
	}
	return names
}

func (g *cgroupConfig) timeLimit() time.Duration {
	if g.cpuTime == nil {
		return 0
	}
	return *g.cpuTime
}

// addRlimits sets the resource limits of the command, once it needs no more
// descriptors itself: prlimit(2).
func (k *compiler) addRlimits() {
	b := k.b
	b.Stage("resource limits")
	// With a limit of 0 a core dump still goes to a program of the host, if the sysctl kernel.core_pattern names one. With 1
	// it goes nowhere: core(5), fs/coredump.c.
	all := map[string]rlimit{"core": {1, 1}, "nice": {}, "rtprio": {}} // priorities that this process may take are its own
	// What queued signals and messages take, and locked shared memory, is also counted together for
	// all runs: getrlimit(2). On cgroup v2 libcontainer lifts this process's own limit of locked
	// memory, and so the next cell's.
	for name, most := range map[string]uint64{"sigpending": 1024, "msgqueue": 128 * KiB, "memlock": 8 * MiB} {
		n := min(most, k.m.HardLimits[name])
		all[name] = rlimit{n, n}
	}
	all["nofile"] = rlimit{min(1024, k.m.HardLimits["nofile"]), k.m.HardLimits["nofile"]}
	maps.Copy(all, k.c.cgroup.rlimits)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		l := unix.Rlimit{Cur: all[name].soft, Max: all[name].hard}
		raw := append([]byte(nil), (*[unsafe.Sizeof(l)]byte)(unsafe.Pointer(&l))[:]...)
		b.Call("prlimit64", unix.SYS_PRLIMIT64, program.Int(0), program.Int(rlimitNumbers[name], "RLIMIT_"+name),
			b.Bytes(raw, fmt.Sprintf("{%s, %s}", limitText(l.Cur), limitText(l.Max))), program.Int(0, "NULL"))
	}
}

func limitText(n uint64) string {
	if n == RlimitInfinity {
		return "unlimited"
	}
	return fmt.Sprint(n)
}
