//go:build !linux

package function_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cellkit/sandbox/function"
)

var unsupported = function.New("unsupported", func(context.Context, int) (int, error) { return 0, nil })

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	workers := unsupported.Workers(1)
	defer workers.Close()
	for name, call := range map[string]func() error{
		"Func.Call":    func() error { _, err := unsupported.Call(context.Background(), 1); return err },
		"Workers.Call": func() error { _, err := workers.Call(context.Background(), 1); return err },
	} {
		if err := call(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
