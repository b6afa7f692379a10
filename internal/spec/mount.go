package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
)

// Mount is one thing that an option puts into the root. Two are the same if they are equal.
type Mount struct {
	Dst    string
	Source Source
}

// Source is what is mounted: a Bind, Scratch, FS, Tmpfs or File.
type Source interface {
	// Option is the name of the option that mounts it.
	Option() string

	check(dst string) error
}

// Bind is a file or directory of the host.
type Bind struct {
	Path     string
	ReadOnly bool
}

// Scratch is the file system of a scratch.
type Scratch struct {
	From     any // a *scratch.Scratch, nil if NewScratch did not make it
	ReadOnly bool
}

// FS is files of an fs.FS, read-only.
type FS struct {
	From any // a *scratch.Files, the same for all sandboxes of one option, or nil
}

// Tmpfs is an empty file system in memory.
type Tmpfs struct{ Size int64 }

// DefaultTmpfs is the size of each writable file system that a run has without asking.
const DefaultTmpfs = 256 << 20

// File is a file with the content and permissions given.
type File struct {
	Data string
	Mode fs.FileMode
}

func (b Bind) Option() string {
	if b.ReadOnly {
		return "WithReadOnlyBind"
	}
	return "WithBind"
}

func (s Scratch) Option() string {
	if s.ReadOnly {
		return "WithReadOnlyScratch"
	}
	return "WithScratch"
}

func (FS) Option() string    { return "WithFS" }
func (Tmpfs) Option() string { return "WithTmpfs" }
func (File) Option() string  { return "WithFile" }

func (b Bind) String() string  { return "bind of " + b.Path }
func (Scratch) String() string { return "scratch" }
func (FS) String() string      { return "files of WithFS" }

// IsGiven reports whether what is mounted accompanies the run's program, as a descriptor.
func (m Mount) IsGiven() bool { return !m.IsTmpfs() && !m.IsFile() }

// IsTmpfs reports whether it is an empty file system in memory.
func (m Mount) IsTmpfs() bool { _, ok := m.Source.(Tmpfs); return ok }

// IsFile reports whether it is a file of the content given.
func (m Mount) IsFile() bool { _, ok := m.Source.(File); return ok }

// Check returns what is wrong with it by itself.
func (m Mount) Check() error {
	if err := CheckPath(m.Dst); err != nil {
		return err
	}
	dst := path.Clean(m.Dst)
	switch {
	case dst == "/":
		return errors.New("/: use WithRootfs")
	case IsIn(dst, "/proc"):
		return fmt.Errorf("%s: /proc is the run's own", dst)
	case IsIn(dst, "/dev") && !IsIn(dst, "/dev/shm"):
		return fmt.Errorf("%s: /dev is the run's own, but for /dev/shm", dst)
	}
	return m.Source.check(dst)
}

func (b Bind) check(string) error { return checkHostPath(b.Path) }

func (s Scratch) check(dst string) error {
	if s.From == nil {
		return fmt.Errorf("%s: the scratch was not made by NewScratch: look at the error of that", dst)
	}
	return nil
}

func (f FS) check(dst string) error {
	if f.From == nil {
		return fmt.Errorf("%s: no file system is given", dst)
	}
	return nil
}

func (t Tmpfs) check(dst string) error {
	if t.Size <= 0 {
		return fmt.Errorf("%s: %d is not a positive number of bytes", dst, t.Size)
	}
	return nil
}

func (f File) check(dst string) error {
	if f.Mode&^fs.ModePerm != 0 {
		return fmt.Errorf("%s: mode %v is more than permission bits", dst, f.Mode)
	}
	return nil
}

// AddFile adds a file in place of one that is there.
func (r *Root) AddFile(dst string, file File) {
	clean := path.Clean(dst)
	same := func(m Mount) bool { return m.IsFile() && path.Clean(m.Dst) == clean }
	if slices.ContainsFunc(r.Mounts, same) {
		r.Mounts = slices.DeleteFunc(slices.Clone(r.Mounts), same) // others have the old ones
	}
	r.Mounts = append(r.Mounts, Mount{dst, file})
}
