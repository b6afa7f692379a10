package program

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows runs between clone and exec, in a child of a process with several threads: only this
// thread exists, locks may be held forever, the stack can't grow and nothing may be allocated. So:
// raw system calls only, no stack check, no race detector, no pointer check.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

// rawCall makes a system call. The result is that of the kernel: minus an errno, if that is it.
// Unlike package syscall's, it is next to the code that uses it, which saves clones page faults.
func rawCall(num, a, b, c, d, e, f uintptr) uintptr

// spawn makes a child with clone3(2), which calls begin, an entry, with s on a stack of its own. Not
// by name: to functions that assembly names the compiler adds one that the race detector watches.
//
//go:noescape
func spawn(args *cloneArgs, s *state, begin uintptr) uintptr

// entry returns the address of a function's code.
//
//go:nosplit
//go:norace
//go:nocheckptr
func entry(f func(*state)) uintptr { return **(**uintptr)(unsafe.Pointer(&f)) }

// cloneArgs are the first fields of clone3(2)'s struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

const maxErrno = 4095

// sys makes a system call, with an errno as package syscall has it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func sys(num, a, b, c, d, e, f uintptr) (uintptr, syscall.Errno) {
	r := rawCall(num, a, b, c, d, e, f)
	if r > ^uintptr(maxErrno) {
		return ^uintptr(0), syscall.Errno(-r)
	}
	return r, 0
}

// Clone makes a child with clone3(2) and runs the loaded program in it. In the parent it returns
// the child's pid and a pidfd of it.
//
//go:nosplit
//go:norace
func (m *Machine) Clone(flags uint64) (pid, pidfd int, errno syscall.Errno) {
	// What is written after the clone is not in the machine, whose page would be copied, but on
	// a stack that nothing moves in this function.
	var made int32
	args := cloneArgs{
		// The kernel resets the Go runtime's signal handlers, which saves 64 calls here. A
		// program's first calls do the rest.
		flags:      flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(&made))),
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(m.state.stacks + stackSize),
		stackSize:  stackSize,
	}
	if !UsesThread {
		args.flags |= unix.CLONE_SETTLS
		args.tls = uint64(uintptr(unsafe.Pointer(m.state)))
	}
	// No signal may find the Go runtime's handlers in the child.
	all, before := ^uint64(0), uint64(0)
	setMask(&all, &before)
	if m.state.stays {
		stay()
	}
	r := spawn(&args, m.state, entry(execute))
	if m.state.stays && roam() != 0 {
		m.stuck = true
	}
	setMask(&before, nil)
	if r > ^uintptr(maxErrno) {
		return -1, -1, syscall.Errno(-r)
	}
	return int(r), int(made), 0
}

// setMask blocks exactly these signals. If before is not nil, it is set to those that were blocked.
//
//go:nosplit
//go:norace
func setMask(signals, before *uint64) {
	_, _ = sys(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(signals)), uintptr(unsafe.Pointer(before)), unsafe.Sizeof(*signals), 0, 0)
}

// Fork makes a child in which f runs, with this thread as the only one, and which exits with f's
// result. f must neither allocate much nor block in the runtime, because the child has no collector
// and no scheduler. The child's end sends no signal, so that a parent which ignores SIGCHLD still
// gets its status: wait with WALL.
//
//go:norace
func Fork(f func() (code int)) (pid int, errno syscall.Errno) {
	args := &cloneArgs{flags: unix.CLONE_CLEAR_SIGHAND}
	runtimeBeforeFork()
	r, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	runtimeAfterFork() // in the child too: f may use the whole stack
	if e != 0 || r != 0 {
		return int(r), e
	}
	exit(uintptr(f()))
	return 0, 0
}

// execute runs the three parts, and the Init part of the program that the command received, which
// must not report anything. It does not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func execute(s *state) {
	runPart(s, Setup)
	if s.first[Command+1] == s.first[Command] {
		report(s, Finished)
		exit(0)
	}
	// The command shares this process's memory, except for the stack, while this process waits
	// for it to exec or exit.
	s.clone = cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK, exitSignal: uint64(unix.SIGCHLD), stack: uint64(s.stacks), stackSize: stackSize}
	pid := spawn(&s.clone, s, s.command)
	if pid > ^uintptr(maxErrno) {
		s.pc = s.first[Command]
		fail(s, syscall.Errno(-pid))
	}
	// The command has used both states. From here on only what it never writes, or writes for
	// this purpose, is read.
	passOn(s)
	passOn(s.next)
	if s.stays {
		_ = roam() // where it fails, PID 1 reaps on one
	}
	runPart(s, Init)
	runPart(s.next, Init)
	reap(s, pid)
}

// runCommand runs the command's part and then that of the program that it receives, if it asks for
// one. It does not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runCommand(s *state) {
	runPart(s, Command)
	if s.receives {
		s.pc-- // the call that reports this is the last
		if s.stays {
			if errno := roam(); errno != 0 {
				fail(s, errno)
			}
		}
		next, errno := receive(s)
		if errno != 0 {
			fail(s, errno)
		}
		runPart(next, Command)
	}
	exit(127)
}

// passOn ends init if the command failed, after reporting the failure if the command could not.
//
//go:nosplit
//go:norace
//go:nocheckptr
func passOn(s *state) {
	if s.failed == unsaid {
		report(s, Failed)
	}
	if s.failed != 0 {
		exit(127)
	}
}

// runPart makes the calls of one part in order.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runPart(s *state, part Part) {
	end := s.first[part+1]
	for s.pc = s.first[part]; s.pc < end; s.pc++ {
		o := (*op)(unsafe.Add(s.image, headerSize+s.pc*opSize))
		r, errno := call(s, o)
		if errno != 0 {
			if o.flags&flagTry != 0 && (errno == syscall.ENOENT || errno == syscall.ENOTDIR || errno == syscall.EACCES) {
				if errno == syscall.EACCES {
					s.tried = errno
				}
				continue
			}
			if o.flags&flagIgnore == 0 {
				fail(s, errno)
			}
			// r is -1, so that a call that uses the slot gets no other descriptor.
		}
		if r == 0 && o.flags&flagPositive != 0 {
			fail(s, syscall.ECONNRESET)
		}
		if o.flags&flagAll != 0 && r != uintptr(o.wanted()) {
			fail(s, syscall.ENOSPC)
		}
		if o.out != NoSlot {
			*slot(s, uint64(o.out)) = int32(r)
		}
	}
}

// wanted returns how many bytes a call is asked for: write(2), sendfile(2).
//
//go:nosplit
//go:norace
//go:nocheckptr
func (o *op) wanted() int32 {
	if o.num == unix.SYS_SENDFILE {
		return o.args[3]
	}
	return o.args[2]
}

// maxAgain bounds how often a path with a ".." in it is looked up again because a process on this
// machine renames or mounts something. A run may do that without end: openat2(2), EAGAIN.
const maxAgain = 100_000

//go:nosplit
//go:norace
//go:nocheckptr
func call(s *state, o *op) (uintptr, syscall.Errno) {
	switch o.num {
	case callTried:
		if s.tried == 0 { // also if there was no place to try
			return 0, syscall.ENOENT
		}
		return 0, s.tried
	case callFault:
		return ^uintptr(0), syscall.Errno(arg(s, o, 0))
	case callPoke:
		*(*uint32)(unsafe.Add(s.image, s.data+arg(s, o, 0))) = uint32(arg(s, o, 1))
		return 0, 0
	case callPeek:
		return uintptr(*(*int32)(unsafe.Add(s.image, s.data+arg(s, o, 0)))), 0
	case callPass:
		if s.passed == MaxPassed {
			return ^uintptr(0), syscall.EMFILE
		}
		s.passed++
		*slot(s.next, uint64(Report)+s.passed) = int32(arg(s, o, 0))
		return 0, 0
	case callReceive:
		s.receives = true
		return 0, 0
	}
	for again := 0; ; again++ {
		r, errno := sys(uintptr(o.num), arg(s, o, 0), arg(s, o, 1), arg(s, o, 2), arg(s, o, 3), arg(s, o, 4), arg(s, o, 5))
		if errno != syscall.EAGAIN || o.num != unix.SYS_OPENAT2 || again == maxAgain {
			return r, errno
		}
	}
}

// arg reads an argument without an index check, which could panic.
//
//go:nosplit
//go:norace
//go:nocheckptr
func arg(s *state, o *op, i uintptr) uintptr {
	v := *(*int32)(unsafe.Add(unsafe.Pointer(&o.args), i*4))
	switch *(*uint8)(unsafe.Add(unsafe.Pointer(&o.kinds), i)) {
	case kindSlot:
		v = *slot(s, uint64(v))
	case kindData:
		return uintptr(s.image) + s.data + uintptr(v)
	}
	return uintptr(v)
}

//go:nosplit
//go:norace
//go:nocheckptr
func slot(s *state, i uint64) *int32 {
	return (*int32)(unsafe.Add(unsafe.Pointer(&s.slots), i*4))
}

// release lets a process go on that has stopped because it made init its tracer (PTRACE_TRACEME),
// as nobody traces it: ptrace(2). What it has stopped for, the end of an exec apart, it gets.
//
//go:nosplit
//go:norace
func release(pid uintptr, status uint32) {
	signal := uintptr(status >> 8 & 0xff)
	if signal == uintptr(unix.SIGTRAP) {
		signal = 0
	}
	sys(unix.SYS_PTRACE, unix.PTRACE_DETACH, pid, 0, signal, 0, 0)
}

// reap is the rest of init's life: it reaps orphans until the command ends, reports that, and
// exits, which kills everything that is left in the run.
//
//go:nosplit
//go:norace
//go:nocheckptr
func reap(s *state, command uintptr) {
	for {
		pid, errno := sys(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&s.status)), unix.WALL, uintptr(unsafe.Pointer(&s.rusage)), 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			exit(126)
		}
		if s.status&0xff == 0x7f {
			release(pid, s.status)
		} else if pid == command {
			break
		}
	}
	s.event.status = s.status
	s.event.user = int64(s.rusage.Utime.Sec)*1e6 + int64(s.rusage.Utime.Usec)
	s.event.system = int64(s.rusage.Stime.Sec)*1e6 + int64(s.rusage.Stime.Usec)
	s.event.maxrss = int64(s.rusage.Maxrss)
	for { // all other processes have become children of init
		pid, errno := sys(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&s.status)), unix.WALL|unix.WNOHANG, 0, 0, 0)
		if errno == syscall.ECHILD {
			s.event.index = alone
		}
		if errno != 0 || pid == 0 {
			break
		}
	}
	report(s, Exited)
	exit(0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func fail(s *state, errno syscall.Errno) {
	s.failed = unsaid
	s.event.index = s.base + uint32(s.pc)
	s.event.errno = uint32(errno)
	if report(s, Failed) {
		s.failed = said
	}
	exit(127)
}

// Who reported a failure. If a seccomp filter kept the command's process from reporting it, init
// does.
const (
	said = 1 + iota
	unsaid
)

//go:nosplit
//go:norace
//go:nocheckptr
func report(s *state, k Kind) bool {
	s.event.kind = uint32(k)
	_, errno := sys(unix.SYS_SENDTO, uintptr(*slot(s, uint64(Report))), uintptr(unsafe.Pointer(&s.event)), EventSize, unix.MSG_NOSIGNAL, 0, 0)
	return errno == 0
}

// exit ends the process, even under a seccomp filter that refuses the call: the clone has reset the
// signal handlers, so a fault ends it.
//
//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		rawCall(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
		*nowhere = 0
	}
}

var nowhere *byte
