package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Result is how a run ended.
type Result struct {
	// ExitCode is the command's exit status, or -1 if a signal ended it.
	ExitCode int
	// Signal is what ended the command, or 0 if it exited.
	Signal syscall.Signal
	// Reason says whether the command ended by itself or what ended it.
	Reason Reason
	// Usage is what the run used.
	Usage Usage
}

// Reason is why a run ended.
type Reason int

const (
	Exited         Reason = iota // the command exited
	Signaled                     // a signal that no limit sent ended it
	TimedOut                     // WithTimeout
	CPUTimedOut                  // WithCPUTime
	OutOfMemory                  // WithMemory or WithSwap: the kernel killed a process of the run, and the command failed
	OutputExceeded               // WithOutputLimit
	Canceled                     // the context ended
	PIDsExceeded                 // WithPIDs, or its default: the kernel refused a process or thread, and the command failed
)

func (r Reason) String() string {
	names := [...]string{"exited", "signaled", "timed out", "out of CPU time", "out of memory", "too much output", "canceled", "too many processes"}
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
	Throttled  time.Duration // time that WithCPUs held the run back
	MemoryPeak uint64        // bytes, page cache and tmpfs included
	ReadBytes  uint64        // from block devices
	WriteBytes uint64
	PIDsPeak   uint64 // processes and threads at one time
	OOMKills   uint64 // processes that the kernel killed for memory

	// PIDsRefused is how many times the kernel refused a process or thread for WithPIDs or its
	// default. On cgroup v1, and before Linux 6.11, a limit of a cgroup above the run's counts too.
	PIDsRefused uint64

	// Uncounted names the fields above for which this machine has no counter, such as
	// "PIDsPeak" before kernel 6.1, "MemoryPeak" on cgroup v2 before 5.19, or, without
	// cgroups, all but Wall. They are 0, but for UserCPU, SystemCPU and MemoryPeak: of a run that has
	// ended, those then cover the command and the children that it waited for, MemoryPeak the
	// largest one of them: getrusage(2). It is nil where all is counted.
	Uncounted []string
}

// What errors.Is finds in an *ExitError whose Reason is a limit, and in other
// errors where a comment says so.
var (
	ErrTimeout     = errors.New("timed out")
	ErrCPUTime     = errors.New("out of CPU time")
	ErrOutOfMemory = errors.New("out of memory") // also in a *SetupError: WithMemory is too little to execute the command
	ErrOutputLimit = errors.New("too much output")
	ErrPIDLimit    = errors.New("too many processes")
	// ErrWaitDelay is in the error of a run whose command exited with status 0, if writing its
	// output took longer after that than WithWaitDelay allows.
	ErrWaitDelay = errors.New("a writer of the output took longer than WithWaitDelay")
	// ErrCellLost says that the cell ended under its runs, killed from
	// outside or closed. The runs are gone; the next Run boots another.
	ErrCellLost = errors.New("the cell is gone")
)

// ExitError is the error of a run whose command did not exit with status 0.
type ExitError struct {
	*Result
	// Stderr is, from Output, what the command wrote to its standard error,
	// shortened in the middle where it is long.
	Stderr []byte

	cause error // of a cancellation
}

func (e *ExitError) Error() string {
	var how string
	switch {
	case e.Signal != 0:
		how = "signal: " + e.Signal.String()
	default:
		how = fmt.Sprintf("exit status %d", e.ExitCode)
	}
	if e.Reason != Exited && e.Reason != Signaled {
		how = e.Reason.String() + " (" + how + ")"
	}
	return "sandbox: " + how
}

// Unwrap returns the sentinel of the limit that ended the run, or the cause of
// the context's end.
func (e *ExitError) Unwrap() error {
	switch e.Reason {
	case TimedOut:
		return ErrTimeout
	case CPUTimedOut:
		return ErrCPUTime
	case OutOfMemory:
		return ErrOutOfMemory
	case OutputExceeded:
		return ErrOutputLimit
	case PIDsExceeded:
		return ErrPIDLimit
	}
	return e.cause
}

// contextError is why a context has ended: errors.Is finds in it both ctx.Err()
// and the cause that was given to the context's cancel function.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

func notStarted(ctx context.Context) error {
	return fmt.Errorf("sandbox: not started: %w", contextError(ctx))
}

// SetupError is a run that could not start.
type SetupError struct {
	// Stage is the step that failed, such as "cgroup" or "root file system".
	Stage string
	// Err is why: for a system call, its name, arguments and errno.
	Err error
	// Hint is what to do about it; it may be empty.
	Hint string
}

func (e *SetupError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sandbox: %s: %v", e.Stage, e.Err)
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

func (e *SetupError) Unwrap() error { return e.Err }
