//go:build linux

package run

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A look at what a path leads to, from a root on, as the kernel would follow it for a process. It
// opens nothing but with O_PATH, which no device, FIFO or automount point notices: open(2). It goes
// from one component to the next with O_NOFOLLOW, so that nothing below the root leads out of it.

// errUntold means that this process can't find out what is at a path.
var errUntold = errors.New("it can't be found out")

// maxSteps and maxLinks bound how far a path is followed. The kernel follows as many links:
// path_resolution(7).
const (
	maxSteps = 128
	maxLinks = 40
)

// step is a file on the way.
type step struct {
	fd   int
	name string // the absolute path, without links
	unix.Statx_t
	mount *mountinfo.Info
}

func (s *step) is(kind uint16) bool { return s.Mode&unix.S_IFMT == kind }

func (s *step) isReadOnly() bool { return has(s.mount.Options, "ro") || has(s.mount.VFSOptions, "ro") }

// has reports whether one of the options of a mount is this one.
func has(options, option string) bool { return slices.Contains(strings.Split(options, ","), option) }

// way is a path that is followed: its files from the root on.
type way struct {
	as     *credentials // whose way it is, nil for one that may go anywhere
	proc   string       // the directory in /proc of a process from whose root it leads
	mounts []*mountinfo.Info
	steps  []*step

	missing string // the path that is not there, "" if all are
	last    bool   // it is the last of its path
	denied  string // the path of a directory that may not be searched
}

// local are the file systems that answer by themselves. Others ask a server or a daemon, or show
// each process something else.
var local = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "devtmpfs", "ramfs", "rootfs", "overlay", "squashfs", "erofs", "zfs", "bcachefs"}

// follow goes along an absolute path from the process's root on. The last component may be a link
// that is not followed.
func (w *way) follow(p string, through bool) error {
	if err := w.enter(unix.AT_FDCWD, w.proc+"/root", "/", unix.O_DIRECTORY); err != nil {
		return errUntold
	}
	rest, links := strings.Split(p, "/"), 0
	for taken := 0; len(rest) > 0; taken++ {
		if taken == maxSteps {
			return errUntold
		}
		name := rest[0]
		rest = slices.DeleteFunc(rest[1:], func(s string) bool { return s == "" || s == "." })
		from := w.end()
		if name == "" || name == "." {
			continue
		}
		if !from.is(unix.S_IFDIR) {
			return errUntold
		}
		if w.as.denied(from, unix.X_OK) {
			w.denied = from.name
			return nil
		}
		if name == ".." {
			w.back()
			continue
		}
		switch err := w.enter(from.fd, name, path.Join(from.name, name), unix.O_NOFOLLOW); {
		case err == unix.ENOENT:
			w.missing, w.last = path.Join(append([]string{from.name, name}, rest...)...), len(rest) == 0
			return nil
		case err != nil:
			return errUntold
		}
		if at := w.end(); at.is(unix.S_IFLNK) && (through || len(rest) > 0) {
			target, err := linkOf(at.fd)
			if links++; err != nil || links > maxLinks {
				return errUntold
			}
			w.back()
			if path.IsAbs(target) {
				w.backTo(1)
			}
			rest = append(strings.Split(target, "/"), rest...)
		}
	}
	return nil
}

// enter adds a file, if its file system is one of those that can be asked.
func (w *way) enter(dir int, name, p string, flag int) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC|flag, 0)
	if err != nil {
		return err
	}
	s := &step{fd: fd, name: p}
	w.steps = append(w.steps, s)
	const wanted = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_UID | unix.STATX_GID | unix.STATX_MNT_ID
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, wanted, &s.Statx_t); err != nil {
		return errUntold
	}
	if n := len(w.steps); n > 1 && s.Mnt_id == w.steps[n-2].Mnt_id {
		s.mount = w.steps[n-2].mount
		return nil
	}
	if s.mount = w.mountOf(s); s.mount == nil || !slices.Contains(local, s.mount.FSType) {
		return errUntold
	}
	return nil
}

// mountOf returns the mount of a file, nil if it is not found. statfs(2) would ask the file system,
// and thus a server or a daemon.
func (w *way) mountOf(s *step) *mountinfo.Info {
	if w.mounts == nil {
		f, err := os.Open(w.proc + "/mountinfo")
		if err != nil {
			return nil
		}
		defer f.Close()
		if w.mounts, err = mountinfo.GetMountsFromReader(f, nil); err != nil {
			return nil
		}
	}
	i := slices.IndexFunc(w.mounts, func(m *mountinfo.Info) bool { return uint64(m.ID) == s.Mnt_id })
	if i < 0 || s.Mask&unix.STATX_MNT_ID == 0 {
		return nil
	}
	return w.mounts[i]
}

func (w *way) end() *step { return w.steps[len(w.steps)-1] }

func (w *way) back() { w.backTo(max(1, len(w.steps)-1)) }

func (w *way) backTo(n int) {
	for _, s := range w.steps[n:] {
		unix.Close(s.fd)
	}
	w.steps = w.steps[:n]
}

func linkOf(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	return string(b[:max(n, 0)]), err
}

// isThere reports whether this machine has a file at an absolute path.
func isThere(p string) bool {
	w := way{proc: "/proc/self"}
	defer w.backTo(0)
	return w.follow(p, false) == nil && w.missing == ""
}

// credentials are what a thread may do with files: credentials(7).
type credentials struct {
	thread uint32
	read   bool
	known  bool
	uid    uint32 // for file systems
	groups []uint32
	caps   uint64 // effective
}

// denied reports whether the permissions of a file keep the thread from one of these accesses, as
// far as can be found out.
func (c *credentials) denied(s *step, access uint32) bool {
	mode := uint32(s.Mode)
	if c == nil || mode&access == access {
		return false
	}
	if !c.read {
		c.read, c.known = true, c.fill() == nil
	}
	// With a capability it depends on the user namespace that the file's owner is in.
	if !c.known || c.caps&(1<<unix.CAP_DAC_OVERRIDE|1<<unix.CAP_DAC_READ_SEARCH) != 0 {
		return false
	}
	switch {
	case c.uid == s.Uid:
		mode >>= 6
	case slices.Contains(c.groups, s.Gid):
		mode >>= 3
	}
	if mode&access == access {
		return false
	}
	n, _ := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", s.fd), "system.posix_acl_access", nil)
	return n <= 0
}

// fill reads the credentials: proc(5), /proc/PID/status.
func (c *credentials) fill() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.thread))
	if err != nil {
		return err
	}
	numbers := func(name string, base int) (all []uint64) {
		_, line, _ := bytes.Cut(b, []byte("\n"+name+":"))
		line, _, _ = bytes.Cut(line, []byte("\n"))
		for f := range bytes.FieldsSeq(line) {
			n, _ := strconv.ParseUint(string(f), base, 64)
			all = append(all, n)
		}
		return all
	}
	uids, gids, caps := numbers("Uid", 10), numbers("Gid", 10), numbers("CapEff", 16)
	if len(uids) != 4 || len(gids) != 4 || len(caps) != 1 {
		return errUntold
	}
	c.uid, c.caps = uint32(uids[3]), caps[0]
	for _, gid := range append(numbers("Groups", 10), gids[3]) {
		c.groups = append(c.groups, uint32(gid))
	}
	return nil
}
