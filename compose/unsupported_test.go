//go:build !linux

package compose

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte("services:\n  web: {image: ./x.tar}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Up(t.Context()).Ready(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
