//go:build linux

// Package scratch implements sandbox.Scratch: a file system of its own that runs share, how this
// process finds, copies and reads its files, and what it may be used for.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sync"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Scratch is the substance of a sandbox.Scratch, which has its documentation. One that is garbage
// collected is closed.
type Scratch struct {
	size    int64
	files   int64
	mount   *cell.Scratch
	root    *os.Root
	purpose purpose
	filling sync.Mutex
}

// page is the least memory that a file takes.
const page = 4 << 10

// New makes a scratch in memory that is empty and has room for the given number of bytes, which
// must be positive.
func New(bytes int64) (*Scratch, error) {
	s := &Scratch{size: bytes, files: bytes/page + 256}
	mount, err := cell.NewScratch(s.size, s.files)
	if err == nil {
		err = s.open(mount)
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox: NewScratch: %w", err)
	}
	return s, nil
}

// NewOnDisk makes a scratch in a file of the directory.
func NewOnDisk(dir string, bytes int64) (*Scratch, error) {
	s := &Scratch{size: bytes, files: bytes/page + 256}
	mount, err := cell.NewDiskScratch(dir, bytes)
	if err == nil {
		err = s.open(mount)
	}
	if err == nil {
		if err = s.root.Remove("lost+found"); err != nil { // mkfs.ext4 makes it
			err = errors.Join(err, s.Close())
		}
	}
	if err != nil {
		setup, ok := errors.AsType[*fault.SetupError](err)
		if !ok {
			setup = &fault.SetupError{Err: err}
		}
		setup.Stage = "NewDiskScratch " + dir
		return nil, setup
	}
	return s, nil
}

func (s *Scratch) open(mount *cell.Scratch) (err error) {
	s.mount = mount
	if s.root, err = os.OpenRoot(s.Path()); err != nil {
		return errors.Join(err, s.mount.Close())
	}
	runtime.AddCleanup(s, func(mount *cell.Scratch) { _ = mount.Close() }, mount)
	return nil
}

// Close gives up the scratch. Runs that have it keep it; no other run can be given it.
func (s *Scratch) Close() error { return errors.Join(s.root.Close(), s.mount.Close()) }

// Size returns the number of bytes that the scratch has room for.
func (s *Scratch) Size() int64 { return s.size }

// Path returns a path by which this process finds the files, as long as the scratch is open.
func (s *Scratch) Path() string { return fmt.Sprintf("/proc/self/fd/%d", s.mount.Dir.Fd()) }

// Root returns the directory that has the files. It is closed with the scratch.
func (s *Scratch) Root() *os.Root { return s.root }

// Mount returns what package cell mounts in runs.
func (s *Scratch) Mount() *cell.Scratch { return s.mount }

// FS returns the files as sandbox.Scratch's FS does. It keeps the scratch from being collected.
func (s *Scratch) FS() fs.FS { return liveFS{s: s} }

// Tree is FS for one walk: with names that are not UTF-8, no more in all than the scratch has room
// for files, and without following links, which a run may have put in place of what was listed.
func (s *Scratch) Tree() fs.FS { return s.tree() }

func (s *Scratch) tree() liveFS { return liveFS{s: s, noLinks: true}.walked() }

// CopyIn copies all of fsys into the directory dir of the scratch.
func (s *Scratch) CopyIn(fsys fs.FS, dir string) error {
	if !fs.ValidPath(dir) {
		return fmt.Errorf("sandbox: CopyIn: %q is no name in the scratch: use %q", dir, path.Join(".", path.Clean("/" + dir)[1:]))
	}
	if err := s.Use(false); err != nil {
		return fmt.Errorf("sandbox: CopyIn: %w", err)
	}
	c := copier{from: fsys, to: s.root, dir: dir, exact: true, bytes: s.size, files: s.files}
	if err := c.copy(); err != nil {
		return fmt.Errorf("sandbox: CopyIn: %w", err)
	}
	return nil
}

// CopyOut copies all that is in the scratch into a directory of the host.
func (s *Scratch) CopyOut(dir string) error {
	err := os.MkdirAll(dir, 0o777)
	var to *os.Root
	if err == nil {
		to, err = os.OpenRoot(dir)
	}
	if err == nil {
		defer to.Close()
		c := copier{from: s.FS(), to: to, dir: ".", distrust: true, bytes: s.size, files: s.files}
		err = c.copy()
	}
	if err != nil {
		return fmt.Errorf("sandbox: CopyOut: %w", err)
	}
	return nil
}

// Source is where a mount gets its scratch from.
type Source interface {
	// Get returns the scratch, which it may have to make. It fails if the scratch is closed.
	Get() (*Scratch, error)
}

// SourceOf returns where a mount gets its scratch from, or nil for a bind.
func SourceOf(m spec.Source) Source {
	switch m := m.(type) {
	case spec.Scratch:
		return m.From.(Source)
	case spec.FS:
		return m.From.(Source)
	}
	return nil
}

// UpperOf returns the scratch that takes the changes of a root, or nil if there is none.
func UpperOf(r *spec.Root) *Scratch {
	s, _ := r.Upper.(*Scratch)
	return s
}

// Get returns the scratch itself, unless it is closed, or was never made: programs can be compiled
// for a zero Scratch, but not run.
func (s *Scratch) Get() (*Scratch, error) {
	if s.root != nil {
		if _, err := s.root.Lstat("."); err == nil {
			return s, nil
		}
	}
	return nil, errors.New("the scratch is closed")
}

// Usable returns s, or nil if it is nil or the process that has it was killed. A scratch that was
// made of other files is then made once more.
func Usable(s *Scratch) *Scratch {
	if s == nil || !s.mount.Gone() {
		return s
	}
	_ = s.Close() // it can't be given to a run any more
	return nil
}
