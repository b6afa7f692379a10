//go:build !linux

package image_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cellkit/sandbox/image"
)

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	ctx, s := context.Background(), new(image.Store)
	for name, call := range map[string]func() error{
		"Open":          func() error { _, err := image.Open(ctx, "./x"); return err },
		"Open in store": func() error { _, err := image.Open(ctx, "x", image.WithStore(s)); return err },
		"DefaultStore":  func() error { _, err := image.DefaultStore(); return err },
		"OpenStore":     func() error { _, err := image.OpenStore("x"); return err },
		"Store.Layers":  func() error { _, err := s.Layers(); return err },
		"Store.Collect": func() error { _, err := s.Collect(0); return err },
		"Store.Verify":  func() error { return s.Verify(ctx) },
	} {
		if err := call(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
