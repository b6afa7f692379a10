package sandbox

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// changedPart is a part of the root that has changes of its own.
type changedPart struct {
	at    string // in the root
	dir   string // in the scratch
	below lowerFiles
}

// lowerFiles is what a part has without its changes.
type lowerFiles interface {
	// Lstat takes a name relative to the part.
	Lstat(name string) (isDir bool, mode fs.FileMode, ok bool)
}

// rootChanges compares the highest layer of the root with those below it.
func (s *Sandbox) rootChanges() (list []Change, err error) {
	parts, done, err := s.changedParts()
	if err != nil {
		return nil, err
	}
	defer done()
	for _, p := range parts {
		changes, err := p.changes(scratchFS{s: upperOf(&s.config.Root)})
		if err != nil {
			return nil, err
		}
		list = append(list, changes...)
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

func (s *Sandbox) changedParts() (parts []changedPart, done func(), err error) {
	c := &s.config
	var opened []*overlay.View
	done = func() {
		for _, m := range opened {
			m.Close()
		}
	}
	add := func(at, dir string, layers []string) error {
		m, err := overlay.Open(layers)
		if err == nil {
			opened = append(opened, m)
			parts = append(parts, changedPart{at, dir, m})
		}
		return err
	}
	if layers := c.Root.Rootfs.Layers; layers != nil {
		if err := add("/", rootDir, layers); err != nil {
			return nil, nil, err
		}
		return parts, done, nil
	}
	k := &compiler{c: c, m: thisMachine().now(c).with(c.Root.Rootfs.Parts), layout: c.Root.Layout(spec.Found{Files: sourceFiles(&c.Root)})}
	made := k.addHostSkeleton(program.NewBuilder(), program.Use(0), "", true)
	if k.filesLayer() {
		for _, e := range k.m.files.Entries {
			if _, ok := made[e.Path]; !ok {
				made[e.Path] = e.Mode.IsDir()
			}
		}
	}
	parts = append(parts, changedPart{"/", rootDir, skeletonFiles(made)})
	for i, p := range k.rootTrees() {
		if !slices.Contains(k.m.RootDirs, p) {
			continue
		}
		if err := add(p, strconv.Itoa(i), []string{p}); err != nil {
			done()
			return nil, nil, err
		}
	}
	return parts, done, nil
}

// skeletonFiles is the names of what HostRootfs makes up.
type skeletonFiles map[string]bool

func (s skeletonFiles) Lstat(name string) (isDir bool, mode fs.FileMode, ok bool) {
	is, ok := s["/"+name]
	return is, 0o755, ok
}

// changes reads what overlayfs left for the part: Documentation/filesystems/overlayfs.rst.
func (p *changedPart) changes(scratch scratchFS) (list []Change, err error) {
	top := p.dir + "/top"
	err = fs.WalkDir(scratch, top, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no run has got so far, or it is gone meanwhile
		}
		if err != nil || name == top {
			return err
		}
		rel := strings.TrimPrefix(name, top+"/")
		add := func(k ChangeKind) { list = append(list, Change{path.Join(p.at, rel), k}) }
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		wasDir, mode, was := p.below.Lstat(rel)
		switch {
		case info.Mode()&fs.ModeCharDevice != 0: // a run can make no other device
			if was {
				add(Removed)
			}
		case !was:
			add(Added)
		case !info.IsDir() || !wasDir:
			add(Changed)
		case info.Mode().Perm() != mode.Perm() || scratch.isOpaque(name):
			add(Changed)
		}
		return nil
	})
	return list, err
}

// isOpaque reports whether all that a directory has is in the scratch.
func (f scratchFS) isOpaque(name string) bool {
	file, _, err := f.find("open", name, unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer file.Close()
	return overlay.IsOpaque(int(file.Fd()))
}
