package function

import (
	"errors"

	"github.com/cellkit/sandbox/internal/wire"
)

// Error is an error that the function returned. Only the error's text crosses the boundary.
type Error struct {
	Func string // the function's name
	Text string // the first 64 KiB
}

func (e *Error) Error() string { return e.Text }

// PanicError is the error of a function that panicked or called runtime.Goexit.
type PanicError struct {
	Func  string
	Value string // as fmt prints it, the first 64 KiB
	Stack string // of the goroutine that panicked, the first 64 KiB
}

func (e *PanicError) Error() string { return "sandbox: function " + e.Func + ": panic: " + e.Value }

// ErrNoAnswer means that the function's process ended without an answer, and with status 0, as by
// os.Exit(0).
var ErrNoAnswer = errors.New("the function's process ended without an answer")

// ErrMessageLimit means that what a call takes or returns is larger than MessageLimit allows,
// encoded or decoded.
var ErrMessageLimit = wire.ErrTooLarge

// ErrClosed is the error of calls of Workers that were closed.
var ErrClosed = errors.New("the workers are closed")
