//go:build !linux

package pool_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
)

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	ctx := context.Background()
	p := pool.New(sandbox.New(sandbox.WithCommand("true")), 1)
	for name, call := range map[string]func() error{
		"Run":    func() error { _, err := p.Run(ctx); return err },
		"TryRun": func() error { _, err := p.TryRun(ctx); return err },
		"Start":  func() error { _, err := p.Start(ctx); return err },
	} {
		if err := call(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}
