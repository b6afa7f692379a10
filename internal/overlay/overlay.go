//go:build linux

// Package overlay looks paths up in layers of directories as overlayfs would show them, without a
// mount.
package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// View is directories as overlayfs shows them together. No symbolic link leads out of it, and
// nothing but directories, and the files of Read, is opened. It is not safe for concurrent use.
type View struct {
	root   dir
	opened []int // by a walk
}

// Dir is what a directory looks like, of several that are merged the highest.
type Dir struct {
	Mode     fs.FileMode // permissions and the sticky bit
	UID, GID int
}

// Point is a place in a View where something can be made.
type Point struct {
	Path string // without symbolic links, as far as it exists
	Have []Dir  // the directories on the way that exist, from the top
}

// dir is a directory of a View.
type dir struct {
	name   string
	layers []int // descriptors of the directories that it is made of, the highest first
	Dir
}

// Open opens layers, the lowest first. The View must be closed.
func Open(layers []string) (*View, error) {
	v := &View{}
	for _, p := range slices.Backward(layers) {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			v.Close()
			return nil, &os.PathError{Op: "open", Path: p, Err: err}
		}
		v.root.layers = append(v.root.layers, fd)
	}
	return v, nil
}

// Close closes the layers.
func (v *View) Close() { closeFDs(v.root.layers) }

// endWalk closes what a walk has opened.
func (v *View) endWalk() {
	closeFDs(v.opened)
	v.opened = nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // it was for looking only
	}
}

// maxLinks is how many symbolic links the kernel follows: path_resolution(7).
const maxLinks = 40

// Missing returns how p can be made, if it does not exist. A symbolic link that leads nowhere is
// replaced. Of a directory that exists it returns where that is.
func (v *View) Missing(p string) (Point, bool) {
	defer v.endWalk()
	at, is := v.walk(p)
	switch {
	case is == isFile:
		return Point{}, false
	case is == isDir:
		return missingBelow(at.walk[1:], nil), false
	}
	return missingBelow(at.walk[1:], at.rest), true
}

// FileAt returns how a file at p can be made, in place of what there is, whether there is a file
// that is neither a directory nor a link, and false if it can't.
func (v *View) FileAt(p string) (at Point, exists, ok bool) {
	defer v.endWalk()
	in, is := v.walk(path.Dir(p))
	if is == isFile {
		return Point{}, false, false
	}
	at = missingBelow(in.walk[1:], append(slices.Clip(in.rest), path.Base(p)))
	if is == isDir {
		found, link, ok := v.look(&in.walk[len(in.walk)-1], path.Base(p))
		exists = ok && link == "" && len(found.layers) == 0
	}
	return at, exists, true
}

// Read returns the first bytes of a regular file, up to limit.
func (v *View) Read(p string, limit int64) ([]byte, error) {
	defer v.endWalk()
	at, is := v.walk(p)
	if is != isFile {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	for _, layer := range at.walk[len(at.walk)-1].layers {
		fd, err := unix.Openat(layer, at.rest[0], unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: p, Err: err}
		}
		f := os.NewFile(uintptr(fd), p)
		defer f.Close()
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return nil, cmp.Or(err, error(&fs.PathError{Op: "open", Path: p, Err: errors.New("not a regular file")}))
		}
		return io.ReadAll(io.LimitReader(f, limit))
	}
	return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
}

// place is a directory, below others, and what of a path was not looked for yet.
type place struct {
	walk []dir
	rest []string
}

// kind is what a path leads to.
type kind int

const (
	isMissing kind = iota // from the place where it can be made
	isDir
	isFile // the first of the rest
)

// walk follows a path as far as it leads.
func (v *View) walk(p string) (place, kind) {
	at := place{[]dir{v.root}, strings.Split(p, "/")}
	var link *place // the one that is being followed
	for links := 0; len(at.rest) > 0; {
		if link != nil && len(at.rest) < len(link.rest) {
			link = nil
		}
		name, rest := at.rest[0], at.rest[1:]
		if name == "" || name == "." {
			at.rest = rest
			continue
		}
		if name == ".." {
			at = place{at.walk[:max(1, len(at.walk)-1)], rest}
			continue
		}
		found, target, ok := v.look(&at.walk[len(at.walk)-1], name)
		switch {
		case target != "" && links < maxLinks:
			links++
			if link == nil {
				link = &place{at.walk, at.rest}
			}
			if path.IsAbs(target) {
				at.walk = at.walk[:1]
			}
			at.rest = slices.Concat(strings.Split(target, "/"), rest)
		case ok && len(found.layers) > 0:
			at = place{append(slices.Clip(at.walk), found), rest}
		case ok && target == "" && len(rest) == 0:
			return at, isFile
		default:
			if link != nil {
				at = *link
			}
			return at, isMissing
		}
	}
	return at, isDir
}

// missingBelow is the point that is missing below directories that are in the root.
func missingBelow(walk []dir, rest []string) Point {
	var p Point
	for _, d := range walk {
		p.Path = path.Join(p.Path, d.name)
		p.Have = append(p.Have, d.Dir)
	}
	p.Path = path.Join("/", p.Path, path.Join(rest...))
	return p
}

// Lstat looks for a name, relative to the root, without following links. It returns the mode of
// directories only.
func (v *View) Lstat(name string) (isDir bool, mode fs.FileMode, ok bool) {
	defer v.endWalk()
	at := v.root
	for _, part := range strings.Split(name, "/") {
		found, target, ok := v.look(&at, part)
		if !ok && target == "" {
			return false, 0, false
		}
		if len(found.layers) == 0 {
			isDir, at = false, dir{}
			continue
		}
		isDir, at = true, found
	}
	return isDir, at.Mode, true
}

// look finds a name in a directory, the target if it is a symbolic link.
func (v *View) look(in *dir, name string) (found dir, link string, ok bool) {
	found.name = name
	for _, layer := range in.layers {
		var st unix.Stat_t
		if unix.Fstatat(layer, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if len(found.layers) > 0 && !isDir {
			break // hidden, and it hides what is below
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			link, err := readLinkAt(layer, name)
			return found, link, err == nil
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			return found, "", false // a whiteout
		case !isDir:
			return found, "", true
		}
		fd, err := unix.Openat(layer, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it is gone again
		}
		v.opened = append(v.opened, fd)
		if len(found.layers) == 0 {
			found.Dir = Dir{fs.FileMode(st.Mode & 0o777), int(st.Uid), int(st.Gid)}
			if st.Mode&unix.S_ISVTX != 0 {
				found.Mode |= fs.ModeSticky
			}
		}
		found.layers = append(found.layers, fd)
		if IsOpaque(fd) {
			break
		}
	}
	return found, "", len(found.layers) > 0
}

func readLinkAt(dir int, name string) (string, error) {
	var target [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, target[:])
	return string(target[:max(n, 0)]), err
}

// IsOpaque reports whether a directory, a descriptor of which is dir, hides those below it:
// Documentation/filesystems/overlayfs.rst, "userxattr".
func IsOpaque(dir int) bool {
	var value [4]byte
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", dir), "user.overlay.opaque", value[:])
	return err == nil && string(value[:n]) == "y"
}
