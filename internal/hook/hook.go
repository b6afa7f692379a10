// Package hook is what package sandbox lets only the other packages of this module do. Its variables are set by package sandbox, whose
// types they name only in comments, as package sandbox imports this one.
package hook

import "io"

var (
	// OwnProgram returns a sandbox.Option after which the root shows nothing but what this program needs to be executed in it.
	OwnProgram func() (option any)

	// Around returns a sandbox.Option that has start called in place of Start, with a sandbox that lacks this option. Start is a
	// func(context.Context, *sandbox.Sandbox) (*sandbox.Process, error).
	Around func(start any) (option any)

	// Outputs returns where a *sandbox.Sandbox writes its outputs, and whether both are one.
	Outputs func(s any) (stdout, stderr io.Writer, same bool)

	// ScratchPath is a path by which this process finds the files of a *sandbox.Scratch.
	ScratchPath func(scratch any) string

	// ImageOption returns a sandbox.Option for an image. Errors name the image where it is to
	// blame, not an option.
	ImageOption func(Image) (option any)

	// NoCommand returns a sandbox.Option after which a sandbox has no command: why that of the image
	// is none.
	NoCommand func(image string, why error) (option any)

	// ReadMerged returns at most limit bytes of a regular file, as one sees it in a run that has
	// the layers for its root, the lowest first.
	ReadMerged func(layers []string, name string, limit int64) ([]byte, error)
)

// Image is a root and what an image says of how to run a command in it.
type Image struct {
	Name     string   // for errors
	Layers   []string // directories, the lowest first
	User     string   // as the image has it
	UserErr  error    // why a run can't have it
	UID, GID int
	Groups   []int    // supplementary ones, where the run can have them
	Dir      string   // working directory
	Dirs     []string // made where the root lacks them, for the user
	Writable int64    // bytes for changes to the root, where the kernel can keep them
}
