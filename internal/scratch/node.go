//go:build linux

package scratch

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/overlay"
)

// openBelow opens a directory of base, with one call however long its name is, where os.Root makes
// one for each part of it. Links on the way must not lead out of base.
func openBelow(base *os.File, name string) (*os.Root, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openat2(base, name, &how)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	return root, renamed(err, name)
}

// openat2 repeats openat2(2) if that fails with EAGAIN: the name has a "..", and something was
// renamed or mounted anywhere meanwhile.
func openat2(dir *os.File, name string, how *unix.OpenHow) (fd int, err error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	for range 10_000 {
		if ctlErr := raw.Control(func(dir uintptr) { fd, err = unix.Openat2(int(dir), name, how) }); ctlErr != nil {
			return -1, fs.ErrClosed
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// makeNode makes a named pipe or a socket that nobody listens to. Other nodes are devices.
func makeNode(dir *os.Root, name string, mode fs.FileMode) error {
	kind := map[fs.FileMode]uint32{fs.ModeNamedPipe: unix.S_IFIFO, fs.ModeSocket: unix.S_IFSOCK}[mode.Type()]
	if kind == 0 {
		return fs.ErrInvalid
	}
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Mknodat(int(f.Fd()), name, kind|0o666, 0)
}

// setModified sets the time of modification of an open file, whatever its name leads to by now.
func setModified(f *os.File, at time.Time) error {
	set := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: at.Unix(), Nsec: int64(at.Nanosecond())}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), set, 0)
}

// hostDir is like os.DirFS but takes every name: fs.ValidPath only accepts UTF-8. It does not wait
// for a pipe or lease.
type hostDir string

// anyName returns fsys for a walk, or what does the same and takes names that are not UTF-8.
func anyName(fsys fs.FS) fs.FS {
	if f, ok := fsys.(liveFS); ok {
		return f.walked()
	}
	if v := reflect.ValueOf(fsys); v.IsValid() && v.Type() == reflect.TypeOf(os.DirFS("/")) && v.String() != "" {
		return hostDir(v.String())
	}
	return fsys
}

// canName reports whether fsys takes a name that it has listed itself.
func canName(fsys fs.FS, name string) bool {
	switch fsys.(type) {
	case liveFS, hostDir, *overlay.Tree:
		return true
	}
	return fs.ValidPath(name)
}

func (d hostDir) Open(name string) (fs.File, error) {
	f, err := os.OpenFile(path.Join(string(d), name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, renamed(err, name)
	}
	return f, nil
}

func (d hostDir) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := os.ReadDir(path.Join(string(d), name))
	return list, renamed(err, name)
}

func (d hostDir) ReadLink(name string) (string, error) {
	target, err := os.Readlink(path.Join(string(d), name))
	return target, renamed(err, name)
}

func (d hostDir) Lstat(name string) (fs.FileInfo, error) {
	info, err := os.Lstat(path.Join(string(d), name))
	return info, renamed(err, name)
}
