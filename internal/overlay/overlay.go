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
	layers []int // descriptors, the highest first
	root   dir

	// The directory that was entered last, and descriptors of it, by layer, -1 where it is
	// none. There are no others: how many a deep tree in many layers takes, its maker decides.
	at   string
	open []int

	steps steps // of Lstat
	err   error // see Err
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
	path   string // relative to the root, without symbolic links
	layers []int  // of those of the View that it is made of, the highest first
	Dir
}

// Open opens layers, the lowest first. The View must be closed.
func Open(layers []string) (*View, error) {
	v := &View{root: dir{path: "."}}
	for _, p := range slices.Backward(layers) {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			v.Close()
			return nil, &os.PathError{Op: "open", Path: p, Err: err}
		}
		v.root.layers = append(v.root.layers, len(v.layers))
		v.layers = append(v.layers, fd)
	}
	v.steps = steps{v, []dir{v.root}}
	return v, nil
}

// Close closes the layers.
func (v *View) Close() {
	closeFDs(v.layers)
	closeFDs(v.open)
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd) // it was for looking only
		}
	}
}

// Err returns why something could not be looked at, such as that this process has no descriptor
// left, or nil. What the View has said may be wrong then. What this process may not look at is not
// there for it.
func (v *View) Err() error { return v.err }

// note keeps an error for Err, unless a name can't lead anywhere, or something else is there than
// a moment ago: a link that is none any more is an EINVAL, a directory that was moved out of its
// layer an EXDEV, and what is moved just now an EAGAIN.
func (v *View) note(call, p string, err error) {
	switch err {
	case nil, unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES, unix.ENAMETOOLONG, unix.EXDEV, unix.EINVAL, unix.EAGAIN:
		return
	}
	if v.err == nil {
		v.err = &fs.PathError{Op: call, Path: p, Err: err}
	}
}

// enter opens a directory in the layers that it is made of, and returns descriptors of it by layer,
// -1 where it is none or gone again. They are open until another is entered.
func (v *View) enter(d *dir) []int {
	if v.open != nil && v.at == d.path {
		return v.open
	}
	open := slices.Repeat([]int{-1}, len(v.layers))
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fromParent := v.open != nil && v.at == path.Dir(d.path)
	for _, layer := range d.layers {
		from, name := v.layers[layer], d.path
		if fromParent {
			from, name = v.open[layer], path.Base(d.path)
		}
		if from < 0 {
			continue
		}
		fd, err := unix.Openat2(from, name, &how)
		v.note("openat2", d.path, err)
		open[layer] = fd // -1 if it failed
	}
	closeFDs(v.open)
	v.at, v.open = d.path, open
	return open
}

// maxLinks is how many symbolic links the kernel follows: path_resolution(7).
const maxLinks = 40

// maxNames is with how many names in them links are followed, of one path. The kernel has no such
// limit, but here each name takes a few calls for each layer, and 40 links can have 80,000.
const maxNames = unix.PathMax

// Missing returns how p can be made, if it does not exist. A symbolic link that leads nowhere is
// replaced. Of a directory that exists it returns where that is.
func (v *View) Missing(p string) (Point, bool) {
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
	at, is := v.walk(p)
	if v.err != nil {
		return nil, v.err
	}
	if is != isFile {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	in := &at.walk[len(at.walk)-1]
	open := v.enter(in)
	for _, layer := range in.layers {
		if open[layer] < 0 {
			continue
		}
		fd, err := unix.Openat(open[layer], at.rest[0], unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
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
	for links, names := 0, 0; len(at.rest) > 0; {
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
		case target != "" && links < maxLinks && names < maxNames:
			links, names = links+1, names+strings.Count(target, "/")+1
			if link == nil {
				link = &place{slices.Clone(at.walk), at.rest} // what at.walk has is written over
			}
			if path.IsAbs(target) {
				at.walk = at.walk[:1]
			}
			at.rest = slices.Concat(strings.Split(target, "/"), rest)
		case ok && len(found.layers) > 0 && len(found.path) < unix.PathMax:
			at = place{append(at.walk, found), rest}
		case ok && len(found.layers) == 0 && target == "" && len(rest) == 0:
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
		p.Path = d.path
		p.Have = append(p.Have, d.Dir)
	}
	p.Path = path.Join("/", p.Path, path.Join(rest...))
	return p
}

// Lstat looks for a name, relative to the root, without following links. It returns the mode of
// directories only. In a walk of a tree, each name takes one step from the one before.
func (v *View) Lstat(name string) (isDir bool, mode fs.FileMode, ok bool) {
	found, link, ok := v.steps.look(name)
	return len(found.layers) > 0, found.Mode, ok || link != ""
}

// steps looks for names below a directory, without following links. It goes from one name to the
// next.
type steps struct {
	v   *View
	way []dir // from the directory, as far as the last name leads through others
}

// look is View.look of a name relative to the directory.
func (s *steps) look(name string) (found dir, link string, ok bool) {
	in := len(s.way) - 1
	rest := path.Join(s.way[0].path, name)
	for in > 0 && !strings.HasPrefix(rest, s.way[in].path+"/") {
		in--
	}
	s.way = s.way[:in+1]
	if from := s.way[in].path; from != "." {
		rest = strings.TrimPrefix(rest, from+"/")
	}
	for {
		part, below, more := strings.Cut(rest, "/")
		found, link, ok := s.v.look(&s.way[len(s.way)-1], part)
		isDir := len(found.layers) > 0
		if isDir {
			s.way = append(s.way, found)
		}
		switch {
		case !more:
			return found, link, ok
		case !isDir:
			return dir{}, "", false
		}
		rest = below
	}
}

// look finds a name in a directory, the target if it is a symbolic link.
func (v *View) look(in *dir, name string) (found dir, link string, ok bool) {
	found.path = path.Join(in.path, name)
	open := v.enter(in)
	for _, layer := range in.layers {
		if open[layer] < 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(open[layer], name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			v.note("fstatat", found.path, err)
			continue
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if len(found.layers) > 0 && !isDir {
			break // hidden, and it hides what is below
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			link, err := readLinkAt(open[layer], name)
			v.note("readlinkat", found.path, err)
			return found, link, err == nil
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			return found, "", false // a whiteout
		case !isDir:
			return found, "", true
		}
		fd, err := unix.Openat(open[layer], name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			v.note("openat", found.path, err)
			continue // it is gone again
		}
		isOpaque := IsOpaque(fd)
		_ = unix.Close(fd)
		if len(found.layers) == 0 {
			found.Dir = Dir{fs.FileMode(st.Mode & 0o777), int(st.Uid), int(st.Gid)}
			if st.Mode&unix.S_ISVTX != 0 {
				found.Mode |= fs.ModeSticky
			}
		}
		found.layers = append(found.layers, layer)
		if isOpaque {
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
