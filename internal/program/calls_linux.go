package program

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the kernel's mount interface (open_tree(2), move_mount(2), fsopen(2)) and of path
// resolution inside a root, as programs use them.

// AtCWD is the current directory as a directory descriptor.
var AtCWD = Int(unix.AT_FDCWD, "AT_FDCWD")

// CloneTree makes a detached copy of the mount at a path.
func (b *Builder) CloneTree(at string) Slot {
	return b.CallTo("open_tree", unix.SYS_OPEN_TREE, AtCWD, b.Str(at),
		Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC"))
}

// FileSystem makes a detached mount of a new file system. Each option is "key=value" or a flag.
func (b *Builder) FileSystem(fstype string, attr int, options ...string) Slot {
	ctx := b.CallTo("fsopen", unix.SYS_FSOPEN, b.Str(fstype), Int(unix.FSOPEN_CLOEXEC, "FSOPEN_CLOEXEC"))
	for _, o := range options {
		key, value, isString := strings.Cut(o, "=")
		if isString {
			b.Call("fsconfig", unix.SYS_FSCONFIG, Use(ctx), Int(unix.FSCONFIG_SET_STRING, "SET_STRING"), b.Str(key), b.Str(value), Int(0))
		} else {
			b.Call("fsconfig", unix.SYS_FSCONFIG, Use(ctx), Int(unix.FSCONFIG_SET_FLAG, "SET_FLAG"), b.Str(key), Int(0, "NULL"), Int(0))
		}
	}
	b.Call("fsconfig", unix.SYS_FSCONFIG, Use(ctx), Int(unix.FSCONFIG_CMD_CREATE, "CMD_CREATE"), Int(0, "NULL"), Int(0, "NULL"), Int(0))
	m := b.CallTo("fsmount", unix.SYS_FSMOUNT, Use(ctx), Int(unix.FSMOUNT_CLOEXEC, "FSMOUNT_CLOEXEC"), Int(attr, attrText(uint64(attr))))
	b.Close(ctx)
	return m
}

// Attach puts a detached mount onto what target refers to.
func (b *Builder) Attach(mount, target Slot) {
	b.Call("move_mount", unix.SYS_MOVE_MOUNT, Use(mount), b.Str(""), Use(target), b.Str(""),
		Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, "F_EMPTY_PATH|T_EMPTY_PATH"))
}

// AttachAt puts a detached mount onto a path of the cell.
func (b *Builder) AttachAt(mount Slot, at string) {
	b.Call("move_mount", unix.SYS_MOVE_MOUNT, Use(mount), b.Str(""), AtCWD, b.Str(at),
		Int(unix.MOVE_MOUNT_F_EMPTY_PATH, "F_EMPTY_PATH"))
}

// SetAttr changes the attributes of a mount and, if recursive is set, of all mounts below it.
func (b *Builder) SetAttr(mount Slot, attr uint64, recursive bool) {
	a := unix.MountAttr{Attr_set: attr, Propagation: unix.MS_PRIVATE}
	raw := append([]byte(nil), (*[unsafe.Sizeof(a)]byte)(unsafe.Pointer(&a))[:]...)
	flags := Int(unix.AT_EMPTY_PATH, "AT_EMPTY_PATH")
	if recursive {
		flags = Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, "AT_EMPTY_PATH|AT_RECURSIVE")
	}
	b.Call("mount_setattr", unix.SYS_MOUNT_SETATTR, Use(mount), b.Str(""), flags, b.Bytes(raw, attrText(attr)), Int(len(raw)))
}

// remountFD is the number to which Remount moves a mount's descriptor, above those of the streams
// and extra files.
const remountFD = 900

// Remount sets exactly these attributes of an attached mount, which SetAttr can't before Linux
// 5.12. The descriptor leads to the mount itself, whatever its path leads to.
func (b *Builder) Remount(mount Slot, attr int) {
	b.Call("dup3", unix.SYS_DUP3, Use(mount), Int(remountFD), Int(unix.O_CLOEXEC, "O_CLOEXEC"))
	flags := unix.MS_REMOUNT | unix.MS_BIND
	for _, f := range []struct{ attr, ms int }{{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV}, {unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC}} {
		if attr&f.attr != 0 {
			flags |= f.ms
		}
	}
	at := b.Str(fmt.Sprintf("/proc/self/fd/%d", remountFD))
	b.Call("mount", unix.SYS_MOUNT, Int(0, "NULL"), at, Int(0, "NULL"), Int(unix.MS_PRIVATE, "MS_PRIVATE"), Int(0, "NULL"))
	b.Call("mount", unix.SYS_MOUNT, Int(0, "NULL"), at, Int(0, "NULL"), Int(flags, "MS_REMOUNT|MS_BIND|"+attrText(uint64(attr))), Int(0, "NULL"))
	b.Call("close", unix.SYS_CLOSE, Int(remountFD))
}

func attrText(set uint64) string {
	text := []string{}
	for _, f := range []struct {
		bit  uint64
		name string
	}{{unix.MOUNT_ATTR_RDONLY, "ro"}, {unix.MOUNT_ATTR_NOSUID, "nosuid"}, {unix.MOUNT_ATTR_NODEV, "nodev"}, {unix.MOUNT_ATTR_NOEXEC, "noexec"}} {
		if set&f.bit != 0 {
			text = append(text, f.name)
		}
	}
	return strings.Join(text, "|")
}

// OpenInRoot opens a path inside a root. No symbolic link on the way leads out of the root, whoever
// put it there: openat2(2), RESOLVE_IN_ROOT.
func (b *Builder) OpenInRoot(root Slot, p string) Slot {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return b.openat2(Use(root), p, how, "{O_PATH|O_CLOEXEC, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS}")
}

// OpenNoLink opens a path inside a root that contains no symbolic link.
func (b *Builder) OpenNoLink(root Slot, p string) Slot {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	return b.openat2(Use(root), p, how, "{O_PATH|O_CLOEXEC, RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS}")
}

func (b *Builder) openat2(at Arg, p string, how unix.OpenHow, text string) Slot {
	raw := append([]byte(nil), (*[unsafe.Sizeof(how)]byte)(unsafe.Pointer(&how))[:]...)
	return b.CallTo("openat2", unix.SYS_OPENAT2, at, b.Str(p), b.Bytes(raw, text), Int(len(raw)))
}

// MkdirAll makes the missing directories of a path inside a root, including the last one. have is
// the part of the path that is known to exist.
func (b *Builder) MkdirAll(root Slot, have, p string) {
	for dir := have; dir != p; {
		rest := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		name, _, _ := strings.Cut(rest, "/")
		at := b.OpenInRoot(root, dir)
		b.CallMaybe("mkdirat", unix.SYS_MKDIRAT, Use(at), b.Str(name), mode(0o755))
		b.Close(at)
		dir = path.Join(dir, name)
	}
}

// Mkdir makes one directory, which must not exist.
func (b *Builder) Mkdir(at Arg, p string, m fs.FileMode) {
	b.Call("mkdirat", unix.SYS_MKDIRAT, at, b.Str(p), mode(m))
}

// Symlink makes a symbolic link.
func (b *Builder) Symlink(target string, at Arg, p string) {
	b.Call("symlinkat", unix.SYS_SYMLINKAT, b.Str(target), at, b.Str(p))
}

// CreateFile makes a file, which must not exist, with the given content. It expects the umask to be
// zero.
func (b *Builder) CreateFile(at Arg, p string, data []byte, m fs.FileMode) {
	f := b.create(at, p, m)
	b.write(f, data)
	b.Close(f)
}

// CopyFile makes a file, which must not exist, with the size bytes that another has at an offset:
// sendfile(2). It expects the umask to be zero.
func (b *Builder) CopyFile(at Arg, p string, from Slot, offset int64, size int, m fs.FileMode) {
	f := b.create(at, p, m)
	if size > 0 {
		where := b.Bytes(native.AppendUint64(nil, uint64(offset)), fmt.Sprintf("from %d on", offset))
		b.add("sendfile", unix.SYS_SENDFILE, NoSlot, flagAll, []Arg{Use(f), Use(from), where, Int(size)})
	}
	b.Close(f)
}

func (b *Builder) create(at Arg, p string, m fs.FileMode) Slot {
	return b.CallTo("openat", unix.SYS_OPENAT, at, b.Str(p),
		Int(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, "O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC|O_NOFOLLOW"), mode(m))
}

// Fill writes data to a file that is open, and sets its permissions.
func (b *Builder) Fill(f Slot, data []byte, m fs.FileMode) {
	b.write(f, data)
	b.Call("fchmod", unix.SYS_FCHMOD, Use(f), mode(m))
	b.Close(f)
}

func (b *Builder) write(f Slot, data []byte) {
	if len(data) > 0 {
		// A write to an almost full file system may write only a part.
		b.add("write", unix.SYS_WRITE, NoSlot, flagAll, []Arg{Use(f), b.Bytes(data, fmt.Sprintf("%d bytes", len(data))), Int(len(data))})
	}
}

// WriteFile writes to a file of the kernel's, if that exists and is writable.
func (b *Builder) WriteFile(at Arg, p, content string) {
	f := b.newSlot()
	b.add("openat", unix.SYS_OPENAT, f, flagIgnore, []Arg{at, b.Str(p), Int(unix.O_WRONLY|unix.O_CLOEXEC, "O_WRONLY|O_CLOEXEC"), Int(0)})
	b.CallMaybe("write", unix.SYS_WRITE, Use(f), b.Str(content), Int(len(content)))
	b.CallMaybe("close", unix.SYS_CLOSE, Use(f))
	b.Free(f)
}

// LoopbackUp brings up lo: netdevice(7). A struct ifreq is a name of 16 bytes and a union of 24,
// which begins with the flags.
func (b *Builder) LoopbackUp() {
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	s := b.CallTo("socket", unix.SYS_SOCKET, Int(unix.AF_UNIX, "AF_UNIX"), Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, "SOCK_DGRAM|SOCK_CLOEXEC"), Int(0))
	b.Call("ioctl", unix.SYS_IOCTL, Use(s), Int(unix.SIOCSIFFLAGS, "SIOCSIFFLAGS"), b.Bytes(ifreq, "{lo, IFF_UP}"))
	b.Close(s)
}

// Chown changes the owner of a path without following a link.
func (b *Builder) Chown(at Arg, p string, uid, gid int) {
	b.Call("fchownat", unix.SYS_FCHOWNAT, at, b.Str(p), Int(uid), Int(gid), Int(unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"))
}

// Close closes a descriptor and frees its slot.
func (b *Builder) Close(s Slot) {
	b.Call("close", unix.SYS_CLOSE, Use(s))
	b.Free(s)
}

// Wait reads one byte, to wait for the peer.
func (b *Builder) Wait(s Slot) {
	b.CallWait("read", unix.SYS_READ, Use(s), b.Bytes(make([]byte, 8), "buf"), Int(1))
}

// WaitFiles waits for a message of the host that brings n descriptors: recvmsg(2), unix(7). The
// slot of one that did not arrive is -1.
func (b *Builder) WaitFiles(n int) []Slot {
	if n == 0 {
		b.Wait(Report)
		return nil
	}
	none := make([]byte, unix.CmsgSpace(4*n))
	for i := range none {
		none[i] = 0xff
	}
	control := b.Bytes(none, "SCM_RIGHTS")
	iov := b.Struct("iov", b.Bytes(make([]byte, 8), "buf"), Int(1))
	msg := b.Struct(fmt.Sprintf("{%d descriptors}", n), Int(0), Int(0), iov, Int(1), control, Int(len(none)), Int(0))
	b.CallWait("recvmsg", unix.SYS_RECVMSG, Use(Report), msg, Int(unix.MSG_CMSG_CLOEXEC, "MSG_CMSG_CLOEXEC"))
	files := make([]Slot, n)
	for i := range files {
		files[i] = b.peek(control, unix.CmsgLen(4*i))
	}
	return files
}

func mode(m fs.FileMode) Arg {
	bits := uint32(m.Perm())
	if m&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return Arg{val: uint64(bits), as: asMode}
}

// Event reports an event without a value to the host.
func (b *Builder) Event(k Kind) {
	b.Call("sendto", unix.SYS_SENDTO, Use(Report), b.Bytes(Event{Kind: k}.Marshal(), ""), Int(EventSize), Int(unix.MSG_NOSIGNAL), Int(0), Int(0))
	lines := b.lines[b.part]
	last := &lines[len(lines)-1]
	last.name, last.args = "report", []Arg{Int(0, k.String())}
}

// SendFile sends the host an event of kind Ready with a descriptor.
func (b *Builder) SendFile(fd Slot) { b.SendFileWith(Ready, fd) }

// SendFileWith sends the host an event with a descriptor.
func (b *Builder) SendFileWith(k Kind, fd Slot) {
	b.sendFiles(Report, Event{Kind: k}.Marshal(), k.String(), fd)
}

// SendFiles sends descriptors over a unix socket, in one message of a byte.
func (b *Builder) SendFiles(socket Slot, fds ...Slot) {
	b.sendFiles(socket, []byte{1}, "1", fds...)
}

// sendFiles sends a message with descriptors: sendmsg(2), unix(7) SCM_RIGHTS.
func (b *Builder) sendFiles(socket Slot, payload []byte, what string, fds ...Slot) {
	data := b.Bytes(payload, what)
	rights := unix.UnixRights(make([]int, len(fds))...)
	control := b.Bytes(rights, "SCM_RIGHTS")
	text := "{" + what + ", SCM_RIGHTS"
	for i, fd := range fds {
		b.poke(control, unix.CmsgLen(4*i), fd)
		text += " " + fd.String()
	}
	iov := b.Struct("iov", data, Int(len(payload)))
	msg := b.Struct(text+"}", Int(0), Int(0), iov, Int(1), control, Int(len(rights)), Int(0))
	b.Call("sendmsg", unix.SYS_SENDMSG, Use(socket), msg, Int(unix.MSG_NOSIGNAL, "MSG_NOSIGNAL"))
}
