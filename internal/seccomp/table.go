//go:build linux

package seccomp

import (
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// architecture is what the compiler needs to know about one calling convention.
type architecture struct {
	oci     specs.Arch
	audit   uint32 // seccomp_data.arch, AUDIT_ARCH_* of linux/audit.h
	x32     bool   // shares its audit value with x32
	column  int    // of table
	once    sync.Once
	numbers map[string]uint32 // system calls by name, with the names of libseccomp's src/syscalls.csv
	named   sync.Once
	names   map[uint32]string // the same by number, once nameOf is called
}

var (
	x8664   = architecture{oci: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, x32: true, column: 1}
	aarch64 = architecture{oci: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, column: 2}
)

func archFor(goarch string) (*architecture, error) {
	switch goarch {
	case "amd64":
		return amd64(), nil
	case "arm64":
		return arm64(), nil
	}
	return nil, fmt.Errorf("seccomp on %s (only amd64 and arm64): %w", goarch, errors.ErrUnsupported)
}

func amd64() *architecture { return x8664.read() }

func arm64() *architecture { return aarch64.read() }

// read reads the architecture's numbers from table if they were not read before.
func (a *architecture) read() *architecture {
	a.once.Do(func() {
		a.numbers = map[string]uint32{}
		for call := range calls() {
			if nr, err := strconv.ParseUint(call[a.column], 10, 32); err == nil {
				a.numbers[call[0]] = uint32(nr)
			}
		}
	})
	return a
}

// nameOf returns the name of a call, or "" if it has none.
func (a *architecture) nameOf(number uint32) string {
	a.named.Do(func() {
		a.names = map[uint32]string{}
		for name, nr := range a.numbers {
			a.names[nr] = name
		}
	})
	return a.names[number]
}

// table has a line for each system call that golang.org/x/sys/unix knows: its name, and its number
// on amd64 and on arm64, or "-" if it exists only elsewhere. It is text that is read when it is
// needed: maps would be made at the start of every program that imports this package, and the
// constants of x/sys are those of one architecture. TestTableIsCurrent writes it.
//
//go:embed table.txt
var table string

// calls returns the lines of table.
func calls() iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(table) {
			if !yield(strings.Fields(line)) {
				return
			}
		}
	}
}

// foreign are names from libseccomp's src/syscalls.csv that table lacks: calls of architectures
// that it was not made of (mips, parisc, powerpc, riscv, s390 and m68k), and those of arm alone.
// Profiles for many architectures list them.
var foreign = []string{
	"atomic_barrier", "atomic_cmpxchg_32", "breakpoint", "cachectl", "cacheflush", "get_tls", "getpagesize", "multiplexer",
	"riscv_flush_icache", "riscv_hwprobe", "rtas", "s390_guarded_storage", "s390_pci_mmio_read", "s390_pci_mmio_write",
	"s390_runtime_instr", "s390_sthyi", "set_tls", "spu_create", "spu_run", "subpage_prot", "swapcontext", "switch_endian",
	"sync_file_range2", "sys_debug_setcontext", "syscall", "sysmips", "timerfd", "usr26", "usr32",
}

// knownSomewhere distinguishes a name of another architecture, which means nothing here, from a
// mistake.
func knownSomewhere(name string) bool {
	for call := range calls() {
		if call[0] == name {
			return true
		}
	}
	return slices.Contains(foreign, name)
}
