package sandbox

import (
	"context"

	"github.com/cellkit/sandbox/internal/hook"
	"github.com/cellkit/sandbox/internal/spec"
)

func init() {
	hook.ScratchPath = func(scratch any) string { return scratch.(*Scratch).impl.path() }
}

// startAround is Start for who has asked to be called in its place.
func (s *Sandbox) startAround(ctx context.Context) (*Process, error) {
	start := s.config.Supervision.Start.(func(context.Context, *Sandbox) (*Process, error))
	return start(ctx, s.With(func(c *spec.Spec) { c.Supervision.Start = nil }))
}
