//go:build !linux

package cli

import (
	"context"

	"github.com/cellkit/sandbox"
)

func onTerminal(ctx context.Context, s *settings) (*sandbox.Result, error) {
	return sandbox.New(s.opts...).With(sandbox.WithTerminal(0, 0)).Run(ctx)
}
