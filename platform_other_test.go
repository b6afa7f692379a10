//go:build !linux

package sandbox_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/cellkit/sandbox"
)

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	ctx := context.Background()
	s := sandbox.New(sandbox.WithCommand("true"), sandbox.WithPrepared(1))
	for name, call := range map[string]func() error{
		"Run":              func() error { _, err := s.Run(ctx); return err },
		"Start":            func() error { _, err := s.Start(ctx); return err },
		"Output":           func() error { _, err := s.Output(ctx); return err },
		"CombinedOutput":   func() error { _, err := s.CombinedOutput(ctx); return err },
		"Prepare":          func() error { return s.Prepare(ctx) },
		"Explain":          func() error { _, err := s.Explain(); return err },
		"WithFS":           func() error { _, err := s.With(sandbox.WithFS("/x", fstest.MapFS{})).Run(ctx); return err },
		"Check":            func() error { return sandbox.Check(ctx).Features[0].Err },
		"Shutdown":         func() error { return sandbox.Shutdown(ctx) },
		"DelegateSubgroup": func() error { return sandbox.DelegateSubgroup("x") },
		"NewCell":          func() error { _, err := sandbox.NewCell(); return err },
		"NewScratch":       func() error { _, err := sandbox.NewScratch(sandbox.MiB); return err },
		"NewDiskScratch":   func() error { _, err := sandbox.NewDiskScratch("/", sandbox.MiB); return err },
	} {
		if err := call(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if sandbox.Check(ctx).OK() {
		t.Error("Check says that runs are possible")
	}
}
