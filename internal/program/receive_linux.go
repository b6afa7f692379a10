package program

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inbox holds what receiving a program takes. Its addresses are numbers, because storing a pointer
// could involve the garbage collector.
type inbox struct {
	msg struct { // struct msghdr: recvmsg(2), 64 bits
		name                             uint64
		namelen                          uint64
		iov, iovlen, control, controllen uint64
		flags                            int32
		_                                int32
	}
	iov     struct{ base, len uint64 }
	control [controlSize]byte
}

//go:nosplit
//go:norace
//go:nocheckptr
func inboxOf(n *state) *inbox { return (*inbox)(unsafe.Add(unsafe.Pointer(n), unsafe.Sizeof(*n))) }

// controlSize is the space for the most descriptors that may come, CMSG_SPACE(3): a struct cmsghdr,
// and 32 bits for each.
const controlSize = unix.SizeofCmsghdr + (4*MaxFiles+7)&^7

// usualImage is the size of most programs that are received, in whole pages.
const usualImage = 8 << 10

// receive waits for the program that the command goes on with, loads it into s.next, and returns
// that. The image comes in one or more messages, the descriptors with the first: they follow the
// socket to the host and the descriptors that were passed on. If no program has arrived yet,
// receive reports that first.
//
//go:nosplit
//go:norace
//go:nocheckptr
func receive(s *state) (*state, syscall.Errno) {
	n, box := s.next, inboxOf(s.next)
	populate(uintptr(unsafe.Pointer(n)), unsafe.Sizeof(*n)+unsafe.Sizeof(*box)+usualImage)
	// A number, as in inbox.
	*(*uintptr)(unsafe.Pointer(&n.image)) = uintptr(unsafe.Pointer(box)) + unsafe.Sizeof(*box)
	*slot(n, uint64(Report)) = *slot(s, uint64(Report))
	n.base = uint32(s.first[numParts])
	files, size, want, flags := 1+int(s.passed), uintptr(0), uintptr(headerSize), uintptr(unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	for size < want {
		box.iov.base, box.iov.len = uint64(uintptr(n.image)+size), uint64(MaxImage-size)
		box.msg.iov, box.msg.iovlen = uint64(uintptr(unsafe.Pointer(&box.iov))), 1
		box.msg.control, box.msg.controllen = uint64(uintptr(unsafe.Pointer(&box.control))), controlSize
		got, errno := sys(unix.SYS_RECVMSG, uintptr(*slot(s, uint64(Report))), uintptr(unsafe.Pointer(&box.msg)), flags, 0, 0, 0)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN: // only the first attempt can return this
			report(s, Waiting)
			flags = unix.MSG_CMSG_CLOEXEC
			continue
		case errno != 0:
			return nil, errno
		case got == 0: // the host is gone
			return nil, syscall.ECONNRESET
		case box.msg.flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
			return nil, syscall.EMSGSIZE
		}
		flags = unix.MSG_CMSG_CLOEXEC
		files += keep(n, files)
		if size += got; size >= headerSize {
			want = uintptr((*header)(n.image).total)
		}
	}
	if load(n, int(size), files) != nil {
		return nil, syscall.EBADMSG
	}
	return n, 0
}

// keep puts the descriptors that came with a message into the slots from at on, and returns their
// number: recvmsg(2), unix(7). The kernel joins them in one control message.
//
//go:nosplit
//go:norace
//go:nocheckptr
func keep(n *state, at int) (files int) {
	box := inboxOf(n)
	head := (*unix.Cmsghdr)(unsafe.Pointer(&box.control))
	if box.msg.controllen < unix.SizeofCmsghdr || head.Level != unix.SOL_SOCKET || head.Type != unix.SCM_RIGHTS {
		return 0
	}
	end := uintptr(head.Len)
	if end > uintptr(box.msg.controllen) {
		end = uintptr(box.msg.controllen)
	}
	for i := uintptr(unix.SizeofCmsghdr); i+4 <= end && at+files < MaxSlots; i += 4 {
		*slot(n, uint64(at+files)) = *(*int32)(unsafe.Add(unsafe.Pointer(&box.control), i))
		files++
	}
	return files
}
