package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Errors of runs, which are sandbox's.
var (
	ErrOutOfMemory = errors.New("out of memory")
	ErrWaitDelay   = errors.New("a writer of the output took longer than WithWaitDelay")
	ErrCellLost    = errors.New("the cell is gone")
	ErrRunEnded    = errors.New("the run has ended")
)

// SetupError is sandbox.SetupError, which has its documentation.
type SetupError struct {
	Stage string
	Err   error
	Hint  string
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

// WithRemedy returns an error's text and what to do about it, unless that is "" or the hint of a
// *SetupError, which has it in its own text.
func WithRemedy(err error, remedy string) string {
	var setup *SetupError
	if remedy == "" || errors.As(err, &setup) && setup.Hint == remedy {
		return err.Error()
	}
	return err.Error() + "; remedy: " + remedy
}

// Reason is sandbox.Reason, which has its documentation.
type Reason int

const (
	Exited Reason = iota
	Signaled
	TimedOut
	CPUTimedOut
	OutOfMemory
	OutputExceeded
	Canceled
	PIDsExceeded
	RunEnded
)

// Stop is a cause with which the packages of this module cancel the context of a run that is to
// have ended for that reason, and not for its context.
type Stop struct{ Reason Reason }

func (s Stop) Error() string { return "ended" }

// ReasonOf returns the reason for which a run ends with its context.
func ReasonOf(ctx context.Context) Reason {
	var stop Stop
	if errors.As(context.Cause(ctx), &stop) {
		return stop.Reason
	}
	return Canceled
}

// Ended returns why a context has ended: errors.Is finds in it both ctx.Err() and the cause that
// was given to the context's cancel function.
func Ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// NotStarted returns the error of a run whose context ended before it began.
func NotStarted(ctx context.Context) error {
	return fmt.Errorf("sandbox: not started: %w", Ended(ctx))
}
