package cell

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// BootError reports that a cell could not be booted.
type BootError struct {
	Why    Why
	Denied bool // the kernel refused something: EPERM, EACCES or ENOSYS
	Err    error
}

func (e *BootError) Error() string { return e.Err.Error() }
func (e *BootError) Unwrap() error { return e.Err }

// Why is a cause of a BootError for which there is a remedy.
type Why = wall.Why

// MissingError reports that Config.Runtime is not installed.
type MissingError = wall.MissingError

// RuntimeVersion returns what the Config.Runtime says about its version.
func RuntimeVersion(name string) (string, error) {
	w, err := wall.Installed(name)
	if err != nil {
		return "", err
	}
	return w.Version()
}

// The causes, as they are in package wall.
const (
	Other               = wall.Other
	ChildTaken          = wall.ChildTaken
	ProgramUnreadable   = wall.ProgramUnreadable
	IDsUnmapped         = wall.IDsUnmapped
	CapabilitiesLacking = wall.CapabilitiesLacking
	ProcUnmounted       = wall.ProcUnmounted
)

func newBootError(w wall.Wall, err error) *BootError {
	e := &BootError{Err: err}
	e.Why, e.Denied = w.Explain(err)
	var file *fs.PathError
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		e.Denied = e.Denied || errors.Is(err, errno)
	}
	switch {
	case errors.Is(err, unix.ECHILD):
		e.Why = ChildTaken
	case errors.Is(err, unix.EACCES) && errors.As(err, &file) && file.Path == ownPath:
		e.Why = ProgramUnreadable
	}
	return e
}
