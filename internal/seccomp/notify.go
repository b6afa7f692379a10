//go:build linux

package seccomp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Notifying returns a filter that asks its listener in place of returning an errno by itself, so
// that the listener learns of each call that f refuses, and that asks too before it lets a call
// pass that names a path (PathCalls). The listener must answer with Decide of f: Continue if that
// is ALLOW, Refuse otherwise.
//
// No process that has the filter can have another listener, not even when this one is closed: its
// answer would take the place of this one's, and its filter's that of this one (linux/seccomp.h,
// "the most recently added filter takes precedence").
//
// It has no flag TSYNC, which means nothing for a process of one thread and which the kernel
// does not take together with a listener.
func (f *Filter) Notifying() (*Filter, error) {
	a, err := archFor(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	n := &Filter{Flags: f.Flags&^unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, code: slices.Clone(f.code)}
	end := len(n.code)
	for i := range n.code {
		switch ins := &n.code[i]; {
		case ins.Code != unix.BPF_RET|unix.BPF_K:
		case ins.K&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO:
			ins.K = unix.SECCOMP_RET_USER_NOTIF
		case ins.K == unix.SECCOMP_RET_ALLOW:
			// It goes on behind the end.
			*ins = unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(end - i - 1)}
		}
	}
	n.code = append(n.code, assemble(ofAllowed(a), a)...)
	if len(n.code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile: %d instructions with those that ask, the kernel takes %d: use fewer rules with conditions", len(n.code), unix.BPF_MAXINSNS)
	}
	return n, nil
}

// ofAllowed is what a notifying filter does about calls that the filter allows.
func ofAllowed(a *architecture) *policy {
	has := func(arg int, bits uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: uint(arg), Op: specs.OpMaskedEqual, Value: bits, ValueTwo: bits}}
	}
	p := &policy{verdicts: map[uint32]verdict{}, other: unix.SECCOMP_RET_ALLOW, unknown: unix.SECCOMP_RET_ALLOW}
	for name, c := range PathCalls {
		if nr, ok := a.numbers[name]; ok {
			v := verdict{otherwise: unix.SECCOMP_RET_USER_NOTIF}
			if c.MayBeEmpty() {
				v.rules = []rule{{has(c.Flags, unix.AT_EMPTY_PATH), unix.SECCOMP_RET_ALLOW}}
			}
			p.verdicts[nr] = v
		}
	}
	p.verdicts[a.numbers["seccomp"]] = verdict{
		rules:     []rule{{has(1, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER), unix.SECCOMP_RET_ERRNO | uint32(unix.EBUSY)}},
		otherwise: unix.SECCOMP_RET_ALLOW,
	}
	return p
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

// Refuse makes the call of a notification fail.
func Refuse(listener int, id uint64, errno unix.Errno) error {
	return respond(listener, response{id: id, errno: -int32(errno)})
}

// Continue lets the call of a notification pass (Linux 5.5). That is safe only if what the filter
// returns for the call's registers, as they are in the notification, is ALLOW: the registers stay
// as they are until the call is made, while memory does not.
func Continue(listener int, id uint64) error {
	return respond(listener, response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

func respond(listener int, r response) error {
	return ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

// Waits reports whether the call of a notification still waits, and thus its thread is the one that
// was named.
func Waits(listener int, id uint64) bool {
	return ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

// ioctl makes a request again that a signal came before, such as those by which the runtime
// preempts goroutines: the lock of a listener is waited for interruptibly.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		switch _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
