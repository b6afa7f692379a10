package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellkit/sandbox/internal/fault"
)

// OptionError is the error of one wrong option. All wrong options are reported at once, joined as
// by errors.Join: errors.As finds the first of them, and the method Unwrap() []error returns all.
//
// It is a struct of two fields. Option, a string, is the option's name, such as "WithMemory",
// "CellNetwork" or "pool.Queue", or, for a wrong argument of a function that is not an option, the
// function's name, such as "NewScratch". If two options can't be combined, it is the one to change
// first. Err, an error, says what is wrong with it, and what to do instead.
type OptionError = fault.OptionError

// These are found by errors.Is in an *ExitError whose Reason is a limit, and in other errors where
// a comment says so.
var (
	ErrTimeout = errors.New("timed out")
	ErrCPUTime = errors.New("out of CPU time")
	// ErrOutOfMemory is also in a *SetupError, if WithMemory is too little to execute the
	// command.
	ErrOutOfMemory = fault.ErrOutOfMemory
	ErrOutputLimit = errors.New("too much output")
	ErrPIDLimit    = errors.New("too many processes")
	// ErrWaitDelay is in the error of a run whose command exited with status 0, if writing its
	// output took longer after that than WithWaitDelay allows.
	ErrWaitDelay = fault.ErrWaitDelay
	// ErrCellLost means that the cell ended before its runs did: it was killed from outside, or
	// closed. The runs are gone; the next Run boots another cell.
	ErrCellLost = fault.ErrCellLost
	// ErrRunEnded is in the error of an Exec that ended because its run did, together with the
	// sentinel of the limit that ended the run, or the cause of its context's end.
	ErrRunEnded = fault.ErrRunEnded
)

// ExitError is the error of a run whose command did not exit with status 0.
type ExitError struct {
	*Result
	// Stderr is what the command wrote to its standard error, shortened in the middle if it is
	// long. It is set by Output, and by calls of package function.
	Stderr []byte

	cause error // of a cancellation, or of the run's end; or why its streams could not be copied
	ofRun error // the cause of the run's end alone
}

func (e *ExitError) Error() string {
	why := e.cause
	if e.Reason == RunEnded {
		why = e.ofRun
	}
	switch {
	case why == nil || why == context.Canceled:
		return "sandbox: " + e.Result.String()
	case e.Reason == Exited || e.Reason == Signaled:
		return fmt.Sprintf("sandbox: %s (%v)", e.status(), why)
	}
	return fmt.Sprintf("sandbox: %v: %v (%s)", e.Reason, why, e.status())
}

// Unwrap returns the sentinel of the limit that ended the run, or the cause of the context's end
// or, for an Exec, of its run's, or why the streams of a command that failed could not be copied.
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

// SetupError is the error of a run that could not start.
//
// It is a struct of three fields. Stage, a string, is the step that failed, such as "cgroup" or
// "root file system"; "exec" is the execution of the command; a step that an option asks for begins
// with the option's name: "WithBind /data". Err, an error, says why: for a system call, it has its
// name, arguments and errno. Hint, a string, says what to do about it; it may be empty.
type SetupError = fault.SetupError
