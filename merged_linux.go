package sandbox

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

// merged is directories of the host seen as overlayfs shows them, without a mount. Nothing but directories is opened, and no
// symbolic link leads out of it.
type merged struct {
	root   mergedDir
	opened []int // by a walk
}

// mergedDir is a directory of it.
type mergedDir struct {
	name   string
	layers []int // descriptors of the directories that it is made of, the highest first
	parent
}

// openMerged opens layers, the lowest first.
func openMerged(paths []string) (*merged, error) {
	m := &merged{}
	for _, p := range slices.Backward(paths) {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			m.close()
			return nil, &os.PathError{Op: "open", Path: p, Err: err}
		}
		m.root.layers = append(m.root.layers, fd)
	}
	return m, nil
}

func (m *merged) close() { closeFDs(m.root.layers) }

// endWalk closes what a walk has opened.
func (m *merged) endWalk() {
	closeFDs(m.opened)
	m.opened = nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // it was for looking only
	}
}

// maxLinks is how many symbolic links the kernel follows: path_resolution(7).
const maxLinks = 40

// missing returns how p can be made, if it does not exist. A symbolic link that leads nowhere is
// replaced. Of a directory that exists it returns where that is.
func (m *merged) missing(p string) (point, bool) {
	defer m.endWalk()
	at, is := m.walk(p)
	switch {
	case is == isFile:
		return point{}, false
	case is == isDir:
		return missingBelow(at.walk[1:], nil), false
	}
	return missingBelow(at.walk[1:], at.rest), true
}

// fileAt returns how a file at p can be made, in place of what there is, whether there is a regular
// file, and false if it can't.
func (m *merged) fileAt(p string) (at point, exists, ok bool) {
	defer m.endWalk()
	dir, is := m.walk(path.Dir(p))
	if is == isFile {
		return point{}, false, false
	}
	at = missingBelow(dir.walk[1:], append(slices.Clip(dir.rest), path.Base(p)))
	at.file = true
	if is == isDir {
		found, link, ok := m.look(&dir.walk[len(dir.walk)-1], path.Base(p))
		exists = ok && link == "" && len(found.layers) == 0
	}
	return at, exists, true
}

// read returns the first bytes of a regular file, up to limit.
func (m *merged) read(p string, limit int64) ([]byte, error) {
	defer m.endWalk()
	at, is := m.walk(p)
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
	walk []mergedDir
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
func (m *merged) walk(p string) (place, kind) {
	at := place{[]mergedDir{m.root}, strings.Split(p, "/")}
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
		found, target, ok := m.look(&at.walk[len(at.walk)-1], name)
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
func missingBelow(walk []mergedDir, rest []string) point {
	var p point
	for _, dir := range walk {
		p.path = path.Join(p.path, dir.name)
		p.have = append(p.have, dir.parent)
	}
	p.path = path.Join("/", p.path, path.Join(rest...))
	return p
}

// lstat looks for a name without following links.
func (m *merged) lstat(name string) (isDir bool, mode fs.FileMode, ok bool) {
	defer m.endWalk()
	at := m.root
	for _, part := range strings.Split(name, "/") {
		found, target, ok := m.look(&at, part)
		if !ok && target == "" {
			return false, 0, false
		}
		if len(found.layers) == 0 {
			isDir, at = false, mergedDir{}
			continue
		}
		isDir, at = true, found
	}
	return isDir, at.mode, true
}

// look finds a name in a directory, the target if it is a symbolic link.
func (m *merged) look(dir *mergedDir, name string) (found mergedDir, link string, ok bool) {
	found.name = name
	for _, layer := range dir.layers {
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
		m.opened = append(m.opened, fd)
		if len(found.layers) == 0 {
			found.parent = parent{fs.FileMode(st.Mode & 0o777), int(st.Uid), int(st.Gid)}
			if st.Mode&unix.S_ISVTX != 0 {
				found.mode |= fs.ModeSticky
			}
		}
		found.layers = append(found.layers, fd)
		if isOpaque(fd) {
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

// isOpaque tells whether a directory hides those below it: Documentation/filesystems/overlayfs.rst, "userxattr".
func isOpaque(dir int) bool {
	var value [4]byte
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", dir), "user.overlay.opaque", value[:])
	return err == nil && string(value[:n]) == "y"
}
