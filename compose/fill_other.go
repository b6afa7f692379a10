//go:build !linux

package compose

import (
	"context"
	"errors"

	"github.com/cellkit/sandbox"
)

func fillDir(context.Context, *sandbox.Sandbox, string, string) error { return errors.ErrUnsupported }
