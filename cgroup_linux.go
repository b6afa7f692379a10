package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// wanted is what the run's cgroup is to enforce. It looks up devices.
func wanted(l *spec.Limits) (limits.Spec, error) {
	s := limits.Spec{Memory: l.Memory, Swap: l.Swap, PIDs: cmp.Or(l.PIDs, spec.DefaultPIDs), CPUs: l.CPUs, CPUWeight: l.CPUWeight}
	if l.CPUSet != nil {
		s.CPUSet = *l.CPUSet
	}
	if l.Pool.IsLimited() {
		s.Pool = l.Pool.Name
	}
	for _, io := range l.IO {
		limit, err := ioLimit(io)
		if err != nil {
			return s, err
		}
		s.IO = append(s.IO, limit)
	}
	return s, nil
}

func ioLimit(l spec.IO) (limits.IO, error) {
	major, minor, err := blockDevice(l.Path)
	if err != nil {
		return limits.IO{}, fault.Option("WithIO", "%s: %w", l.Path, err)
	}
	return limits.IO{Major: major, Minor: minor, ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, ReadOps: l.ReadOps, WriteOps: l.WriteOps}, nil
}

// together is what holds for all runs of a pool together.
func together(p *spec.Pool) limits.Spec { return limits.Spec{Memory: p.Memory, CPUs: p.CPUs} }

// within returns the limits of a run with the pool's where its own are not lower. That changes
// nothing, but a run sees its own limits and not those above it.
func within(p *spec.Pool, run limits.Spec) limits.Spec {
	if p.Memory != 0 && (run.Memory == 0 || p.Memory < run.Memory) {
		run.Memory = p.Memory
	}
	if p.CPUs != 0 && (run.CPUs == 0 || p.CPUs < run.CPUs) {
		run.CPUs = p.CPUs
	}
	return run
}

// makePool makes the pool's cgroup in the cell of a run that is about to start, if it is not there
// yet.
func makePool(p *spec.Pool, c *cell.Cell) error {
	p.Made(spec.Cgroups, c, func() error {
		if c.Dying() {
			return nil // it goes with the cell
		}
		return c.Limits.DeletePool(p.Name)
	})
	return c.Limits.Pool(p.Name, together(p))
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

// optionsOf names those that were given and take a cgroup.
func optionsOf(l *spec.Limits) (names []string) {
	pool := l.Pool
	if pool == nil {
		pool = &spec.Pool{}
	}
	for _, o := range []struct {
		name  string
		given bool
	}{
		{"WithMemory", l.Memory != 0}, {"WithSwap", l.Swap != 0}, {"WithCPUs", l.CPUs != 0}, {"WithCPUWeight", l.CPUWeight != 0},
		{"pool.Memory", pool.Memory != 0}, {"pool.CPUs", pool.CPUs != 0},
		{"WithCPUSet", l.CPUSet != nil}, {"WithPIDs", l.PIDs != 0}, {"WithCPUTime", l.CPUTime != 0}, {"WithIO", len(l.IO) > 0},
	} {
		if o.given {
			names = append(names, o.name)
		}
	}
	return names
}

// addRlimits sets the resource limits of the command, once it needs no more
// descriptors itself: prlimit(2).
func (k *compiler) addRlimits() {
	b := k.b
	b.Stage("resource limits")
	// With a limit of 0 a core dump still goes to a program of the host, if the sysctl kernel.core_pattern names one. With 1
	// it goes nowhere: core(5), fs/coredump.c.
	all := map[string]spec.Rlimit{"core": {Soft: 1, Hard: 1}, "nice": {}, "rtprio": {}} // priorities that this process may take are its own
	// What queued signals and messages take, and locked shared memory, is also counted together for
	// all runs: getrlimit(2). On cgroup v2 libcontainer lifts this process's own limit of locked
	// memory, and so the next cell's.
	for name, most := range map[string]uint64{"sigpending": 1024, "msgqueue": 128 * KiB, "memlock": 8 * MiB} {
		n := min(most, k.m.HardLimits[name])
		all[name] = spec.Rlimit{Soft: n, Hard: n}
	}
	all["nofile"] = spec.Rlimit{Soft: min(1024, k.m.HardLimits["nofile"]), Hard: k.m.HardLimits["nofile"]}
	maps.Copy(all, k.c.Command.Rlimits)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		l := unix.Rlimit{Cur: all[name].Soft, Max: all[name].Hard}
		raw := append([]byte(nil), (*[unsafe.Sizeof(l)]byte)(unsafe.Pointer(&l))[:]...)
		b.Call("prlimit64", unix.SYS_PRLIMIT64, program.Int(0), program.Int(spec.RlimitNumber(name), "RLIMIT_"+name),
			b.Bytes(raw, fmt.Sprintf("{%s, %s}", limitText(l.Cur), limitText(l.Max))), program.Int(0, "NULL"))
	}
}

func limitText(n uint64) string {
	if n == RlimitInfinity {
		return "unlimited"
	}
	return fmt.Sprint(n)
}
