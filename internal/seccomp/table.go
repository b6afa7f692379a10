//go:build linux

package seccomp

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// architecture is what the compiler needs to know about one calling convention.
type architecture struct {
	oci     specs.Arch
	audit   uint32            // seccomp_data.arch, AUDIT_ARCH_* of linux/audit.h
	x32     bool              // shares its audit value with x32
	numbers map[string]uint32 // system calls by name, with the names of libseccomp's src/syscalls.csv
}

func archFor(goarch string) (*architecture, error) {
	switch goarch {
	case "amd64":
		return amd64(), nil
	case "arm64":
		return arm64(), nil
	}
	return nil, fmt.Errorf("seccomp on %s (only amd64 and arm64): %w", goarch, errors.ErrUnsupported)
}

var amd64 = sync.OnceValue(func() *architecture {
	a := &architecture{
		oci:     specs.ArchX86_64,
		audit:   uint32(arch.X86_64.ID),
		x32:     true,
		numbers: numbersOf(arch.X86_64),
	}
	a.numbers["uprobe"] = 336 // 6.18, x86 only
	return a
})

var arm64 = sync.OnceValue(func() *architecture {
	a := &architecture{
		oci:     specs.ArchAARCH64,
		audit:   uint32(arch.AARCH64.ID),
		numbers: numbersOf(arch.AARCH64),
	}
	// Three mistakes of the table's generator, which reads asm-generic/unistd.h. The call is
	// named newfstatat on 64-bit systems, also in profiles, and without it no program could
	// stat a file.
	delete(a.numbers, "fstatat")
	a.numbers["newfstatat"] = 79
	// This is no call, but the start of a range for other architectures.
	delete(a.numbers, "arch_specific_syscall")
	// The numbers from 403 to 423 are the calls with 64-bit times on 32-bit systems.
	maps.DeleteFunc(a.numbers, func(_ string, nr uint32) bool { return 403 <= nr && nr <= 423 })
	return a
})

// recent are the system calls that the tables of elastic/go-seccomp-bpf v1.6.0, made from Linux
// 6.15, lack. From 424 on, since Linux 5.1, a new call has the same number on all architectures
// (scripts/syscall.tbl and arch/x86/entry/syscalls/syscall_64.tbl in Linux).
var recent = map[string]uint32{
	"file_getattr":     468, // 6.17
	"file_setattr":     469, // 6.17
	"listns":           470, // 6.19
	"rseq_slice_yield": 471, // 7.0
}

func numbersOf(info *arch.Info) map[string]uint32 {
	numbers := make(map[string]uint32, len(info.SyscallNames)+len(recent))
	for name, nr := range info.SyscallNames {
		numbers[name] = uint32(nr)
	}
	maps.Copy(numbers, recent)
	return numbers
}

// foreign are names from libseccomp's src/syscalls.csv that exist only on architectures without a
// table here (mips, parisc, powerpc, riscv, s390 and m68k). Profiles for many architectures list
// them.
var foreign = []string{
	"atomic_barrier", "atomic_cmpxchg_32", "cachectl", "getpagesize", "multiplexer", "riscv_flush_icache",
	"riscv_hwprobe", "rtas", "s390_guarded_storage", "s390_pci_mmio_read", "s390_pci_mmio_write",
	"s390_runtime_instr", "s390_sthyi", "spu_create", "spu_run", "subpage_prot", "swapcontext", "switch_endian",
	"sync_file_range2", "sys_debug_setcontext", "syscall", "sysmips", "timerfd",
}

// knownSomewhere distinguishes a name of another architecture, which means nothing here, from a
// mistake.
func knownSomewhere(name string) bool {
	_, ok := allNames()[name]
	return ok
}

var allNames = sync.OnceValue(func() map[string]struct{} {
	names := map[string]struct{}{}
	for _, numbers := range []map[string]uint32{
		amd64().numbers, arm64().numbers,
		numbersOf(arch.I386), numbersOf(arch.X32), numbersOf(arch.ARM),
	} {
		for name := range numbers {
			names[name] = struct{}{}
		}
	}
	for _, name := range foreign {
		names[name] = struct{}{}
	}
	return names
})
