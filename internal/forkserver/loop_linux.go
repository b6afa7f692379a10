package forkserver

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// What follows runs in the fork server's single-threaded child. The runtime's other threads do not
// exist there, so nothing here may allocate in normal operation, block in the runtime, or be
// instrumented by the race detector.

// server is the state of the loop.
type server struct {
	control uintptr
	machine *program.Machine
	image   []byte // receives the image; mapped by this process itself
	strings []byte // id maps and tree of the request
	spared  []span // memory that clones do without
	head    [requestHead]byte

	home   uintptr // this process's own network namespace
	astray bool    // it can't get back there

	ended  bool  // the host is gone
	files  []int // received with the request, followed by those the server adds
	gate   [2]int32
	pidfd  int
	msg    unix.Msghdr
	iov    [2]unix.Iovec
	oob    []byte
	event  []byte
	rights []byte
	path   []byte
}

func newServer(control, home int, m *program.Machine) *server {
	return &server{
		control: uintptr(control),
		home:    uintptr(home),
		machine: m,
		image:   m.Buffer(),
		strings: make([]byte, 3*maxIDMap),
		files:   make([]int, 0, program.MaxFiles+2),
		oob:     make([]byte, unix.CmsgSpace(4*program.MaxFiles)),
		event:   make([]byte, program.EventSize),
		rights:  unix.UnixRights(0),
		path:    make([]byte, 0, 64),
	}
}

// exitConfused is the exit status of a loop that can't understand the host.
const exitConfused = 3

// loop greets the host and serves its requests one after the other. It returns 0 when the host is
// gone.
//
//go:norace
func (s *server) loop() (code int) {
	trim(s.spared)
	greeting := [1]byte{1}
	syscall.RawSyscall(unix.SYS_WRITE, s.control, uintptr(unsafe.Pointer(&greeting)), 1)
	for s.one() {
	}
	if !s.ended {
		return exitConfused
	}
	return 0
}

// one receives and serves a single request. It returns false when the host is gone or can't be
// understood.
//
//go:norace
func (s *server) one() bool {
	s.files = s.files[:0]
	r, ok := s.receive()
	if ok && len(s.files) > 0 {
		report := s.files[0]
		if errno := s.cloneIn(&r); errno != 0 {
			s.send(report, program.Refused, errno, -1)
		} else {
			s.send(report, program.Cloned, 0, s.pidfd)
			closeFD(s.pidfd)
		}
	} else {
		ok = false
	}
	for _, fd := range s.files {
		closeFD(fd)
	}
	return ok && !s.astray
}

// receive reads one request.
//
//go:norace
func (s *server) receive() (r view, ok bool) {
	n, ok := s.read(s.head[:], nil)
	if !ok || n != requestHead {
		return r, false
	}
	r, ok = parseHead(s.head[:])
	if !ok {
		return r, false
	}
	text, image := s.strings[:r.uid+r.gid+r.tree], s.image[:r.image]
	s.machine.Expect(len(image))
	for len(text)+len(image) > 0 {
		n, ok := s.read(text, image)
		if !ok {
			return r, false
		}
		k := min(n, len(text))
		text, image = text[k:], image[n-k:]
	}
	return r, true
}

// read receives at most as many bytes as fit, and keeps the descriptors that come with them:
// recvmsg(2), unix(7).
//
//go:norace
func (s *server) read(a, b []byte) (int, bool) {
	iov := s.iov[:0]
	for _, p := range [2][]byte{a, b} {
		if len(p) > 0 {
			iov = append(iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
		}
	}
	s.msg = unix.Msghdr{Iov: &iov[0], Control: &s.oob[0]}
	s.msg.SetControllen(len(s.oob))
	s.msg.Iovlen = uint64(len(iov))
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, s.control, uintptr(unsafe.Pointer(&s.msg)), unix.MSG_CMSG_CLOEXEC)
		if errno == unix.EINTR {
			continue
		}
		if s.ended = errno != 0 || n == 0; s.ended {
			return 0, false
		}
		return int(n), s.keep()
	}
}

// keep takes the descriptors out of the control data, a list of struct cmsghdr, each followed by
// 32-bit numbers if it is SCM_RIGHTS.
//
//go:norace
func (s *server) keep() bool {
	oob := s.oob[:min(uint64(len(s.oob)), s.msg.Controllen)]
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		if h.Len < unix.SizeofCmsghdr || h.Len > uint64(len(oob)) {
			return false
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for fds := oob[unix.SizeofCmsghdr:h.Len]; len(fds) >= 4; fds = fds[4:] {
				fd := int(native.Uint32(fds))
				if len(s.files) == program.MaxFiles {
					closeFD(fd)
					return false
				}
				s.files = append(s.files, fd)
			}
		}
		oob = oob[min(uint64(len(oob)), (h.Len+7)&^7):]
	}
	return s.msg.Flags&unix.MSG_CTRUNC == 0
}

// cloneIn goes to the request's network namespace, if it has one, for the clone: setns(2).
//
//go:norace
func (s *server) cloneIn(r *view) syscall.Errno {
	if !r.net {
		return s.clone(r)
	}
	if len(s.files) < 2 {
		return unix.EBADMSG
	}
	last := len(s.files) - 1
	fd := s.files[last]
	s.files = s.files[:last]
	_, _, errno := syscall.RawSyscall(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET, 0)
	closeFD(fd)
	if errno != 0 {
		return errno
	}
	errno = s.clone(r)
	if _, _, e := syscall.RawSyscall(unix.SYS_SETNS, s.home, unix.CLONE_NEWNET, 0); e != 0 {
		s.astray = true
	}
	return errno
}

// clone makes the child, leaves its pidfd in s, and writes its id maps. The child waits for the
// maps: it reads from a pipe, the last of its descriptors.
//
//go:norace
func (s *server) clone(r *view) syscall.Errno {
	if r.tree > 0 {
		tree, _, errno := syscall.RawSyscall6(unix.SYS_OPEN_TREE, uintptr(atCWD), uintptr(unsafe.Pointer(&s.strings[r.uid+r.gid])),
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		s.files = append(s.files, int(tree))
	}
	newUser := r.flags&unix.CLONE_NEWUSER != 0
	if newUser {
		if _, _, errno := syscall.RawSyscall(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&s.gate)), unix.O_CLOEXEC, 0); errno != 0 {
			return errno
		}
		s.files = append(s.files, int(s.gate[0]))
		defer closeFD(int(s.gate[1]))
	}
	if err := s.machine.Load(s.image[:r.image], s.files); err != nil {
		return unix.EBADMSG
	}
	pid, pidfd, errno := s.machine.Clone(r.flags)
	if errno != 0 {
		return errno
	}
	s.pidfd = pidfd
	if !newUser {
		return 0
	}
	errno = s.writeMap(pid, "/uid_map", s.strings[:r.uid])
	if errno == 0 {
		errno = s.writeMap(pid, "/gid_map", s.strings[r.uid:r.uid+r.gid])
	}
	if errno != 0 {
		syscall.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(pidfd), uintptr(unix.SIGKILL), 0, 0, 0, 0)
		closeFD(pidfd)
		return errno
	}
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(s.gate[1]), uintptr(unsafe.Pointer(&s.event[0])), 1)
	return 0
}

var atCWD = unix.AT_FDCWD // a variable: the constant does not fit a uintptr

// writeMap writes an id map: user_namespaces(7).
//
//go:norace
func (s *server) writeMap(pid int, name string, content []byte) syscall.Errno {
	path := append(s.path[:0], "/proc/"...)
	var digits [20]byte
	i := len(digits)
	for ; pid > 0; pid /= 10 {
		i--
		digits[i] = byte('0' + pid%10)
	}
	path = append(append(append(path, digits[i:]...), name...), 0)
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(atCWD), uintptr(unsafe.Pointer(&path[0])), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if len(content) > 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&content[0])), uintptr(len(content)))
	}
	closeFD(int(fd))
	return errno
}

// send reports an event, with a descriptor if fd is not -1. It ignores an error: if the host is
// gone, there is nobody to tell.
//
//go:norace
func (s *server) send(socket int, k program.Kind, errno syscall.Errno, fd int) {
	program.PutEvent(s.event, k, errno)
	s.iov[0] = unix.Iovec{Base: &s.event[0], Len: uint64(len(s.event))}
	s.msg = unix.Msghdr{Iov: &s.iov[0]}
	s.msg.Iovlen = 1
	if fd >= 0 {
		native.PutUint32(s.rights[unix.SizeofCmsghdr:], uint32(fd))
		s.msg.Control = &s.rights[0]
		s.msg.SetControllen(len(s.rights))
	}
	syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(socket), uintptr(unsafe.Pointer(&s.msg)), unix.MSG_NOSIGNAL)
}

//go:norace
func closeFD(fd int) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
