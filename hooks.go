package sandbox

import (
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
		c := &s.(*Sandbox).is.Spec.Streams
		return c.Stdout, c.Stderr, c.Stdout != nil && stdio.SameWriter(c.Stdout, c.Stderr)
	}
}
