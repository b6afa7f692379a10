//go:build linux

// Package changes lists what runs have changed in a root: it compares what overlayfs left in the
// scratch that takes the changes with the layers below.
package changes

import (
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/scratch"
)

// Change is sandbox.Change, and Kind its kind.
type Change struct {
	Path string
	Kind Kind
}

type Kind int

const (
	Added Kind = iota
	Changed
	Removed
)

// List returns the changes that the scratch has of the parts of a root, in the order of their
// paths.
func List(parts []compile.Part, in *scratch.Scratch) (list []Change, err error) {
	tree := in.Tree()
	for _, p := range parts {
		changes, err := listPart(&p, in, tree)
		if err != nil {
			return nil, err
		}
		list = append(list, changes...)
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

func listPart(p *compile.Part, in *scratch.Scratch, tree fs.FS) ([]Change, error) {
	if p.Layers == nil {
		return changesOf(p, skeletonFiles(p.Made), in, tree)
	}
	layers, err := overlay.Open(p.Layers)
	if err != nil {
		return nil, err
	}
	defer layers.Close()
	list, err := changesOf(p, layers, in, tree)
	return list, cmp.Or(err, layers.Err())
}

// lowerFiles is what a part of a root has without its changes.
type lowerFiles interface {
	// Lstat takes a name relative to the part.
	Lstat(name string) (isDir bool, mode fs.FileMode, ok bool)
}

// skeletonFiles has the names of what HostRootfs makes up, and whether each is a directory.
type skeletonFiles map[string]bool

func (s skeletonFiles) Lstat(name string) (isDir bool, mode fs.FileMode, ok bool) {
	is, ok := s["/"+name]
	return is, 0o755, ok
}

// isGone reports whether something has been removed meanwhile, or the directory that it was in, or
// something else is at the place of either.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, fs.ErrInvalid)
}

// changesOf returns the changes that overlayfs left for the part:
// Documentation/filesystems/overlayfs.rst.
func changesOf(p *compile.Part, below lowerFiles, in *scratch.Scratch, tree fs.FS) (list []Change, err error) {
	top := p.Top()
	err = fs.WalkDir(tree, top, func(name string, d fs.DirEntry, err error) error {
		if isGone(err) { // or no run has made it yet
			return nil
		}
		if err != nil || name == top {
			return err
		}
		rel := strings.TrimPrefix(name, top+"/")
		add := func(k Kind) { list = append(list, Change{path.Join(p.At, rel), k}) }
		info, err := d.Info()
		if isGone(err) {
			return nil
		}
		tooLong := errors.Is(err, syscall.ENAMETOOLONG)
		if err != nil && !tooLong {
			return err
		}
		kind := d.Type()
		if !tooLong { // for any call
			kind = info.Mode().Type()
		}
		wasDir, mode, was := below.Lstat(rel)
		switch {
		case kind&fs.ModeCharDevice != 0: // a run can make no other device
			if was {
				add(Removed)
			}
		case !was:
			add(Added)
		case tooLong || !kind.IsDir() || !wasDir:
			add(Changed)
		case info.Mode().Perm() != mode.Perm() || in.IsOpaque(name):
			add(Changed)
		}
		if tooLong && kind.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	return list, err
}
