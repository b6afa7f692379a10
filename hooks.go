package sandbox

import (
	"context"
	"io"

	"github.com/cellkit/sandbox/internal/hook"
	"github.com/cellkit/sandbox/internal/stdio"
)

func init() {
	hook.OwnProgram = func() any {
		return Option(func(c *config) {
			c.root.rootfs = Rootfs{parts: ownProgram}
			c.env = append(c.env, loaderPath+"="+libraryDir)
		})
	}
	hook.Around = func(start any) any {
		around := start.(func(context.Context, *Sandbox) (*Process, error))
		return Option(func(c *config) { c.around = around })
	}
	hook.Outputs = func(s any) (stdout, stderr io.Writer, same bool) {
		c := &s.(*Sandbox).config
		return c.stdout, c.stderr, c.stdout != nil && stdio.SameWriter(c.stdout, c.stderr)
	}
	hook.ScratchPath = func(scratch any) string { return scratch.(*Scratch).impl.path() }
}

// startAround is Start for who has asked to be called in its place.
func (s *Sandbox) startAround(ctx context.Context) (*Process, error) {
	return s.config.around(ctx, s.With(func(c *config) { c.around = nil }))
}
