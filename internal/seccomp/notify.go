//go:build linux

package seccomp

import (
	"cmp"
	"encoding/binary"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Notifying returns a filter that asks its listener in place of returning an errno by itself, so
// that the listener learns of each call that f refuses. The listener must answer with Decide of f.
// It has no flag TSYNC, which means nothing for a process of one thread and which the kernel
// does not take together with a listener.
func (f *Filter) Notifying() *Filter {
	n := &Filter{Flags: f.Flags&^unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, code: slices.Clone(f.code)}
	for i := range n.code {
		if ins := &n.code[i]; ins.Code == unix.BPF_RET|unix.BPF_K && ins.K&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
			ins.K = unix.SECCOMP_RET_USER_NOTIF
		}
	}
	return n
}

// Call is struct seccomp_data: a system call as a filter sees it.
type Call struct {
	Number uint32
	Arch   uint32
	At     uint64 // the instruction
	Args   [maxArgs]uint64
}

const unknown = "unknown"

// Own returns a call of this architecture by its name.
func Own(name string, args ...uint64) Call {
	a, err := archFor(runtime.GOARCH)
	if err != nil {
		return Call{}
	}
	c := Call{Number: a.numbers[name], Arch: a.audit}
	copy(c.Args[:], args)
	return c
}

// Name returns the name of a call of this architecture, or "unknown".
func (c Call) Name() string {
	if a, err := archFor(runtime.GOARCH); err == nil && c.Arch == a.audit {
		return cmp.Or(a.nameOf(c.Number), unknown)
	}
	return unknown
}

// Decide returns what the filter returns for a call. It knows the instructions that assemble emits,
// and returns KILL_PROCESS for others.
func (f *Filter) Decide(c Call) uint32 {
	data := unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c))
	var acc uint32
	for pc := 0; pc < len(f.code); pc++ {
		ins := f.code[pc]
		jump := func(taken bool) {
			if taken {
				pc += int(ins.Jt)
			} else {
				pc += int(ins.Jf)
			}
		}
		switch ins.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.NativeEndian.Uint32(data[ins.K:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= ins.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(ins.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == ins.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(acc >= ins.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > ins.K)
		case unix.BPF_RET | unix.BPF_K:
			return ins.K
		default:
			return unix.SECCOMP_RET_KILL_PROCESS
		}
	}
	return unix.SECCOMP_RET_KILL_PROCESS
}

// Allows reports whether the filter lets a call pass.
func (f *Filter) Allows(c Call) bool { return letsThrough(f.Decide(c)) }

// Errno returns the errno with which the filter refuses a call, and EPERM for one that it does not
// refuse in this way.
func (f *Filter) Errno(c Call) unix.Errno {
	if ret := f.Decide(c); ret&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		return unix.Errno(ret & unix.SECCOMP_RET_DATA)
	}
	return unix.EPERM
}

// Notification is a call that waits for an answer: struct seccomp_notif.
type Notification struct {
	ID     uint64
	Thread uint32 // that makes the call, as this process sees it
	_      uint32
	Call   Call
}

// Receive takes a notification from a listener. It does not wait: unix.EAGAIN means that there is
// none, and unix.ENOTCONN that no process has the filter any more (Linux 5.9). There must be no
// other receiver.
func Receive(listener int) (n Notification, err error) {
	ready := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	if _, err := unix.Poll(ready, 0); err != nil {
		return n, err
	}
	if ready[0].Revents&unix.POLLIN == 0 {
		if ready[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
			return n, unix.ENOTCONN
		}
		return n, unix.EAGAIN
	}
	err = ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
	return n, err
}

// Refuse makes the call of a notification fail. It never lets one go on.
func Refuse(listener int, id uint64, errno unix.Errno) error {
	answer := struct {
		id    uint64
		value int64
		errno int32
		flags uint32 // never SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}{id: id, errno: -int32(errno)}
	return ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer))
}

// Waits reports whether the call of a notification still waits, and thus its thread is the one that
// was named.
func Waits(listener int, id uint64) bool {
	return ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
