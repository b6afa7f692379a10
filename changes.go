package sandbox

import (
	"fmt"

	"github.com/cellkit/sandbox/internal/fault"
)

// Change is what runs did to a file of their root.
type Change struct {
	Path string // in the root
	Kind ChangeKind
}

// ChangeKind says what was done.
type ChangeKind int

const (
	// Added is a file that the root did not have.
	Added ChangeKind = iota
	// Changed is a file that the root had, and of which the content, the kind, or what else is
	// known of it may be another now. Of a directory it is the permissions, or all that was in
	// it is gone.
	Changed
	// Removed is a file that is gone.
	Removed
)

func (k ChangeKind) String() string {
	switch k {
	case Added:
		return "added"
	case Changed:
		return "changed"
	case Removed:
		return "removed"
	}
	return "unknown"
}

func (c Change) String() string { return fmt.Sprintf("%v %s", c.Kind, c.Path) }

// RootChanges lists, in the order of their paths, what runs of this sandbox, and of others with the
// same root, have changed in it: in the scratch of WithScratchRoot, without which it is an error.
// What a removed directory had in it is not listed, nor are file systems of their own, such as /tmp
// and the home directory. It may be called while a run is at work, and then tells of some moment of
// each file. What is in the files is to be read in a run of the sandbox. The error is that of a
// closed scratch, or of a directory of the root that can't be opened. It needs what WithScratchRoot
// does.
func (s *Sandbox) RootChanges() ([]Change, error) {
	if s.is.Spec.Root.Upper == nil {
		return nil, fault.Option("WithScratchRoot", "is missing: RootChanges tells what runs changed in its scratch")
	}
	changes, err := rootChanges(s.is)
	if err != nil {
		return nil, fmt.Errorf("sandbox: RootChanges: %w", err)
	}
	return changes, nil
}
