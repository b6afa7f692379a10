//go:build !linux

package service_test

import (
	"errors"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/service"
)

// TestUnsupported makes each call that does something.
func TestUnsupported(t *testing.T) {
	s := sandbox.New(sandbox.WithCommand("true"))
	for name, described := range map[string]*service.Service{
		"Start": service.New("x", s),
		"Port":  service.New("x", s, service.Port(1)),
		"From":  service.New("x", s, service.From(service.NewSnapshot("/x", sandbox.MiB, s))),
	} {
		if _, err := described.Start(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := service.StartAll(t.Context(), described); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("StartAll, %s: %v", name, err)
		}
	}
}
