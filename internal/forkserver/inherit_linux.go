package forkserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process passes more to its children than a run may have. A service may have been started with a
// raised priority or with ignored signals, and every run would inherit them.

// closeLeaked closes this program's own file, and every descriptor that this process was executed
// with though nobody gave it that, such as a directory of the host that a container runtime has
// left open (CVE-2024-21626). What was opened since is close-on-exec, as all is that Go opens, and
// stays: Go's runtime may use it.
func closeLeaked() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	unix.Close(ControlFD + 1)
	var errs []error
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= ControlFD+2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	return errors.Join(errs...)
}

// DropPriority takes every priority above the default from a process that has one thread, and so
// from what it starts. With 0 it is the calling thread, from which all runs are cloned, and its
// process. A priority below the default stays.
func DropPriority(pid int) error {
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		return fmt.Errorf("sched_getattr: %w", err)
	}
	if attr.Policy == unix.SCHED_FIFO || attr.Policy == unix.SCHED_RR || attr.Policy == unix.SCHED_DEADLINE {
		if err := unix.SchedSetAttr(pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
			return fmt.Errorf("sched_setattr: %w", err)
		}
	}
	const normal = 20 // the system call returns 20 - nice: getpriority(2)
	if priority, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || priority > normal {
		if err := unix.Setpriority(unix.PRIO_PROCESS, pid, 0); err != nil {
			return fmt.Errorf("setpriority: %w", err)
		}
	}
	const thread, classShift, realTime = 1, 13, 1 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_SHIFT, IOPRIO_CLASS_RT: linux/ioprio.h
	if io, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, thread, uintptr(pid), 0); errno == 0 && io>>classShift == realTime {
		if _, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_SET, thread, uintptr(pid), 0); errno != 0 {
			return fmt.Errorf("ioprio_set: %w", errno)
		}
	}
	of := "self"
	if pid != 0 {
		of = strconv.Itoa(pid)
	}
	return dropProtection("/proc/" + of + "/oom_score_adj")
}

// dropProtection makes the kernel choose this process like any other when memory is short. With
// -1000, nothing in a run that reaches its limit could be killed.
func dropProtection(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if score, err := strconv.Atoi(string(bytes.TrimSpace(b))); err != nil || score >= 0 {
		return err
	}
	return os.WriteFile(name, []byte("0"), 0)
}

// heedSignals resets ignored signals to their default action, since exec passes ignored ones on.
// The Go runtime leaves some as they were at the start.
func heedSignals() error {
	const maskSize, ignore = 8, 1                 // SIG_IGN
	type action struct{ handler, _, _, _ uint64 } // struct sigaction: linux/signal_types.h
	for n := uintptr(1); n <= 64; n++ {
		var now, none action
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, 0, uintptr(unsafe.Pointer(&now)), maskSize, 0, 0); errno != 0 || now.handler != ignore {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&none)), 0, maskSize, 0, 0); errno != 0 {
			return fmt.Errorf("rt_sigaction(%v): %w", unix.Signal(n), errno)
		}
	}
	return nil
}
