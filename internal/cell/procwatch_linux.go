package cell

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// procWatch tells when the proc file systems of runs are gone. Each run has one of its own, which
// lives as long as anybody has a file of it, be it in a process, under way through a socket, or in
// sockets that hold each other. The kernel says when it ends: inotify(7), IN_UNMOUNT. A watch does
// not keep it (fs/notify/fsnotify.c, fsnotify_sb_delete).
type procWatch struct {
	events  int // a descriptor, 0 until there is something to watch, -1 once the cell has ended
	watched map[int32]*Network
}

// begin makes the descriptor, if there is none yet.
func (w *procWatch) begin() error {
	if w.events > 0 {
		return nil
	}
	if w.events < 0 {
		return errors.New("the cell has ended")
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify_init1: %w (sysctl fs.inotify.max_user_instances)", err)
	}
	w.events, w.watched = fd, map[int32]*Network{}
	return nil
}

// watch returns the number of a watch on what is at path.
func (w *procWatch) watch(path string, flags uint32) (int32, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	wd, err := unix.InotifyAddWatch(w.events, path, unix.IN_DELETE_SELF|flags)
	if err != nil {
		return 0, fmt.Errorf("inotify_add_watch: %w (sysctl fs.inotify.max_user_watches)", err)
	}
	return int32(wd), nil
}

// add has the proc file system of the process watched for a run in n, which is held until then.
func (w *procWatch) add(n *Network, pid int) error {
	wd, err := w.watch(fmt.Sprintf("/proc/%d/root/proc", pid), unix.IN_ONLYDIR)
	if err != nil {
		return err
	}
	if w.watched[wd] != nil {
		return errors.New("the run has the /proc of another")
	}
	w.watched[wd] = n
	return nil
}

// opened returns an error if somebody has the file of nsfs that open returns: then a second one has
// the inode of the first, and so its watch, as there is one for each inode: inotify_add_watch(2).
// If nobody has, the kernel forgets the inode as soon as the first is closed (fs/nsfs.c, d_prune
// and d_delete of its dentries). A watch keeps the inode itself, but not so that it is found again.
func (w *procWatch) opened(open func() (*os.File, error)) error {
	var watches [2]int32
	for i := range watches {
		f, err := open()
		if err != nil {
			return err
		}
		watches[i], err = w.watch(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), 0)
		f.Close()
		if err != nil {
			return err
		}
		defer func() { _, _ = unix.InotifyRmWatch(w.events, uint32(watches[i])) }()
	}
	if watches[0] == watches[1] {
		return errors.New("somebody has the namespace open")
	}
	return nil
}

// read notes what is gone. Of events that were too many for the kernel to keep, it never hears.
func (w *procWatch) read() {
	if w.events <= 0 {
		return
	}
	var buf [64 * unix.SizeofInotifyEvent]byte
	for {
		n, err := unix.Read(w.events, buf[:])
		if err != nil || n <= 0 {
			return
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			if owner := w.watched[e.Wd]; owner != nil && e.Mask&unix.IN_UNMOUNT != 0 {
				owner.held = false
				delete(w.watched, e.Wd)
			}
			at += unix.SizeofInotifyEvent + int(e.Len)
		}
	}
}

func (w *procWatch) forget(n *Network) {
	for wd, owner := range w.watched {
		if owner == n {
			_, _ = unix.InotifyRmWatch(w.events, uint32(wd))
			delete(w.watched, wd)
		}
	}
}

func (w *procWatch) close() {
	if w.events > 0 {
		unix.Close(w.events)
	}
	w.events, w.watched = -1, nil
}
