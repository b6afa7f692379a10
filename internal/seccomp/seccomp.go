//go:build linux

// Package seccomp turns an OCI seccomp profile into the classic BPF program that seccomp(2) loads,
// in pure Go and without libseccomp.
//
// # What a profile means
//
// The words are those of the OCI runtime specification (config-linux.md, "Seccomp") and the details
// those of runc with libseccomp, unless a call would be let through that a rule refuses:
//
//   - A rule matches a system call when the name and all conditions on its arguments match. If one
//     rule has several conditions on the same argument, each of them is a rule of its own, as in
//     runc (opencontainers/runc issue 2735).
//   - Of all rules that match, the strictest action wins, in the order the kernel itself uses for
//     stacked filters (seccomp(2)): KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, TRACE, LOG, ALLOW;
//     between equals, the one listed first. So the order of a profile does not matter, and a
//     profile may allow ioctl and refuse one request of it. (libseccomp drops a conditional rule
//     beside an unconditional one.)
//   - If none matches, the default action does. A system call that is newer than the tables here
//     gets ENOSYS instead, so that C libraries fall back to what is known, unless the default lets
//     calls through. Like runc, which does so above the highest call in the profile.
//   - Conditions compare 64 bits. For SCMP_CMP_MASKED_EQ, value is the mask and valueTwo the
//     expected bits; bits of valueTwo outside the mask are ignored, as in libseccomp.
//   - Names that only other architectures know are skipped. Names known nowhere are skipped in
//     rules that allow and are an error in every other rule.
//
// Only the native calling convention is served. Others that a profile lists (x86 and x32 on amd64,
// 32-bit arm on arm64) are refused with ENOSYS, whatever the profile says: a filter per convention
// would have to be right three times, and 32-bit x86 hides socket arguments behind socketcall(2),
// where a filter can't see them.
//
// A profile that can't be expressed is an error, never a weaker filter.
package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Filter is a compiled profile. It is immutable and safe for concurrent use.
type Filter struct {
	// Flags is the second argument of seccomp(SECCOMP_SET_MODE_FILTER): those of
	// SECCOMP_FILTER_FLAG_LOG, _SPEC_ALLOW and _TSYNC that the profile asks for. With TSYNC and
	// more than one thread, a positive result of seccomp(2) is also a failure.
	Flags uint

	code []unix.SockFilter
}

// Len returns the number of instructions, for sock_fprog.len. It is at most 4096.
func (f *Filter) Len() int { return len(f.code) }

// Instructions returns a copy of the program.
func (f *Filter) Instructions() []unix.SockFilter { return slices.Clone(f.code) }

// Bytes returns a copy of the program as an array of struct sock_filter, for sock_fprog.filter.
// Loading it takes no_new_privs, or CAP_SYS_ADMIN in the user namespace of the caller.
func (f *Filter) Bytes() []byte {
	b := make([]byte, 0, 8*len(f.code))
	for _, ins := range f.code {
		// Both supported architectures are little-endian under Linux and Go.
		b = binary.LittleEndian.AppendUint16(b, ins.Code)
		b = append(b, ins.Jt, ins.Jf)
		b = binary.LittleEndian.AppendUint32(b, ins.K)
	}
	return b
}

// Compile assembles the filter of a profile for an architecture, "amd64" or "arm64". It is pure and
// deterministic, and can compile for another architecture than its own. An error names the rule of
// the profile that can't be expressed; it wraps errors.ErrUnsupported if this package does not
// support the rule.
func Compile(p *specs.LinuxSeccomp, goarch string) (*Filter, error) {
	a, err := archFor(goarch)
	if err != nil {
		return nil, err
	}
	pol, err := newPolicy(p, a)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	flags, err := filterFlags(p.Flags)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	code := assemble(pol, a)
	if len(code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile: %d instructions, the kernel takes %d: use fewer rules with conditions",
			len(code), unix.BPF_MAXINSNS)
	}
	return &Filter{Flags: flags, code: code}, nil
}

// flagTSync is not a constant of the runtime specification, but profiles use it, and runc knows it
// too.
const flagTSync = "SECCOMP_FILTER_FLAG_TSYNC"

func filterFlags(names []specs.LinuxSeccompFlag) (uint, error) {
	var flags uint
	for _, name := range names {
		switch name {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case flagTSync:
			flags |= unix.SECCOMP_FILTER_FLAG_TSYNC
		case specs.LinuxSeccompFlagWaitKillableRecv:
			// The kernel takes it only together with a listener.
			return 0, fmt.Errorf("flag %s needs a listener: %w", name, errNotify())
		default:
			return 0, fmt.Errorf("unknown flag %q", name)
		}
	}
	return flags, nil
}

func errNotify() error {
	return fmt.Errorf("user notification (SCMP_ACT_NOTIFY, listenerPath): %w", errors.ErrUnsupported)
}
