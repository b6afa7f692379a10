package cell

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// How host directories are opened before Linux 5.12, which has no mount_setattr(2). Only an
// attached mount's flags can be changed there. So each is attached in a mount namespace that nobody
// else is in, gets its flags, and is cloned from there. The cell never sees it without them.

var hasSetAttr = sync.OnceValue(func() bool {
	return !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
})

func (c *Cell) openOld(t Tree) (*os.File, error) {
	real, err := filepath.EvalSymlinks(t.Path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, err
	}
	if !t.Partial {
		below, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
			rel, err := filepath.Rel(real, i.Mountpoint)
			return err != nil || rel == "." || !filepath.IsLocal(rel), false
		})
		if err != nil {
			return nil, err
		}
		if len(below) > 0 {
			return nil, fmt.Errorf("%s is mounted below %s: what has mounts below it takes Linux 5.12", below[0].Mountpoint, t.Path)
		}
	}
	if c.ids.rootless {
		return c.openByPorter(t)
	}
	if t.Owner != nil {
		return nil, &os.PathError{Op: "mount_setattr", Path: t.Path, Err: ErrNoIDMap}
	}
	var f *os.File
	OnOwnThread(func() { f, err = t.openHere() })
	return f, err
}

// OnOwnThread calls f on a thread that ends with the call, together with the namespaces that f
// enters. It does not use the first thread of a process, which can't be ended (runtime.mexit) and
// whose namespaces /proc/self shows.
func OnOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			OnOwnThread(f) // on another thread: this one is blocked meanwhile
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// openHere changes the mount namespace of its thread.
func (t Tree) openHere() (*os.File, error) {
	fail := func(op string, err error) (*os.File, error) {
		return nil, &os.PathError{Op: op, Path: t.Path, Err: err}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fail("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail("mount", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail("open_tree", err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fail("fstatfs", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, t.Path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("move_mount", err)
	}
	// The descriptor leads to the mount itself, even if its path leads elsewhere by now.
	at := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|t.oldFlags(st.Flags), ""); err != nil {
		return fail("mount", err)
	}
	clone, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail("open_tree", err)
	}
	return os.NewFile(uintptr(clone), t.Path), nil
}

// oldFlags adds the tree's flags to those that its mount has: statfs(2) and mount(2) use the same
// bits. Without a flag for access times, these stay as they are.
func (t Tree) oldFlags(have int64) uintptr {
	flags := uintptr(have)&(unix.MS_RDONLY|unix.MS_NOEXEC) | unix.MS_NOSUID | unix.MS_NODEV
	if !t.Writable {
		flags |= unix.MS_RDONLY
	}
	return flags
}

// addOldOpen does the same in the porter's namespace. The flags of the host's mount are locked
// there: if the path leads to another mount by now, the call fails.
func (t Tree) addOldOpen(b *program.Builder, path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	attr := 0
	for _, f := range []struct{ ms, attr int }{{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}} {
		if t.oldFlags(st.Flags)&uintptr(f.ms) != 0 {
			attr |= f.attr
		}
	}
	clone := program.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH")
	b.Call("unshare", unix.SYS_UNSHARE, program.Int(unix.CLONE_NEWNS, "CLONE_NEWNS"))
	fd := b.CloneTree(path)
	b.AttachAt(fd, path)
	b.Remount(fd, attr)
	b.SendFile(b.CallTo("open_tree", unix.SYS_OPEN_TREE, program.Use(fd), b.Str(""), clone))
	return nil
}
