package sandbox

import (
	"context"
	"io"

	"github.com/cellkit/sandbox/internal/hook"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

func init() {
	hook.OwnProgram = func() any {
		return Option(func(c *spec.Spec) {
			c.Root.Rootfs = spec.Rootfs{Parts: spec.OwnProgram}
			c.Command.Env = append(c.Command.Env, loaderPath+"="+program.LibraryDir)
		})
	}
	hook.Outputs = func(s any) (stdout, stderr io.Writer, same bool) {
		c := &s.(*Sandbox).config.Streams
		return c.Stdout, c.Stderr, c.Stdout != nil && stdio.SameWriter(c.Stdout, c.Stderr)
	}
	hook.ScratchPath = func(scratch any) string { return scratch.(*Scratch).impl.path() }
}

// startAround is Start for who has asked to be called in its place.
func (s *Sandbox) startAround(ctx context.Context) (*Process, error) {
	start := s.config.Supervision.Start.(func(context.Context, *Sandbox) (*Process, error))
	return start(ctx, s.With(func(c *spec.Spec) { c.Supervision.Start = nil }))
}
