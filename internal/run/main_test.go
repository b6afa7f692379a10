//go:build linux

package run_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
)

// engine is that of the tests that look into runs, beside that of package sandbox.
var engine = run.NewEngine()

func TestMain(m *testing.M) {
	testkit.Main(m, func(ctx context.Context) error { return errors.Join(engine.Shutdown(ctx), sandbox.Shutdown(ctx)) })
}

// describe returns the description that the options make.
func describe(opts ...sandbox.Option) (c spec.Spec) {
	sandbox.New(opts...).With(func(got *spec.Spec) { c = *got })
	return c
}

func made(opts ...sandbox.Option) *run.Sandbox { return engine.New(describe(opts...)) }

func derive(s *run.Sandbox, opts ...sandbox.Option) *run.Sandbox {
	c := s.Spec.Clone()
	for _, opt := range opts {
		opt(&c)
	}
	return s.With(c)
}
