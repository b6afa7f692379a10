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

// Default returns the default profile: Docker's (github.com/moby/profiles/seccomp), resolved for
// this architecture, this kernel and the given capabilities ("CAP_NET_RAW"), and a few refusals of
// our own.
//
// Docker's profile is a list of what is allowed, about 300 calls; the rest fails with EPERM. Among
// the rest, whatever the capabilities: io_uring, userfaultfd, the kernel's keyrings and kexec.
// Without the capability that each of them is about, also: bpf, perf_event_open, open_by_handle_at,
// loading modules, mounting, setns, unshare and clone with namespace flags, and clone3 fails with
// ENOSYS, since its flags are in memory, where a filter can't look. So do calls that are newer than
// all of Docker's.
//
// Refused beyond Docker's, whatever the capabilities: the ioctl requests TIOCSTI and TIOCLINUX,
// which type commands into the terminal that a run may share with its caller (CVE-2017-5226,
// CVE-2023-28100), leases and delegations of files, which make others wait, and TIOCSETD; io_setup
// fails with ENOSYS. Attributes of files have MaxAttribute bytes at most. Sockets are limited to
// those that programs use, see refuseSockets, and take no flow labels of IPv6 and no keys of TCP.
// Without setID, everything that can give a file set-uid or set-gid bits is
// refused. The calls above that no capability unlocks also have refusing rules of their own, so
// that a later version of Docker's list can't open them.
//
// Left open, as by Docker: ptrace and process_vm_readv, which reach nothing but the run's own
// processes.
//
// The caller may change the profile. It relies on this package's precedence: the strictest rule
// wins.
func Default(caps []string, setID bool) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: slices.Clone(caps)}},
	})
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	p.Syscalls = append(append(p.Syscalls, newer(p.Syscalls)...), refusals()...)
	p.Syscalls = append(allowSockets(p.Syscalls), refuseSockets(caps)...)
	if !setID {
		p.Syscalls = append(p.Syscalls, refuseSetID()...)
	}
	return p, nil
}

// OnlySetID returns a profile for gVisor's kernel that allows everything but what gives a file
// set-uid or set-gid bits, or gets around that: io_uring, and ptrace, since gVisor looks at a call
// before its tracer changes it, and not again (pkg/sentry/kernel/task_syscall.go).
func OnlySetID() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: append(refuseSetID(), refuse("io_uring_setup"), refuse("ptrace"))}
}

// newer refuses the calls that are newer than all of a list, which was made without them, with
// ENOSYS, as a kernel without them does: programs that try a new call fall back to older ones for no
// other error. runc does the same (libcontainer/seccomp/patchbpf).
func newer(list []specs.LinuxSyscall) (rules []specs.LinuxSyscall) {
	numbers := amd64().numbers // new calls have the same ones everywhere
	newest := uint32(0)
	for _, s := range list {
		for _, name := range s.Names {
			newest = max(newest, numbers[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		if numbers[name] > newest {
			rules = append(rules, fail(unix.ENOSYS, name))
		}
	}
	return rules
}

// MaxAttribute is how large the value of an extended attribute of a file may be. In file systems in
// memory, the kernel keeps access control lists, which are attributes, with the inode, and charges
// them to nobody (fs/posix_acl.c, posix_acl_alloc): of 64 KiB each, two for a directory, they took
// gigabytes. With its head, such a list takes 512 bytes, less than what is charged for the inode.
const MaxAttribute = 480

// setDelegation is F_SETDELEG of Linux 6.19.
const setDelegation = 1024 + 16

func refusals() []specs.LinuxSyscall {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	return []specs.LinuxSyscall{
		{
			Names: []string{
				// 60% of the exploits that Google's kCTF bounty saw up to 2023 used
				// it, and it opens files and sockets without the system calls that
				// a filter sees.
				"io_uring_setup", "io_uring_enter", "io_uring_register",
				// Lets a page fault wait for user space, which makes races in the
				// kernel easy to win.
				"userfaultfd",
				// Keyrings have no namespace: they belong to uids, not to
				// containers.
				"keyctl", "add_key", "request_key",
				"kexec_load", "kexec_file_load",
			},
			Action:   specs.ActErrno,
			ErrnoRet: &eperm,
		},
		// The whole machine has 65536 events (fs.aio-max-nr), which one call can take.
		// Programs do without, as on kernels that are built without it (CONFIG_AIO).
		{Names: []string{"io_setup"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		refuse("ioctl", is(1, unix.TIOCSTI)),
		refuse("ioctl", is(1, unix.TIOCLINUX)),
		// Loads the line discipline that it names, among them some with many past holes
		// (n_gsm, n_hdlc), unless the sysctl dev.tty.ldisc_autoload is 0.
		refuse("ioctl", is(1, unix.TIOCSETD)),
		// Whoever opens the file, or changes it (or the directory, from Linux 6.19 on),
		// waits until the holder gives the lease up, at most as long as the sysctl
		// fs.lease-break-time says, 45 s: fcntl(2).
		refuse("fcntl", is(1, unix.F_SETLEASE)),
		refuse("fcntl", is(1, setDelegation)),
		// As a file system without room for it.
		fail(unix.ENOSPC, "setxattr", tooLarge),
		fail(unix.ENOSPC, "lsetxattr", tooLarge),
		fail(unix.ENOSPC, "fsetxattr", tooLarge),
		// Its size is in memory, which a filter can't read. Programs use the others then.
		fail(unix.ENOSYS, "setxattrat"),
	}
}

var tooLarge = specs.LinuxSeccompArg{Index: 3, Value: MaxAttribute, Op: specs.OpGreaterThan}

// refuseSetID refuses what can give a file the mode bits S_ISUID or S_ISGID. Other calls can't:
// mkdir(2) takes neither (fs/namei.c, vfs_mkdir), access control lists have none
// (posix_acl_update_mode takes S_ISGID away), and the kernel's memory files and queues have no name
// outside of the run. The caller refuses io_uring.
func refuseSetID() (rules []specs.LinuxSyscall) {
	const tmpFile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	refuseBits := func(name string, mode uint, conditions ...specs.LinuxSeccompArg) {
		for _, bit := range []uint64{unix.S_ISUID, unix.S_ISGID} {
			rules = append(rules, refuse(name, append(slices.Clone(conditions), has(mode, bit))...))
		}
	}
	for _, call := range []struct {
		name string
		mode uint
	}{{"chmod", 1}, {"fchmod", 1}, {"creat", 1}, {"mknod", 1}, {"fchmodat", 2}, {"fchmodat2", 2}, {"mknodat", 2}} {
		refuseBits(call.name, call.mode)
	}
	for _, makes := range []uint64{unix.O_CREAT, tmpFile} { // otherwise the argument is not read and may be anything
		refuseBits("open", 2, has(1, makes))
		refuseBits("openat", 3, has(2, makes))
	}
	// Its mode is in memory, where a filter can't look. Programs fall back to openat.
	enosys := uint(unix.ENOSYS)
	return append(rules, specs.LinuxSyscall{Names: []string{"openat2"}, Action: specs.ActErrno, ErrnoRet: &enosys})
}

// is and has are conditions on an argument that the kernel takes as a 32-bit integer: that it
// equals the value, or has the bits. A comparison of all 64 bits could be evaded by setting a high
// one (CVE-2019-10063).
func is(arg uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: arg, Value: 0xffffffff, ValueTwo: value, Op: specs.OpMaskedEqual}
}

func has(arg uint, bits uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: arg, Value: bits, ValueTwo: bits, Op: specs.OpMaskedEqual}
}

// refuse refuses a call with EPERM if all conditions hold.
func refuse(name string, conditions ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return fail(unix.EPERM, name, conditions...)
}

// fail makes a call fail with e if all conditions hold.
func fail(e unix.Errno, name string, conditions ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	errno := uint(e)
	return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &errno, Args: conditions}
}
