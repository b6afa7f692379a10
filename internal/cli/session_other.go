//go:build !linux

package cli

import (
	"context"
	"errors"

	"github.com/cellkit/sandbox"
)

type session struct{}

// Without Linux no run starts, and so none has a session.
func newSession(*settings) (*session, error)              { return nil, nil }
func (*session) serve(*sandbox.Process)                   {}
func (*session) end(status int, reason error)             {}
func execute(context.Context, *settings) (*answer, error) { return nil, errors.ErrUnsupported }
func list(bool) error                                     { return errors.ErrUnsupported }
