package queue

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A fence kills this process when it has not been able to end in time what it holds. It is a timer
// of the kernel, which also a process has that is stopped (SIGSTOP), traced, or starved: its
// SIGKILL ends this process, and with it its cells and all their runs. It counts the time that the
// machine is suspended.
type fence struct {
	mu    sync.Mutex
	timer int32
	armed bool
	until map[string]time.Duration
}

// sigevent is that of sigevent(7), of the 64 bytes that the kernel reads.
type sigevent struct {
	value        uint64
	signo        int32
	notify       int32 // 0: SIGEV_SIGNAL
	unusedFields [48]byte
}

// clockNow returns the time since the machine's start, with that in which it was suspended.
func clockNow() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("queue: clock_gettime: " + err.Error()) // Linux has this clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

// errInit is the error of a process that no signal from its own pid namespace kills, so that the
// fence would not (pid_namespaces(7), and sig_task_ignored in the kernel's signal.c).
var errInit = errors.New("a worker of a shared queue can't be PID 1 of a container, which the kernel's timer does not kill: " +
	"have an init there (docker run --init, shareProcessNamespace in a pod, init in a Nomad task)")

// newFence makes a fence, which does nothing unless it is armed.
func newFence(armed bool) (*fence, error) {
	f := &fence{armed: armed, until: map[string]time.Duration{}}
	if !armed {
		return f, nil
	}
	if os.Getpid() == 1 {
		return nil, errInit
	}
	event := sigevent{signo: int32(unix.SIGKILL)}
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&f.timer))); errno != 0 {
		return nil, fmt.Errorf("timer_create(CLOCK_BOOTTIME): %w", errno)
	}
	return f, nil
}

// hold lets what has the id live until then, a time of clockNow.
func (f *fence) hold(id string, until time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until[id] = until
	return f.set()
}

// release says that nothing of what has the id lives any more.
func (f *fence) release(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.until, id)
	if err := f.set(); err != nil {
		panic("queue: " + err.Error()) // it would kill this process for nothing
	}
}

func (f *fence) set() error {
	if !f.armed {
		return nil
	}
	first := time.Duration(math.MaxInt64)
	for _, t := range f.until {
		first = min(first, t)
	}
	var at [2]unix.Timespec // interval, value; a value of 0 disarms
	if len(f.until) > 0 {
		at[1] = unix.NsecToTimespec(int64(max(first, 1)))
	}
	const absolute = 1 // TIMER_ABSTIME
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(f.timer), absolute, uintptr(unsafe.Pointer(&at)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("timer_settime: %w", errno)
	}
	return nil
}

func (f *fence) close() {
	if f.armed {
		// Fails for a wrong timer alone.
		_, _, _ = unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(f.timer), 0, 0)
	}
}
