package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// bundleFS shows the files of a bundle. Symbolic links are followed within it.
type bundleFS struct {
	ctx   context.Context
	q     *Queue
	nodes map[string]*node
}

// node is a file of a bundle, and its own fs.FileInfo.
type node struct {
	entry
	implied  bool     // a directory that the bundle's list does not have
	children []string // of a directory
}

var errLoop = errors.New("too many symbolic links")

// find finds a file, following the links on the way to it, and if last is set the one that it is.
func (f *bundleFS) find(op, name string, last bool) (*node, error) {
	fail := func(err error) (*node, error) { return nil, &fs.PathError{Op: op, Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	at, left, links := ".", strings.Split(name, "/"), 0
	for len(left) > 0 {
		next := path.Join(at, left[0])
		left = left[1:]
		n := f.nodes[next]
		if n == nil {
			return fail(fs.ErrNotExist)
		}
		if n.entry.Mode.Type() == fs.ModeSymlink && (last || len(left) > 0) {
			if links++; links > 40 {
				return fail(errLoop)
			}
			left = append(strings.Split(path.Join(at, n.Link), "/"), left...)
			at = "."
			continue
		}
		at = next
	}
	return f.nodes[at], nil
}

func (f *bundleFS) Open(name string) (fs.File, error) {
	n, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	o := &openFile{f: f, n: n}
	switch {
	case n.IsDir():
	case n.Sum != nil:
		o.r = f.q.openBlob(f.ctx, n.entry.Name, n.Sum, n.entry.Size)
	default:
		o.r = bytes.NewReader(n.Data)
	}
	return o, nil
}

func (f *bundleFS) Stat(name string) (fs.FileInfo, error) {
	n, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (f *bundleFS) Lstat(name string) (fs.FileInfo, error) {
	n, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (f *bundleFS) ReadLink(name string) (string, error) {
	n, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.entry.Mode.Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.Link, nil
}

func (f *bundleFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	return f.list(n), nil
}

func (f *bundleFS) list(n *node) []fs.DirEntry {
	names := slices.Sorted(slices.Values(n.children))
	all := make([]fs.DirEntry, len(names))
	for i, child := range names {
		all[i] = fs.FileInfoToDirEntry(f.nodes[path.Join(n.entry.Name, child)])
	}
	return all
}

// openFile is an open file of a bundle.
type openFile struct {
	f    *bundleFS
	n    *node
	r    io.Reader // nil for a directory
	read int       // entries of a directory
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.n, nil }
func (o *openFile) Close() error               { return nil }

func (o *openFile) Read(p []byte) (int, error) {
	if o.r == nil {
		return 0, &fs.PathError{Op: "read", Path: o.n.entry.Name, Err: fs.ErrInvalid}
	}
	return o.r.Read(p)
}

func (o *openFile) ReadDir(count int) ([]fs.DirEntry, error) {
	if o.r != nil {
		return nil, &fs.PathError{Op: "readdir", Path: o.n.entry.Name, Err: fs.ErrInvalid}
	}
	left := o.f.list(o.n)[o.read:]
	if count > 0 {
		if len(left) == 0 {
			return nil, io.EOF
		}
		left = left[:min(count, len(left))]
	}
	o.read += len(left)
	return left, nil
}
