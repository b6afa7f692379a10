//go:build linux

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

// Tree is a directory of a View with all that is below it, as a file system for one walk. It
// follows no links, takes names that are not UTF-8, and opens nothing but regular files and
// directories. All fails from when a directory of a layer could not be opened: something would be
// missing.
type Tree struct {
	Way []Dir // the directories that lead to it, and it, from the top

	steps steps
	most  int64 // names that the walk may still list
}

var _ interface {
	fs.ReadDirFS
	fs.StatFS
	fs.ReadLinkFS
} = (*Tree)(nil)

// Tree returns the directory to which p leads, or nil if it leads to none. ReadDir fails when the
// directories that it has listed have more than that many names in all.
func (v *View) Tree(p string, most int64) *Tree {
	at, is := v.walk(p)
	if is != isDir {
		return nil
	}
	t := &Tree{steps: steps{v, at.walk[len(at.walk)-1:]}, most: most}
	for _, d := range at.walk[1:] {
		t.Way = append(t.Way, d.Dir)
	}
	return t
}

// find returns where a name is, in a directory or "" for the tree itself.
func (t *Tree) find(name string) (in *dir, base string, err error) {
	top := &t.steps.way[0]
	if name == "." {
		return top, "", nil
	}
	_, link, ok := t.steps.look(name)
	switch {
	case t.steps.v.err != nil:
		return nil, "", t.steps.v.err
	case !ok && link == "":
		return nil, "", fs.ErrNotExist
	}
	for i := range t.steps.way {
		if d := &t.steps.way[i]; d.path == path.Join(top.path, path.Dir(name)) {
			return d, path.Base(name), nil
		}
	}
	return nil, "", fs.ErrNotExist
}

var errNotEntered = errors.New("a layer's directory can't be entered")

// enter is View.enter of a directory that all its layers must have.
func (t *Tree) enter(d *dir) ([]int, error) {
	open := t.steps.v.enter(d)
	if slices.ContainsFunc(d.layers, func(layer int) bool { return open[layer] < 0 }) {
		return nil, cmp.Or(t.steps.v.err, errNotEntered)
	}
	return open, nil
}

// open opens a name in the highest layer that has it: the file that is seen there, or, if it is a
// directory, the one whose owner and mode are.
func (t *Tree) open(op, name string, flags int) (*os.File, error) {
	in, base, err := t.find(name)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if base == "" {
		base = "."
	}
	open, err := t.enter(in)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	for _, layer := range in.layers {
		fd, err := unix.Openat(open[layer], base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.ENOENT {
			return nil, &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// Open opens a regular file.
func (t *Tree) Open(name string) (fs.File, error) {
	info, err := t.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, err := t.open("open", name, unix.O_RDONLY)
	if err != nil {
		return nil, err // a nil *os.File would be a file
	}
	return f, nil
}

// Lstat returns what is at a name. Sys returns a *syscall.Stat_t.
func (t *Tree) Lstat(name string) (fs.FileInfo, error) {
	f, err := t.open("lstat", name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return namedInfo{info, path.Base(name)}, nil
}

// Stat is Lstat.
func (t *Tree) Stat(name string) (fs.FileInfo, error) { return t.Lstat(name) }

// ReadLink returns the target of a symbolic link.
func (t *Tree) ReadLink(name string) (string, error) {
	f, err := t.open("readlink", name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	target, err := readLinkAt(int(f.Fd()), "")
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// batch is how many names are read at once.
const batch = 1024

// ReadDir lists a directory, merged of those of its layers.
func (t *Tree) ReadDir(name string) (list []fs.DirEntry, err error) {
	fail := func(err error) ([]fs.DirEntry, error) {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	in, base, err := t.find(name)
	if err != nil {
		return fail(err)
	}
	if base != "" {
		if in = &t.steps.way[len(t.steps.way)-1]; in.path != path.Join(t.steps.way[0].path, name) {
			return fail(unix.ENOTDIR)
		}
	}
	open, err := t.enter(in)
	if err != nil {
		return fail(err)
	}
	seen := map[string]bool{}
	for _, layer := range in.layers {
		fd, err := unix.Openat(open[layer], ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(err)
		}
		names := os.NewFile(uintptr(fd), name)
		list, err = t.addNames(list, names, name, seen)
		names.Close()
		if err != nil {
			return fail(err)
		}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// addNames adds those that the directory has in one layer, and in none above, to a list. at is its
// own name.
func (t *Tree) addNames(list []fs.DirEntry, layer *os.File, at string, seen map[string]bool) ([]fs.DirEntry, error) {
	for {
		names, err := layer.Readdirnames(batch)
		for _, name := range names {
			if seen[name] {
				continue
			}
			seen[name] = true
			var st unix.Stat_t
			if err := unix.Fstatat(int(layer.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
				continue // a whiteout
			}
			if t.most--; t.most < 0 {
				return nil, fmt.Errorf("more names than there is room for: %w", unix.ENOSPC)
			}
			list = append(list, entry{name, kinds[st.Mode&unix.S_IFMT], path.Join(at, name), t})
		}
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// entry is a name in a Tree.
type entry struct {
	name string
	kind fs.FileMode
	path string
	in   *Tree
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.kind.IsDir() }
func (e entry) Type() fs.FileMode          { return e.kind }
func (e entry) Info() (fs.FileInfo, error) { return e.in.Lstat(e.path) }

var kinds = map[uint32]fs.FileMode{
	unix.S_IFREG: 0, unix.S_IFDIR: fs.ModeDir, unix.S_IFLNK: fs.ModeSymlink, unix.S_IFIFO: fs.ModeNamedPipe, unix.S_IFSOCK: fs.ModeSocket,
	unix.S_IFBLK: fs.ModeDevice, unix.S_IFCHR: fs.ModeDevice | fs.ModeCharDevice,
}

// namedInfo has the name that was asked for.
type namedInfo struct {
	fs.FileInfo
	name string
}

func (i namedInfo) Name() string { return i.name }
