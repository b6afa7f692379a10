package program

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The processes of a run's set-up work one after the other. Where they stay on one processor, none
// is waited for until another processor has woken, and the kernel need not tell that of each page
// that they give back. Until its command begins, a run does, unless another one began a moment ago,
// or somebody has taken processors from the fork server. docs/RATIONALE.md has what that gives.

// crowded is within how many nanoseconds of another a run begins that does not stay: about what a
// set-up takes. Else all that begin at a time would be where the fork server is.
const crowded = 2_000_000

//go:norace
func monotonic() int64 {
	var t unix.Timespec
	_, _ = sys(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&t)), 0, 0, 0, 0)
	return t.Nano()
}

// processors has a bit for each: sched_setaffinity(2). On a machine with more, nothing stays.
type processors [128]uint8

// mayStay reports whether this thread, which has these processors, may be given all at the end of
// its stay: if they are all those of its cpuset, which the kernel heeds in any case. So it goes on
// getting those that are added to that. Before Linux 6.2 a cpuset gives a thread that joins it all
// of its own, even where that was refused others.
//
//go:norace
func mayStay(has *processors) bool {
	var all processors
	if roam() != 0 || affinity(unix.SYS_SCHED_GETAFFINITY, &all) != 0 {
		return false
	}
	if all != *has {
		_ = affinity(unix.SYS_SCHED_SETAFFINITY, has)
		return false
	}
	return true
}

//go:nosplit
//go:norace
//go:nocheckptr
func affinity(num uintptr, set *processors) syscall.Errno {
	_, errno := sys(num, 0, unsafe.Sizeof(*set), uintptr(unsafe.Pointer(set)), 0, 0, 0)
	return errno
}

// stay keeps this thread where it is, and with it what it clones.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stay() {
	var here uint32
	var one processors
	_, errno := sys(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&here)), 0, 0, 0, 0, 0)
	if errno == 0 && uintptr(here/8) < unsafe.Sizeof(one) {
		*(*uint8)(unsafe.Add(unsafe.Pointer(&one), here/8)) = 1 << (here % 8)
		_ = affinity(unix.SYS_SCHED_SETAFFINITY, &one)
	}
}

// roam undoes stay: it gives this thread all processors of its cpuset.
//
//go:nosplit
//go:norace
//go:nocheckptr
func roam() syscall.Errno {
	var all processors
	for i := uintptr(0); i < unsafe.Sizeof(all); i++ { // no index, whose check takes stack
		*(*uint8)(unsafe.Add(unsafe.Pointer(&all), i)) = ^uint8(0)
	}
	return affinity(unix.SYS_SCHED_SETAFFINITY, &all)
}
