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
	events  int // a descriptor, 0 until there is something to watch
	watched map[int32]*Network
}

// add has the proc file system of the process watched for a run in n, which is held until then.
func (w *procWatch) add(n *Network, pid int) error {
	if w.events == 0 {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return os.NewSyscallError("inotify_init1", err)
		}
		w.events, w.watched = fd, map[int32]*Network{}
	}
	wd, err := unix.InotifyAddWatch(w.events, fmt.Sprintf("/proc/%d/root/proc", pid), unix.IN_DELETE_SELF|unix.IN_ONLYDIR)
	if err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	if w.watched[int32(wd)] != nil {
		return errors.New("the run has the /proc of another")
	}
	w.watched[int32(wd)] = n
	return nil
}

// read notes what is gone. Of events that were too many for the kernel to keep, it never hears.
func (w *procWatch) read() {
	if w.events == 0 {
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
	if w.events != 0 {
		unix.Close(w.events)
	}
	w.events, w.watched = 0, nil
}
