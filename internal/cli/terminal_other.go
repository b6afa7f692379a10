//go:build !linux

package cli

import (
	"context"
	"os"

	"github.com/cellkit/sandbox"
)

func onTerminal(ctx context.Context, s *settings, _ func(*sandbox.Process)) (*sandbox.Result, error) {
	return sandbox.New(s.opts...).With(sandbox.WithTerminal(0, 0)).Run(ctx)
}

func isTerminal(*os.File) bool { return false }
