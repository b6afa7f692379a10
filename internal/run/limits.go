//go:build linux

package run

// What the cgroup of a run is to enforce, and whether the cell can.

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/spec"
)

// wanted returns what the run's cgroup is to enforce. It looks up devices.
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

// together returns the limits of all runs of a pool together.
func together(p *spec.Pool) limits.Spec { return limits.Spec{Memory: p.Memory, CPUs: p.CPUs} }

// within returns the limits of a run, with the pool's where the run's own are not lower. That
// changes nothing except what the run sees: its own limits, and not those above it.
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
			return nil // the cell's end removes it
		}
		return c.Limits.DeletePool(p.Name)
	})
	return c.Limits.Pool(p.Name, together(p))
}

// blockDevice finds the whole device that a path lies on, or is: the kernel does not limit
// partitions of their own (block/blk-cgroup.c, blkg_conf_open_bdev).
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

// optionsOf returns the names of the options that were given and need a cgroup.
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

// enforceable returns the limits of a run in the cell, or an error if one that was asked for can't
// be enforced.
func enforceable(l *spec.Limits, c *cell.Cell) (limits.Spec, error) {
	want, err := wanted(l)
	if err != nil {
		return want, err
	}
	given, pool := asked(l, want), l.Pool
	switch {
	case c.Limits != nil:
		err = c.Tree.Missing(given)
		if pool.IsLimited() {
			if missing := c.Tree.Missing(together(pool)); missing != nil {
				err = errors.Join(err, fmt.Errorf("the pool's %w", missing))
			}
		}
		if l.CPUTime != 0 {
			err = errors.Join(err, c.Tree.MissingCPUTime())
		}
	case !given.Empty() || l.CPUTime != 0 || pool.IsLimited():
		err = fmt.Errorf("%s: %w", strings.Join(optionsOf(l), ", "), c.LimitsErr)
	}
	if err != nil {
		return want, &fault.SetupError{Stage: "cgroup", Err: err}
	}
	if c.Limits != nil && c.Tree.Missing(want) != nil {
		want.PIDs = 0 // a default that can't be enforced: Check says so
	}
	if want.PIDs != 0 && c.GuestRuntime() != nil {
		want.PIDs = guestThreads // like the default, not enforced without the pids controller
	}
	if pool.IsLimited() {
		want = within(pool, want)
	}
	return want, nil
}

// asked returns the wanted limits without those that are defaults.
func asked(l *spec.Limits, want limits.Spec) limits.Spec {
	if l.PIDs == 0 {
		want.PIDs = 0
	}
	return want
}

// busyCPUs returns how many CPUs a run can use at a time.
func busyCPUs(l *spec.Limits) int {
	n := runtime.NumCPU()
	if l.CPUs != 0 {
		n = min(n, int(l.CPUs)+1)
	}
	return n
}
