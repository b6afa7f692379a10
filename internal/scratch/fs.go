//go:build linux

package scratch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/overlay"
)

// liveFS reads a scratch in which a run may be at work: os.Root follows links safely, but opens
// whatever it finds, and opening a named pipe waits for its other end.
type liveFS struct {
	s       *Scratch
	noLinks bool // are followed
	dir     string
	// left is how many names a walk may still list, also such that are not UTF-8. If it is nil,
	// there is no walk, and each directory may have as many names as there can be files.
	left *int64
}

var _ interface {
	fs.ReadDirFS
	fs.StatFS
	fs.ReadLinkFS
	fs.SubFS // so that the scratch is still known
} = liveFS{}

// walked returns f for one walk of it, which takes all names, but no more of them than there can be
// files: it keeps those of each directory on the way.
func (f liveFS) walked() liveFS {
	left := f.s.files
	f.left = &left
	return f
}

func (f liveFS) Sub(dir string) (fs.FS, error) {
	if !fs.ValidPath(dir) {
		return nil, &fs.PathError{Op: "sub", Path: dir, Err: fs.ErrInvalid}
	}
	f.dir = path.Join(f.dir, dir)
	return f, nil
}

func (f liveFS) Open(name string) (fs.File, error) {
	file, err := f.open("open", name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		return &liveDir{file, name, f}, nil
	case info.Size() > f.s.size:
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%d bytes, which are more than the scratch has room for: the file has holes", info.Size())}
	default:
		return &liveFile{io.NewSectionReader(file, 0, info.Size()), file, namedInfo{info, path.Base(name)}}, nil
	}
	return nil, errors.Join(err, file.Close())
}

// open opens regular files and directories, without touching anything else: openat2(2),
// RESOLVE_IN_ROOT.
func (f liveFS) open(op, name string) (*os.File, error) {
	file, info, err := f.find(op, name, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	// O_NONBLOCK makes this fail with EWOULDBLOCK instead of waiting for the end of a lease,
	// which a run can have if its filter is not the default one.
	opened, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, renamed(err, name)
	}
	return opened, nil
}

// renamed returns err with the name that the caller knows.
func renamed(err error, name string) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: e.Op, Path: name, Err: e.Err}
	}
	return err
}

// find opens what is at name with O_PATH, following links within the scratch; flags may be
// O_NOFOLLOW. It makes one call however long the name is, unlike os.Root.
func (f liveFS) find(op, name string, flags uint64) (*os.File, fs.FileInfo, error) {
	defer runtime.KeepAlive(f.s) // a scratch that is garbage collected is closed
	fail := func(err error) (*os.File, fs.FileInfo, error) {
		return nil, nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if f.left == nil && !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if f.noLinks {
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	fd, err := openat2(f.s.mount.Dir, path.Join(f.dir, name), &how)
	if err != nil {
		return fail(err)
	}
	file := os.NewFile(uintptr(fd), name)
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fail(err)
	}
	return file, namedInfo{info, path.Base(name)}, nil
}

func (f liveFS) Stat(name string) (fs.FileInfo, error) {
	file, info, err := f.find("stat", name, 0)
	if err != nil {
		return nil, err
	}
	return info, file.Close()
}

func (f liveFS) Lstat(name string) (fs.FileInfo, error) {
	file, info, err := f.find("lstat", name, unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return info, file.Close()
}

func (f liveFS) ReadLink(name string) (string, error) {
	file, _, err := f.find("readlink", name, unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var target [unix.PathMax]byte
	n, err := unix.Readlinkat(int(file.Fd()), "", target[:])
	if err == unix.ENOENT { // from a descriptor that is not a link's: readlink(2)
		err = unix.EINVAL
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(target[:n]), nil
}

func (f liveFS) ReadDir(name string) ([]fs.DirEntry, error) {
	file, err := f.open("open", name)
	if err != nil {
		return nil, err
	}
	dir := &liveDir{file, name, f}
	defer dir.Close()
	list, err := dir.ReadDir(-1)
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

// IsOpaque reports whether all that a directory has is in the scratch, and nothing of it in the
// layers below, for a scratch that takes the changes of a root.
func (s *Scratch) IsOpaque(name string) bool {
	file, _, err := s.tree().find("open", name, unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer file.Close()
	return overlay.IsOpaque(int(file.Fd()))
}

// liveFile reads no further than the end that the file had when it was opened.
type liveFile struct {
	*io.SectionReader
	file *os.File
	info fs.FileInfo
}

func (f *liveFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *liveFile) Close() error               { return f.file.Close() }

type liveDir struct {
	file *os.File
	name string
	fsys liveFS
}

func (d *liveDir) Close() error { return d.file.Close() }

func (d *liveDir) Stat() (fs.FileInfo, error) {
	info, err := d.file.Stat()
	if err != nil {
		return nil, renamed(err, d.name)
	}
	return namedInfo{info, path.Base(d.name)}, nil
}

func (d *liveDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: unix.EISDIR}
}

func (d *liveDir) ReadDir(n int) ([]fs.DirEntry, error) {
	list, err := d.readAll(n)
	for i, e := range list {
		list[i] = liveEntry{e, path.Join(d.name, e.Name()), d.fsys}
	}
	if err != nil && err != io.EOF {
		err = renamed(err, d.name)
	}
	return list, err
}

// readAll is ReadDir of an os.File. Hard links take no file, and hardly any room on a disk: so many
// that only they can be them are an error, before they fill memory.
func (d *liveDir) readAll(n int) ([]fs.DirEntry, error) {
	if n > 0 {
		return d.file.ReadDir(n)
	}
	files := d.fsys.s.files
	left := &files
	if d.fsys.left != nil {
		left = d.fsys.left
	}
	list, err := d.file.ReadDir(int(*left) + 1)
	if err == io.EOF {
		err = nil
	}
	if err == nil && int64(len(list)) > *left {
		return nil, &fs.PathError{Op: "readdir", Path: d.name, Err: fmt.Errorf("more than %d names, which are more than the scratch has room for files: there are hard links", d.fsys.s.files)}
	}
	*left -= int64(len(list))
	return list, err
}

// liveEntry looks the file up again in a way that a run can't redirect.
type liveEntry struct {
	fs.DirEntry
	path string
	fsys liveFS
}

func (e liveEntry) Info() (fs.FileInfo, error) { return e.fsys.Lstat(e.path) }

// namedInfo has the name that was asked for.
type namedInfo struct {
	fs.FileInfo
	name string
}

func (i namedInfo) Name() string { return i.name }
