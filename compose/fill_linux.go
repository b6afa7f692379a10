package compose

import (
	"context"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// fillDir copies what the root of the sandbox has at a place into a directory that is bound there,
// unless the directory has files.
func fillDir(ctx context.Context, box *sandbox.Sandbox, dst, dir string) (err error) {
	box.With(func(c *spec.Spec) { err = scratch.FillDir(ctx, c, dst, dir) })
	return err
}
