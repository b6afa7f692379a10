// Package hook is what package sandbox lets only the other packages of this module do. Its variables are set by package sandbox, whose
// types they name only in comments, as package sandbox imports this one.
package hook

var (
	// ScratchPath is a path by which this process finds the files of a *sandbox.Scratch.
	ScratchPath func(scratch any) string

	// ReadMerged returns at most limit bytes of a regular file, as one sees it in a run that has
	// the layers for its root, the lowest first.
	ReadMerged func(layers []string, name string, limit int64) ([]byte, error)
)
