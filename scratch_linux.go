package sandbox

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

	"github.com/cellkit/sandbox/internal/cell"
)

type scratchImpl struct{ *cell.Scratch }

func (i *scratchImpl) make(bytes, files int64) (*os.Root, error) {
	made, err := cell.NewScratch(bytes, files)
	if err != nil {
		return nil, err
	}
	i.Scratch = made
	root, err := os.OpenRoot(i.path())
	if err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return root, nil
}

// path leads to the scratch as long as it is open.
func (i scratchImpl) path() string { return fmt.Sprintf("/proc/self/fd/%d", i.Scratch.Dir.Fd()) }

func (i scratchImpl) close() error { return i.Scratch.Close() }

func (i scratchImpl) gone() bool { return i.Scratch.Gone() }

// scratchFS reads a scratch in which a run may be at work: os.Root follows links safely, but opens whatever it finds, and
// a named pipe keeps who opens it waiting.
type scratchFS struct {
	s       *Scratch
	anyName bool // also those that are not UTF-8
}

var _ interface {
	fs.ReadDirFS
	fs.StatFS
	fs.ReadLinkFS
} = scratchFS{}

func (f scratchFS) Open(name string) (fs.File, error) {
	file, err := f.open("open", name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		return &scratchDir{file, name, f}, nil
	case info.Size() > f.s.size:
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%d bytes, which are more than the scratch has room for: the file has holes", info.Size())}
	default:
		return &scratchFile{io.NewSectionReader(file, 0, info.Size()), file, namedInfo{info, path.Base(name)}}, nil
	}
	return nil, errors.Join(err, file.Close())
}

// open opens regular files and directories, without touching anything else: openat2(2), RESOLVE_IN_ROOT.
func (f scratchFS) open(op, name string) (*os.File, error) {
	file, info, err := f.find(op, name, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	// Not to wait for the end of a lease, which a run can have where the filter is not the default
	// one: EWOULDBLOCK.
	opened, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, renamed(err, name)
	}
	return opened, nil
}

// renamed makes an error tell of the name that the caller knows.
func renamed(err error, name string) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: e.Op, Path: name, Err: e.Err}
	}
	return err
}

// find leads to what name is, links followed within the scratch; flags may be O_NOFOLLOW. It is one call however long the name is, which
// os.Root's are not.
func (f scratchFS) find(op, name string, flags uint64) (*os.File, fs.FileInfo, error) {
	defer runtime.KeepAlive(f.s) // what is collected is closed
	fail := func(err error) (*os.File, fs.FileInfo, error) {
		return nil, nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if !f.anyName && !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openat2(f.s.impl.Dir, name, &how)
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

func (f scratchFS) Stat(name string) (fs.FileInfo, error) {
	file, info, err := f.find("stat", name, 0)
	if err != nil {
		return nil, err
	}
	return info, file.Close()
}

func (f scratchFS) Lstat(name string) (fs.FileInfo, error) {
	file, info, err := f.find("lstat", name, unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return info, file.Close()
}

func (f scratchFS) ReadLink(name string) (string, error) {
	file, _, err := f.find("readlink", name, unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var target [unix.PathMax]byte
	n, err := unix.Readlinkat(int(file.Fd()), "", target[:])
	if err == unix.ENOENT { // of a descriptor that is no link's: readlink(2)
		err = unix.EINVAL
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(target[:n]), nil
}

func (f scratchFS) ReadDir(name string) ([]fs.DirEntry, error) {
	file, err := f.open("open", name)
	if err != nil {
		return nil, err
	}
	dir := &scratchDir{file, name, f}
	defer dir.Close()
	list, err := dir.ReadDir(-1)
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

// scratchFile reads no further than the file went when it was opened.
type scratchFile struct {
	*io.SectionReader
	file *os.File
	info fs.FileInfo
}

func (f *scratchFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *scratchFile) Close() error               { return f.file.Close() }

type scratchDir struct {
	file *os.File
	name string
	fsys scratchFS
}

func (d *scratchDir) Close() error { return d.file.Close() }

func (d *scratchDir) Stat() (fs.FileInfo, error) {
	info, err := d.file.Stat()
	if err != nil {
		return nil, renamed(err, d.name)
	}
	return namedInfo{info, path.Base(d.name)}, nil
}

func (d *scratchDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: unix.EISDIR}
}

func (d *scratchDir) ReadDir(n int) ([]fs.DirEntry, error) {
	list, err := d.file.ReadDir(n)
	for i, e := range list {
		list[i] = scratchEntry{e, path.Join(d.name, e.Name()), d.fsys}
	}
	if err != nil && err != io.EOF {
		err = renamed(err, d.name)
	}
	return list, err
}

// scratchEntry looks the file up again where the run can't lead it elsewhere.
type scratchEntry struct {
	fs.DirEntry
	path string
	fsys scratchFS
}

func (e scratchEntry) Info() (fs.FileInfo, error) { return e.fsys.Lstat(e.path) }

// namedInfo has the name that was asked for.
type namedInfo struct {
	fs.FileInfo
	name string
}

func (i namedInfo) Name() string { return i.name }
