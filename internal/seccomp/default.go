//go:build linux

package seccomp

import (
	"fmt"
	"maps"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Default returns the default profile: Docker's (github.com/moby/profiles/seccomp), resolved for this
// architecture, this kernel and the given capabilities ("CAP_NET_RAW"), and a few refusals of our own.
//
// Docker's profile is a list of what is allowed, about 300 calls; the rest fails with EPERM. Among the rest,
// whatever the capabilities: io_uring, userfaultfd, the kernel's keyrings, kexec, and sockets of the families
// AF_VSOCK and AF_ALG. Without the capability that each of them is about, also: bpf, perf_event_open,
// open_by_handle_at, loading modules, mounting, setns, unshare and clone with namespace flags, and clone3
// fails with ENOSYS, since its flags are in memory, where a filter can't look.
//
// Refused beyond Docker's, whatever the capabilities: the ioctl requests TIOCSTI and TIOCLINUX, which
// type commands into the terminal that a run may share with its caller (CVE-2017-5226, CVE-2023-28100), and
// netlink sockets of the protocol NETLINK_USERSOCK. The
// calls above that no capability unlocks are refused by rules of their own too, so that a later
// version of Docker's list can't open them.
//
// The profile is the caller's to change. It relies on this package's precedence, the strictest rule wins.
func Default(caps []string) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: slices.Clone(caps)}},
	})
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	p.Syscalls = append(p.Syscalls, refusals()...)
	return p, nil
}

func refusals() []specs.LinuxSyscall {
	eperm := uint(unix.EPERM)
	rules := []specs.LinuxSyscall{
		{
			Names: []string{
				// 60% of the exploits that Google's kCTF bounty saw up to 2023 used it, and it opens files and
				// sockets without the system calls that a filter sees.
				"io_uring_setup", "io_uring_enter", "io_uring_register",
				// Lets a page fault wait for user space, which turns races in the kernel into sure hits.
				"userfaultfd",
				// Keyrings have no namespace of their own, so uids and not containers own them.
				"keyctl", "add_key", "request_key",
				"kexec_load", "kexec_file_load",
			},
			Action:   specs.ActErrno,
			ErrnoRet: &eperm,
		},
		refuseSocket(unix.AF_VSOCK),
		refuseSocket(unix.AF_ALG),
		// Lets processes keep messages in the kernel that no memory limit counts.
		refuseInts("socket", map[uint]uint64{0: unix.AF_NETLINK, 2: unix.NETLINK_USERSOCK}),
	}
	for _, request := range []uint64{unix.TIOCSTI, unix.TIOCLINUX} {
		rules = append(rules, refuseInt("ioctl", 1, request))
	}
	return rules
}

// Docker's list leaves them out; see allowedSocketDomains there.
func refuseSocket(family uint64) specs.LinuxSyscall { return refuseInt("socket", 0, family) }

// refuseInt refuses a call whose argument has a value. The kernel takes these arguments as 32-bit integers, so a
// comparison of all 64 bits could be dodged by setting a high one (CVE-2019-10063).
func refuseInt(name string, arg uint, value uint64) specs.LinuxSyscall {
	return refuseInts(name, map[uint]uint64{arg: value})
}

// refuseInts refuses a call whose arguments have all of the values.
func refuseInts(name string, values map[uint]uint64) specs.LinuxSyscall {
	eperm := uint(unix.EPERM)
	rule := specs.LinuxSyscall{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &eperm}
	for _, arg := range slices.Sorted(maps.Keys(values)) {
		rule.Args = append(rule.Args, specs.LinuxSeccompArg{Index: arg, Value: 0xffffffff, ValueTwo: values[arg], Op: specs.OpMaskedEqual})
	}
	return rule
}
