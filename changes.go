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

// ChangeKind is what was done to a file.
type ChangeKind int

const (
	// Added is a file that the root did not have.
	Added ChangeKind = iota
	// Changed is a file that the root had, and whose content, kind or metadata may differ now.
	// Of a directory the permissions differ, or all that was in it is gone.
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

// RootChanges returns what runs of this sandbox, and of others with the same root, have changed in
// the root, in the order of the paths. It reads the scratch of WithScratchRoot, and fails if that
// option is not set. What was in a removed directory is not listed, nor is what is in separate file
// systems, such as /tmp and the home directory. Of paths that are longer than one may be, the first
// on the way down is listed alone. Names are as runs made them, UTF-8 or not. It may be called
// while a run is at work, and then shows each file as it was at some moment. To read the files
// themselves, start a run of the sandbox. It also fails if the scratch is closed, if a directory of
// the root can't be opened, or if there are more names than one for each 4 KiB of the scratch, plus
// 256: on a disk, hard links and removed files take less. It needs what WithScratchRoot needs.
func (s *Sandbox) RootChanges() ([]Change, error) {
	if s.it().Spec.Root.Upper == nil {
		return nil, fault.Option("WithScratchRoot", "is missing: RootChanges tells what runs changed in its scratch")
	}
	changes, err := rootChanges(s.it())
	if err != nil {
		return nil, fmt.Errorf("sandbox: RootChanges: %w", err)
	}
	return changes, nil
}
