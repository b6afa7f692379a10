package forkserver

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// A clone of the fork server executes a program and nothing else. It needs this binary's own code
// and data, and the program's memory. Copying the page tables of the rest would take most of the
// time of a clone.

// span is a range of addresses.
type span struct{ start, end uintptr }

// mapping is a line of /proc/pid/maps: proc(5).
type mapping struct {
	span
	file string // device and inode, "" for memory
	name string
}

// spare returns the mappings that a clone does not need. It keeps the mappings that hold the
// addresses in keep, and that of libc's data of the thread if clones use it or the kernel writes to
// it.
func spare(keep ...uintptr) ([]span, error) {
	if program.UsesThread || writesToThread() {
		var head, size uintptr
		if _, _, errno := syscall.RawSyscall(unix.SYS_GET_ROBUST_LIST, 0, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&size))); errno != 0 || head == 0 {
			return nil, nil
		}
		keep = append(keep, head)
	}
	all, err := mappings()
	if err != nil {
		return nil, err
	}
	return spareOf(all, reflect.ValueOf(serve).Pointer(), keep), nil
}

// NoThreadData is the variable of the environment by which glibc does without rseq(2), if a fork
// server starts with it.
const NoThreadData = "GLIBC_TUNABLES=glibc.pthread.rseq=0"

// writesToThread reports whether libc has asked the kernel to tell the thread its CPU, in memory of
// libc's: rseq(2). A thread can ask only once.
func writesToThread() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const size, unregister = 32, 1
	at := (uintptr(unsafe.Pointer(&threadData)) + size - 1) &^ (size - 1)
	if _, _, errno := syscall.RawSyscall6(unix.SYS_RSEQ, at, size, 0, 0, 0, 0); errno != 0 {
		return errno != unix.ENOSYS
	}
	syscall.RawSyscall6(unix.SYS_RSEQ, at, size, unregister, 0, 0, 0)
	return false
}

var threadData [64]byte

// spareOf returns all mappings except those of the file that code is in with the zeroed data behind
// it, and those that hold an address in keep. The executor uses no variable in the zeroed data, but
// a build for coverage counts there. Older kernels (6.1) call the zeroed data a heap, because it is
// next to the heap (fs/proc/task_mmu.c).
func spareOf(all []mapping, code uintptr, keep []uintptr) (spared []span) {
	binary := ""
	for _, m := range all {
		if m.contains(code) {
			binary = m.file
		}
	}
	var last span // the last one of the binary
	for _, m := range all {
		own := binary != "" && m.file == binary || m.file == "" && (m.name == "" || m.name == "[heap]") && m.start == last.end
		for _, k := range keep {
			own = own || m.contains(k)
		}
		switch {
		case !own:
			spared = append(spared, m.span)
		case m.file == binary:
			last = m.span
		}
	}
	return spared
}

func (s span) contains(a uintptr) bool { return a >= s.start && a < s.end }

func mappings() (all []mapping, err error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("/proc/self/maps: %q", lines.Text())
		}
		var m mapping
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.start, &m.end); err != nil {
			return nil, fmt.Errorf("/proc/self/maps: %q: %w", lines.Text(), err)
		}
		if fields[4] != "0" {
			m.file = fields[3] + " " + fields[4]
		}
		if len(fields) > 5 {
			m.name = fields[5]
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// trim keeps the spared mappings out of clones: madvise(2), MADV_DONTFORK.
//
//go:norace
func trim(spared []span) {
	for _, s := range spared {
		dontFork(s.start, s.end)
	}
}

//go:norace
func dontFork(start, end uintptr) {
	if start < end {
		// If this fails, clones take longer.
		syscall.RawSyscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTFORK)
	}
}
