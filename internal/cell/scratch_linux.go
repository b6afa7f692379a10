package cell

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// Scratch is a file system in memory or on disk that only the processes see which are given it. It
// belongs to this process's user.
//
// Before Linux 6.15 only a mount that is attached somewhere can be cloned. So each scratch is
// attached in a mount namespace that nobody is in; if this process may not enter such a namespace,
// a porter of the scratch's own holds it.
type Scratch struct {
	Dir *os.File // its root

	space  *os.File // the mount namespace
	porter *porter
	end    func() error
}

// NewScratch makes a file system with room for the given numbers of bytes and files.
func NewScratch(bytes, files int64) (*Scratch, error) {
	if !hasSetAttr() {
		return nil, errNoScratch
	}
	options := []string{"mode=755", fmt.Sprintf("size=%d", bytes), fmt.Sprintf("nr_inodes=%d", files)}
	return newScratch(func(s *Scratch) (*os.File, error) {
		if asRoot() {
			return s.makeHere("tmpfs", options)
		}
		return s.makeInPorter("tmpfs", options)
	})
}

var errNoScratch = errors.New("a file system for several runs takes Linux 5.12")

func newScratch(make func(*Scratch) (mount *os.File, err error)) (*Scratch, error) {
	s := new(Scratch)
	mount, err := make(s)
	s.end = sync.OnceValue(s.release)
	if err == nil {
		s.Dir, err = openDir(mount)
		mount.Close()
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// Gone reports whether the scratch can't be given to runs any more because its porter has ended.
func (s *Scratch) Gone() bool { return s.porter != nil && s.porter.client.Gone() }

// Close gives up the file system. Runs that have it keep it.
func (s *Scratch) Close() error { return s.end() }

func (s *Scratch) release() (err error) {
	if s.Dir != nil {
		err = s.Dir.Close()
	}
	if s.space != nil {
		err = errors.Join(err, s.space.Close())
	}
	if s.porter != nil {
		s.porter.close()
	}
	return err
}

// scratchAttr denies that files of a scratch give privileges.
const scratchAttr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// scratchPoint is where a scratch is attached. Every machine has this directory.
const scratchPoint = "/proc"

func (s *Scratch) makeHere(fstype string, options []string) (mount *os.File, err error) {
	OnOwnThread(func() { mount, err = s.mountHere(fstype, options) })
	return mount, err
}

// mountHere changes the mount namespace of its thread.
func (s *Scratch) mountHere(fstype string, options []string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	var err error
	if s.space, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid())); err != nil {
		return nil, err
	}
	mount, err := newFileSystem(fstype, scratchAttr, options)
	if err != nil {
		return nil, err
	}
	fd := int(mount.Fd())
	if err = unix.MoveMount(fd, "", unix.AT_FDCWD, scratchPoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err == nil {
		err = os.NewSyscallError("fchdir", unix.Fchdir(fd))
	}
	if err != nil {
		mount.Close()
		return nil, err
	}
	// The namespace would keep the machine's other mounts busy. If the root can't be changed
	// (initramfs), they stay.
	if unix.PivotRoot(".", ".") == nil {
		_ = unix.Unmount(".", unix.MNT_DETACH)
	}
	return mount, nil
}

// newFileSystem does in this process what program.Builder.FileSystem does in a program.
func newFileSystem(fstype string, attr int, options []string) (*os.File, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		set := func() error { return unix.FsconfigSetString(ctx, key, value) }
		if !hasValue {
			set = func() error { return unix.FsconfigSetFlag(ctx, key) }
		}
		if err := set(); err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

func (s *Scratch) makeInPorter(fstype string, options []string) (*os.File, error) {
	var err error
	if s.porter, err = startPorter(); err != nil {
		return nil, err
	}
	b := program.NewBuilder()
	b.Stage("scratch")
	m := b.FileSystem(fstype, scratchAttr, options...)
	b.AttachAt(m, scratchPoint)
	b.SendFile(m)
	return s.porter.fetch(b)
}

// openDir opens the root of a mount, for more than its path (O_PATH).
func openDir(mount *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "scratch", Err: err}
	}
	return os.NewFile(uintptr(fd), "scratch"), nil
}

// open returns a detached mount of the scratch, with the attributes of t if a porter sets them.
func (s *Scratch) open(t Tree) (f *os.File, err error) {
	dir, err := forkserver.Dup(s.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if s.porter != nil {
		b := program.NewBuilder()
		fd := b.CallTo("open_tree", unix.SYS_OPEN_TREE, program.Use(b.File("scratch")), b.Str(""),
			program.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH"))
		b.SetAttr(fd, t.attr().Attr_set, false)
		b.SendFile(fd)
		return s.porter.fetch(b, int(dir.Fd()))
	}
	OnOwnThread(func() {
		// A thread that shares its root directory with others can't enter a mount
		// namespace: setns(2).
		if err = os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_FS)); err != nil {
			return
		}
		if err = os.NewSyscallError("setns", unix.Setns(int(s.space.Fd()), unix.CLONE_NEWNS)); err != nil {
			return
		}
		var fd int
		fd, err = unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err = os.NewSyscallError("open_tree", err); err == nil {
			f = os.NewFile(uintptr(fd), "scratch")
		}
	})
	return f, err
}
