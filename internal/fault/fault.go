// Package fault is the substance of errors: what package sandbox, the command and the packages
// below know of them beyond their text.
package fault

import (
	"cmp"
	"errors"
	"fmt"
)

// OptionError is sandbox.OptionError, which has its documentation.
type OptionError struct {
	Option string
	Err    error
}

func (e *OptionError) Error() string { return fmt.Sprintf("sandbox: %s: %v", e.Option, e.Err) }

func (e *OptionError) Unwrap() error { return e.Err }

// Option returns the *OptionError of one wrong option.
func Option(option, format string, args ...any) error {
	return &OptionError{option, fmt.Errorf(format, args...)}
}

// A Subject is what an error is about: an option, or the part of an image that stands in for it.
// The option then takes its place.
type Subject struct{ Option, Image string }

func (s Subject) String() string { return cmp.Or(s.Image, s.Option) }

// Wrong returns an error as Option does, which names the image's part if there is one.
func (s Subject) Wrong(format string, args ...any) error {
	e := &OptionError{s.Option, fmt.Errorf(format, args...)}
	if s.Image == "" {
		return e
	}
	return &imageError{s.Image, e}
}

// imageError is an *OptionError that names what the image says.
type imageError struct {
	part string
	*OptionError
}

func (e *imageError) Error() string { return fmt.Sprintf("sandbox: %s: %v", e.part, e.Err) }

func (e *imageError) Unwrap() error { return e.OptionError }

// Needs is what is wrong with an option that was given without another.
type Needs struct{ Option string }

func (n Needs) Error() string { return "means nothing without " + n.Option }

// ErrNotCopied is sandbox.ErrNotCopied, which has its documentation.
var ErrNotCopied = errors.New("left out, as they can't be read or may not be followed")
