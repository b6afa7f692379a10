//go:build linux

// Package limits puts runs into cgroups: it finds the hierarchies of the machine (v1, hybrid or
// v2), makes a directory for a cell and in it one for each run, and sets limits, reads usage,
// freezes, kills and removes.
//
//	<parent>/<cell id>/          a Cell; processes are never in it directly
//	<parent>/<cell id>/cell      made, joined and removed by libcontainer
//	<parent>/<cell id>/<name>    a Group: one run
//
// containerd/cgroups writes the settings. What happens at least once per run and is slow there
// (making, joining, reading and removing; see bench_test.go) is done here with a few system calls.
//
// The calling process is never moved, and no mount is changed.
package limits

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrUnavailable reports that this process can't make cgroups here. The error that wraps it says
// why and what to do.
var ErrUnavailable = errors.New("cgroups can't be used")

// Option is an option that needs cgroups, by the name that callers of the library know.
type Option string

const (
	WithMemory       Option = "WithMemory"
	WithSwap         Option = "WithSwap"
	WithCPUs         Option = "WithCPUs"
	WithCPUWeight    Option = "WithCPUWeight"
	WithCPUSet       Option = "WithCPUSet"
	WithPIDs         Option = "WithPIDs"
	WithIO           Option = "WithIO"
	WithCPUTime      Option = "WithCPUTime"
	WithCgroupParent Option = "WithCgroupParent"
	Pause            Option = "Pause"
)

// Error reports an option that does not work here, or whose value makes no sense.
type Error struct {
	Option Option
	Err    error // why, and what to do
}

func (e *Error) Error() string { return string(e.Option) + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func (o Option) wrong(format string, args ...any) error {
	return &Error{o, fmt.Errorf(format, args...)}
}

// Spec holds the limits of one run's cgroup. The zero value has none.
type Spec struct {
	Memory    int64   // bytes, 0 = no limit
	Swap      int64   // bytes of swap on top of Memory; only used with Memory, 0 = no swap
	CPUs      float64 // how many CPUs' time, as a quota over a period of 100 ms; 0 = no limit
	CPUWeight uint64  // 1 to 10000 on v2's scale, where 100 is the default; 0 = default
	CPUSet    string  // the CPUs to run on, such as "0-1,3"; "" = all
	PIDs      int64   // processes and threads, 0 = no limit
	IO        []IO    // none = no limit
	Pool      string  // the run is in this Pool of the cell's; "" = in none
}

// IO limits access to one whole block device, per second. Zero means no limit.
type IO struct {
	Major, Minor          int64
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Usage is what a run has used so far. The fields that Cell.Uncounted names are zero.
type Usage struct {
	UserCPU, SystemCPU time.Duration
	Throttled          time.Duration // time that a CPU quota made the run wait
	MemoryPeak         uint64        // bytes; uncounted on v2 before Linux 5.19, see Group.Usage
	ReadBytes          uint64        // from block devices
	WriteBytes         uint64        // to block devices
	PIDsPeak           uint64        // needs a kernel with pids.peak
	PIDsRefused        uint64        // processes and threads refused by a limit, see Group.Usage
	OOMKills           uint64        // processes that the out-of-memory killer ended
}

const (
	cpuPeriod = 100_000 // µs: the kernel's default, on v1 and v2
	minQuota  = 1_000   // µs: the kernel refuses less
)

// quota returns CPUs as µs of CPU time per cpuPeriod.
func (s Spec) quota() int64 { return int64(math.Round(s.CPUs * cpuPeriod)) }

// shares returns CPUWeight on v1's scale. The scheduler itself maps v2's weight 100 to 1024 shares.
func (s Spec) shares() uint64 { return max(2, (s.CPUWeight*1024+50)/100) }

// check refuses values that the kernel would refuse or, worse, misunderstand.
func (s Spec) check() error {
	var errs []error
	bad := func(o Option, format string, args ...any) { errs = append(errs, o.wrong(format, args...)) }
	if s.Memory < 0 {
		bad(WithMemory, "%d bytes: must not be negative", s.Memory)
	}
	if s.Swap < 0 || s.Swap > math.MaxInt64-max(s.Memory, 0) {
		bad(WithSwap, "%d bytes: must not be negative, nor beyond 63 bits together with WithMemory", s.Swap)
	}
	if s.PIDs < 0 {
		bad(WithPIDs, "%d: must not be negative", s.PIDs)
	}
	if s.CPUWeight > 10000 {
		bad(WithCPUWeight, "%d: must be 1 to 10000", s.CPUWeight)
	}
	if s.CPUs != 0 && !(s.CPUs > 0 && s.CPUs < 1e6 && s.quota() >= minQuota) {
		bad(WithCPUs, "%v: must be at least %v", s.CPUs, float64(minQuota)/cpuPeriod)
	}
	if _, err := parseCPUs(s.CPUSet); err != nil {
		bad(WithCPUSet, "%w", err)
	}
	return errors.Join(errs...)
}

// Empty reports whether s limits nothing.
func (s Spec) Empty() bool { return len(s.needs()) == 0 }

// need is an option in use and the controller that enforces it.
type need struct {
	option     Option
	controller string
}

func (s Spec) needs() []need {
	var n []need
	add := func(use bool, option Option, controller string) {
		if use {
			n = append(n, need{option, controller})
		}
	}
	add(s.Memory != 0, WithMemory, "memory")
	add(s.Memory != 0 && s.Swap != 0, WithSwap, "memory")
	add(s.CPUs != 0, WithCPUs, "cpu")
	add(s.CPUWeight != 0, WithCPUWeight, "cpu")
	add(s.CPUSet != "", WithCPUSet, "cpuset")
	add(s.PIDs != 0, WithPIDs, "pids")
	add(len(s.IO) > 0, WithIO, "io")
	return n
}
