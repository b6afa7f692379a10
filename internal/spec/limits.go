package spec

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Limits is what the run's cgroup enforces. 0 is no limit.
type Limits struct {
	Memory, Swap int64 // bytes
	PIDs         int64
	CPUs         float64
	CPUWeight    uint64
	CPUSet       *string // nil for all
	CPUTime      time.Duration
	IO           []IO
	Parent       string // cgroup, as in /proc/self/cgroup; "" for the default
	Pool         *Pool  // nil for none
}

// IO is what sandbox.IOLimit says.
type IO struct {
	Path                  string
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Pool is what the runs of a pool have together. 0 is no limit.
type Pool struct {
	Name   string // of its cgroups, if it has limits
	Memory int64
	CPUs   float64

	closing sync.Mutex // held by Close
	mu      sync.Mutex
	made    [2]map[any]func() error
}

// PoolPart is what has been made for a pool, in the order in which Close undoes it.
type PoolPart int

const (
	PreparedRuns PoolPart = iota
	Cgroups
)

// IsLimited reports whether the runs of the pool are limited together.
func (p *Pool) IsLimited() bool { return p != nil && (p.Memory != 0 || p.CPUs != 0) }

// Made has Close call undo for a part of which it does not know yet.
func (p *Pool) Made(part PoolPart, key any, undo func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made[part] == nil {
		p.made[part] = map[any]func() error{}
	}
	if _, ok := p.made[part][key]; !ok {
		p.made[part][key] = undo
	}
}

// Gone takes back what Made was told.
func (p *Pool) Gone(part PoolPart, key any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.made[part], key)
}

// Close undoes what was made for the pool, once no run of it is left. What can't be undone is left
// for another Close.
func (p *Pool) Close() error {
	p.closing.Lock()
	defer p.closing.Unlock()
	var errs []error
	for part := range p.made {
		for key, undo := range p.part(PoolPart(part)) {
			if err := undo(); err != nil {
				errs = append(errs, err)
				continue
			}
			p.Gone(PoolPart(part), key)
		}
	}
	return errors.Join(errs...)
}

func (p *Pool) part(part PoolPart) map[any]func() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.made[part])
}

// Equal reports whether both make the same cgroup.
func (l *Limits) Equal(o *Limits) bool {
	sameSet := l.CPUSet == o.CPUSet || l.CPUSet != nil && o.CPUSet != nil && *l.CPUSet == *o.CPUSet
	return sameSet && l.Memory == o.Memory && l.Swap == o.Swap && l.PIDs == o.PIDs && l.CPUs == o.CPUs && l.CPUWeight == o.CPUWeight &&
		l.CPUTime == o.CPUTime && slices.Equal(l.IO, o.IO) && l.Parent == o.Parent && l.Pool == o.Pool
}

const (
	// DefaultPIDs is also enforced where nothing is asked for, if it can be.
	DefaultPIDs = 512
	// maxPIDs is PID_MAX_LIMIT of include/linux/threads.h.
	maxPIDs = 4 << 20
	// minMemory is less than any process can start with: a smaller number is a mistake in its
	// unit.
	minMemory = 64 << 10
)

func (l *Limits) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, fault.Option(option, format, args...))
	}
	errs = append(errs, checkMemory("WithMemory", l.Memory), checkCPUs("WithCPUs", l.CPUs))
	if l.Pool != nil {
		errs = append(errs, l.Pool.check(l.CPUs)...)
	}
	if l.Swap < 0 {
		bad("WithSwap", "%d is not a number of bytes", l.Swap)
	}
	if l.Swap != 0 && l.Memory == 0 {
		bad("WithSwap", "%w", fault.Needs{Option: "WithMemory"})
	}
	if l.CPUWeight > 10000 {
		bad("WithCPUWeight", "%d is not between 1 and 10000", l.CPUWeight)
	}
	if l.CPUSet != nil {
		if _, err := ParseCPUSet(*l.CPUSet); err != nil {
			bad("WithCPUSet", "%w", err)
		}
	}
	if l.PIDs < 0 {
		bad("WithPIDs", "%d is less than 1", l.PIDs)
	}
	if l.PIDs > maxPIDs {
		bad("WithPIDs", "%d is more than a machine can have, %d", l.PIDs, maxPIDs)
	}
	if l.CPUTime < 0 {
		bad("WithCPUTime", "%v is not a positive duration", l.CPUTime)
	}
	for _, io := range l.IO {
		if err := checkHostPath(io.Path); err != nil {
			bad("WithIO", "%w", err)
		}
	}
	if err := CheckCgroupParent(l.Parent); err != nil {
		bad("WithCgroupParent", "%w", err)
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func checkMemory(option string, bytes int64) error {
	if bytes != 0 && bytes < minMemory {
		return fault.Option(option, "%d bytes is less than the least that makes sense, %d", bytes, minMemory)
	}
	return nil
}

func checkCPUs(option string, cpus float64) error {
	if n := float64(runtime.NumCPU()); cpus != 0 && !(cpus >= 0.01 && cpus <= n) {
		return fault.Option(option, "%v is not between 0.01 and the %v CPUs of this process", cpus, n)
	}
	return nil
}

// check returns what is wrong with it, for a run with the given limit of its own: cgroup v1 refuses
// a child more than its parent has.
func (p *Pool) check(cpus float64) []error {
	errs := []error{checkMemory("pool.Memory", p.Memory), checkCPUs("pool.CPUs", p.CPUs)}
	if p.CPUs != 0 && cpus != 0 && cpus > p.CPUs {
		errs = append(errs, fault.Option("WithCPUs", "%v is more than the %v that pool.CPUs gives to all runs together", cpus, p.CPUs))
	}
	return errs
}

// cgroupMount is where systems have their cgroups.
const cgroupMount = "/sys/fs/cgroup"

// CheckCgroupParent accepts a path as in /proc/self/cgroup, or "" for the default.
func CheckCgroupParent(p string) error {
	if p == "" {
		return nil
	}
	if err := CheckPath(p); err != nil {
		return err
	}
	switch {
	case path.Clean(p) != p:
		return fmt.Errorf("%q is not in its shortest form, %q", p, path.Clean(p))
	case p == cgroupMount || strings.HasPrefix(p, cgroupMount+"/"):
		return fmt.Errorf("%q begins with where cgroups are mounted: leave that out, as in \"/jobs\"", p)
	case strings.Contains(p, "\n"): // not in a cgroup's name: cgroup_mkdir in kernel/cgroup/cgroup.c
		return fmt.Errorf("%q contains a line break", p)
	}
	return nil
}

// ParseCPUSet reads the list format of cpuset(7).
func ParseCPUSet(list string) (map[uint64]bool, error) {
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
