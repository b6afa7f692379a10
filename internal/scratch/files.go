//go:build linux

package scratch

import (
	"errors"
	"io/fs"
	"sync"
)

// Files has the files of a WithFS: a Source that copies them when they are first needed.
type Files struct {
	fsys fs.FS

	mu   sync.Mutex
	made *Scratch
}

// NewFiles returns the files of fsys, which must not be nil.
func NewFiles(fsys fs.FS) *Files { return &Files{fsys: fsys} }

// Get returns a scratch with the files. It copies them if that has not been done.
func (f *Files) Get() (*Scratch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made = Usable(f.made); f.made != nil {
		return f.made, nil
	}
	bytes, files, err := measure(anyName(f.fsys))
	if err != nil {
		return nil, err
	}
	s, err := New(max(bytes, files*page))
	if err != nil {
		return nil, err
	}
	c := copier{from: f.fsys, to: s.root, dir: ".", exact: true, forAll: true, bytes: s.size, files: s.files}
	if from, ok := f.fsys.(liveFS); ok { // in which a run may have left holes
		c.bytes = min(c.bytes, from.s.size)
	}
	if err := c.copy(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	f.made = s
	return s, nil
}

// measure returns how much room a tree takes, in whole pages, at least one.
func measure(fsys fs.FS) (bytes, files int64, err error) {
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if d != nil && !canName(fsys, name) {
			return nil // copy reports the error
		}
		if err != nil {
			return err
		}
		files++
		bytes += page // for a link, or a small file
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			bytes += (info.Size() + page - 1) / page * page
		}
		return nil
	})
	return bytes, files, err
}
