package sandbox

import (
	"fmt"
	"syscall"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Result is how a run ended.
type Result struct {
	// ExitCode is the command's exit status, or -1 if a signal ended it.
	ExitCode int
	// Signal is the signal that ended the command, or 0 if it exited.
	Signal syscall.Signal
	// Reason says whether the command ended by itself or what ended it.
	Reason Reason
	// Usage is what the run used.
	Usage Usage
}

// String returns how the run ended, as "exit status 1" or "timed out (signal: killed)".
func (r *Result) String() string {
	if r.Reason == Exited || r.Reason == Signaled {
		return r.status()
	}
	return fmt.Sprintf("%v (%s)", r.Reason, r.status())
}

func (r *Result) status() string {
	if r.Signal != 0 {
		return "signal: " + r.Signal.String()
	}
	return fmt.Sprintf("exit status %d", r.ExitCode)
}

// Reason is why a run ended.
type Reason int

const (
	Exited      Reason = Reason(fault.Exited)      // the command exited
	Signaled    Reason = Reason(fault.Signaled)    // a signal ended it that no limit sent
	TimedOut    Reason = Reason(fault.TimedOut)    // WithTimeout
	CPUTimedOut Reason = Reason(fault.CPUTimedOut) // WithCPUTime
	// WithMemory or WithSwap: the kernel killed a process of the run, and the command failed.
	OutOfMemory    Reason = Reason(fault.OutOfMemory)
	OutputExceeded Reason = Reason(fault.OutputExceeded) // WithOutputLimit
	Canceled       Reason = Reason(fault.Canceled)       // the context ended
	// WithPIDs, or its default: the kernel refused a process or thread, and the command failed.
	PIDsExceeded Reason = Reason(fault.PIDsExceeded)
	RunEnded     Reason = Reason(fault.RunEnded) // of an Exec: the run that it was in has ended
)

func (r Reason) String() string {
	names := [...]string{"exited", "signaled", "timed out", "out of CPU time", "out of memory", "too much output", "canceled", "too many processes", "the run has ended"}
	if r < 0 || int(r) >= len(names) {
		return fmt.Sprintf("Reason(%d)", int(r))
	}
	return names[r]
}

// Usage is what a run used, all its processes together.
type Usage struct {
	Wall       time.Duration // from the execution of the command to its end
	UserCPU    time.Duration
	SystemCPU  time.Duration
	Throttled  time.Duration // how long WithCPUs held the run back
	MemoryPeak uint64        // bytes, page cache and tmpfs included
	ReadBytes  uint64        // from block devices
	WriteBytes uint64
	PIDsPeak   uint64 // processes and threads at one time
	OOMKills   uint64 // processes that the kernel killed for memory

	// PIDsRefused is how many times the kernel refused a process or thread because of WithPIDs
	// or its default. On cgroup v1, and before Linux 6.11, a limit of a cgroup above the run's
	// counts too.
	PIDsRefused uint64

	// Uncounted names the fields above for which this machine has no counter, such as
	// "PIDsPeak" before kernel 6.1, "MemoryPeak" on cgroup v2 before 5.19, or, without cgroups,
	// all but Wall. They are 0, except for UserCPU, SystemCPU and MemoryPeak: for a run that
	// has ended, those then cover the command and the children that it waited for, MemoryPeak
	// the largest one of them: getrusage(2). Uncounted is nil if everything is counted.
	Uncounted []string
}
