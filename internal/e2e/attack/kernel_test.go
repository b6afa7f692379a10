//go:build linux

package attack

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The parts of the kernel that are of no use to a run are covered, read-only, absent or refused by
// the filter.
func TestAttackKernel(t *testing.T) {
	t.Parallel()
	s := attacker("kernel")
	requireHeld(t, "kernel", s)
	t.Run("as uid 0 with capabilities", func(t *testing.T) {
		requireHeld(t, "kernel", s.With(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_MKNOD", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
			"CAP_SYS_TIME", "CAP_SYS_PACCT", "CAP_DAC_OVERRIDE", "CAP_AUDIT_WRITE", "CAP_SYS_RESOURCE")))
	})
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) { requireHeld(t, "kernel", runs.HostUser(s)) })
	}
	requireControl(t, "kernel")
}

func init() {
	list := []attack{
		{"devices", func([]string) error { return strangeDevices() }, true},
		{"a terminal's input", func([]string) error {
			key := [1]byte{'x'}
			return refusedBy(rawCall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&key))), unix.EPERM)
		}, true},
		{"a terminal's input with high bits", func([]string) error {
			return refusedBy(rawCall(unix.SYS_IOCTL, 0, 1<<32|unix.TIOCSTI, 0), unix.EPERM)
		}, true},
		{"the 64-bit convention with 32-bit pointers", func([]string) error {
			if runtime.GOARCH != "amd64" {
				return unix.ENOSYS
			}
			return rawCall(x32Bit | unix.SYS_GETPID)
		}, false},
		{"io_uring", filtered(unix.SYS_IO_URING_SETUP, unix.EPERM), false},
		{"userfaultfd", filtered(unix.SYS_USERFAULTFD, unix.EPERM), true},
		{"bpf", filtered(unix.SYS_BPF, unix.EPERM), true},
		{"perf_event_open", filtered(unix.SYS_PERF_EVENT_OPEN, unix.EPERM), false},
		{"keyctl", filtered(unix.SYS_KEYCTL, unix.EPERM), true},
		{"add_key", filtered(unix.SYS_ADD_KEY, unix.EPERM), true},
		{"request_key", filtered(unix.SYS_REQUEST_KEY, unix.EPERM), true},
		{"kexec_load", filtered(unix.SYS_KEXEC_LOAD, unix.EPERM), false},
		{"kexec_file_load", filtered(unix.SYS_KEXEC_FILE_LOAD, unix.EPERM), false},
		{"open_by_handle_at", filtered(unix.SYS_OPEN_BY_HANDLE_AT, unix.EPERM), true},
		{"fanotify_init", filtered(unix.SYS_FANOTIFY_INIT, unix.EPERM), false},
		{"quotactl", filtered(unix.SYS_QUOTACTL, unix.EPERM), false},
		{"syslog", filtered(unix.SYS_SYSLOG, unix.EPERM), false},
		{"kcmp", filtered(unix.SYS_KCMP, unix.EPERM), false},
		{"move_pages", filtered(unix.SYS_MOVE_PAGES, unix.EPERM), false},
		{"no random addresses", func([]string) error { return rawCall(unix.SYS_PERSONALITY, 0x0040000) }, true},
		{"a device node", func([]string) error { return deviceNode() }, true},
		{"a module", func([]string) error { return errorUnless(rawCall(unix.SYS_INIT_MODULE, 0, 0, 0)) }, false},
		{"reboot", func([]string) error { return errorUnless(rawCall(unix.SYS_REBOOT, 0xfee1dead, 672274793, 0, 0)) }, false},
		{"swapoff", func([]string) error { return errorUnless(rawCall(unix.SYS_SWAPOFF, pathOf("/nothing"))) }, false},
		{"accounting", func([]string) error { return errorUnless(rawCall(unix.SYS_ACCT, pathOf("/nothing"))) }, false},
		{"AF_VSOCK", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), false},
		{"AF_ALG", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), false},
		{"AF_PACKET", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), false},
		{"modules of a family", func([]string) error {
			for _, family := range []int{unix.AF_AX25, unix.AF_KEY, unix.AF_RDS, unix.AF_CAN, unix.AF_TIPC, unix.AF_BLUETOOTH, unix.AF_RXRPC, unix.AF_SMC, unix.AF_XDP} {
				if err := refusedBy(rawCall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_DGRAM, 0), unix.EAFNOSUPPORT); err == nil {
					return nil
				}
				if err := refusedBy(rawCall(unix.SYS_SOCKETPAIR, uintptr(family), unix.SOCK_DGRAM, 0, 0), unix.EAFNOSUPPORT); err == nil {
					return nil
				}
			}
			return unix.EAFNOSUPPORT
		}, false},
		{"modules of a protocol", func([]string) error {
			for _, s := range [][3]int{{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, {unix.AF_INET6, unix.SOCK_SEQPACKET, 0}, {unix.AF_INET, unix.SOCK_DCCP, 0}, {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}} {
				if socket(s[0], s[1], s[2])(nil) == nil {
					return nil
				}
			}
			return unix.EPROTONOSUPPORT
		}, false},
		{"generic netlink", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC), true},
		{"modules by ioctl", func([]string) error {
			s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			return refusedBy(rawCall(unix.SYS_IOCTL, uintptr(s), unix.SIOCGIFBR, 0), unix.ENOPKG)
		}, false},
		{"a line discipline", func([]string) error {
			return refusedBy(rawCall(unix.SYS_IOCTL, ^uintptr(0), unix.TIOCSETD, 0), unix.EPERM)
		}, true},
		{"a lease", func([]string) error { return lease(unix.F_SETLEASE) }, true},
		{"a lease with high bits", func([]string) error { return lease(1<<32 | unix.F_SETLEASE) }, true},
		{"a delegation", func([]string) error {
			return refusedBy(rawCall(unix.SYS_FCNTL, ^uintptr(0), 1024+16, 0), unix.EPERM) // F_SETDELEG
		}, true},
		{"unseen netlink messages", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_USERSOCK), true},
		// What follows is memory of the kernel's that no limit counts.
		{"a long access control list", func([]string) error { return longList() }, false},
		{"a large attribute", func([]string) error { return refusedBy(rawCall(unix.SYS_SETXATTR, 0, 0, 0, 1<<16), unix.ENOSPC) }, true},
		{"a large attribute of a link", func([]string) error { return refusedBy(rawCall(unix.SYS_LSETXATTR, 0, 0, 0, 1<<16), unix.ENOSPC) }, true},
		{"a large attribute of an open file", func([]string) error {
			return refusedBy(rawCall(unix.SYS_FSETXATTR, ^uintptr(0), 0, 0, 1<<32), unix.ENOSPC)
		}, true},
		{"an attribute of unseen size", func([]string) error { return refusedBy(rawCall(unix.SYS_SETXATTRAT), unix.ENOSYS) }, false},
		{"keys of TCP", func([]string) error {
			for _, option := range []uintptr{unix.TCP_MD5SIG, unix.TCP_MD5SIG_EXT, 38} { // TCP_AO_ADD_KEY
				if refusedBy(rawCall(unix.SYS_SETSOCKOPT, ^uintptr(0), unix.IPPROTO_TCP, option, 0, 0), unix.ENOPROTOOPT) == nil {
					return nil
				}
			}
			return unix.ENOPROTOOPT
		}, true},
	}
	if runtime.GOARCH == "amd64" {
		list = append(list, attack{"I/O ports", func([]string) error { return rawCall(172, 3) }, false}) // iopl
	}
	for _, p := range []string{"class", "block", "bus", "module", "firmware", "dev", "devices/virtual", "devices/system/memory", "kernel/security", "kernel/debug", "kernel/slab", "fs/bpf"} {
		list = append(list, attack{"/sys/" + p, func([]string) error { return readDir("/sys/" + p) }, slices.Contains([]string{"class", "bus", "module", "devices/virtual"}, p)})
	}
	list = append(list, attack{"settings in /sys", func([]string) error {
		return writeProc("/sys/kernel/mm/transparent_hugepage/enabled")
	}, false})
	for _, p := range []string{"kcore", "keys", "timer_list", "sched_debug", "latency_stats", "interrupts", "kmsg", "asound", "acpi", "scsi", "kpagecount", "vmallocinfo", "slabinfo"} {
		list = append(list, attack{"read /proc/" + p, func([]string) error { return readProc("/proc/" + p) }, p == "interrupts"})
	}
	for _, p := range []string{"sysrq-trigger", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/kernel/hostname", "sys/vm/drop_caches", "sys/fs/binfmt_misc/register", "irq/default_smp_affinity",
		"self/oom_score_adj", "self/attr/current", "self/attr/exec", "self/uid_map", "self/setgroups", "self/comm", "self/coredump_filter", "self/mem", "bus/pci/00/00.0", "fs/nfsd"} {
		onHost := slices.Contains([]string{"self/comm", "self/oom_score_adj", "self/mem"}, p)
		list = append(list, attack{"write /proc/" + p, func([]string) error { return writeProc("/proc/" + p) }, onHost})
	}
	addAttacks("kernel", list)
}

// longList gives a file in memory the longest access control list that there can be: xattr(7),
// linux/posix_acl_xattr.h.
func longList() error {
	fd, err := unix.MemfdCreate("list", 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	list := binary.NativeEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	add := func(tag uint16, id uint32) {
		list = binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(list, tag), 6), id)
	}
	const owner, user, group, mask, others, nobody = 1, 2, 4, 16, 32, 1<<32 - 1
	add(owner, nobody)
	for range 8187 {
		add(user, uint32(os.Getuid()))
	}
	add(group, nobody)
	add(mask, nobody)
	add(others, nobody)
	return unix.Fsetxattr(fd, "system.posix_acl_access", list, 0)
}

// filtered makes a call whose arguments are all zero.
func filtered(call uintptr, by error) func([]string) error {
	return func([]string) error { return refusedBy(rawCall(call), by) }
}

func socket(family, kind, protocol int) func([]string) error {
	return func([]string) error { return opened(unix.Socket(family, kind, protocol)) }
}

// lease takes a lease of a file of its own, for which others would wait.
func lease(command uintptr) error {
	f, err := os.CreateTemp("", "")
	if err != nil {
		return nil
	}
	defer os.Remove(f.Name())
	defer f.Close()
	return rawCall(unix.SYS_FCNTL, f.Fd(), command, unix.F_WRLCK)
}

// errorUnless is for calls that fail in any case: EPERM comes before other errors.
func errorUnless(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}

func readDir(path string) error {
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) == 0 {
		return errNothing
	}
	return err
}

func readProc(path string) error {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if info.IsDir() {
		return readDir(path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 16)); n == 0 {
		return errors.Join(err, errNothing)
	}
	return nil
}

func writeProc(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeDevice != 0 {
		return errors.Join(err, errors.New("/dev/null lies over it"))
	}
	return nil
}

// strangeDevices finds a device below /dev that a run should not have.
func strangeDevices() error {
	good := strings.Fields("/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/pts/ptmx")
	found := errNothing
	_ = filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeDevice != 0 && !slices.Contains(good, path) {
			found = nil
		}
		return nil
	})
	return found
}

// deviceNode makes a node of a disk or of memory, in any directory that it may write to.
func deviceNode() error {
	var errs error
	for _, dir := range []string{os.TempDir(), "/dev/shm", os.Getenv("HOME"), "/dev"} {
		for kind, number := range map[uint32]int{unix.S_IFBLK: 8 << 8, unix.S_IFCHR: 1<<8 | 1} {
			path := filepath.Join(dir, "attack-node")
			err := unix.Mknod(path, kind|0o666, number)
			if err == nil {
				os.Remove(path)
				return nil
			}
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// The 32-bit convention of a 64-bit processor has other numbers, which the filter must not take for
// native ones.
func TestAttackKernelBy32Bits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "gcc")
	if runtime.GOARCH != "amd64" {
		return // there is no such convention
	}
	dir := testkit.OpenDir(t)
	program := filepath.Join(dir, "int80")
	compile := exec.Command("gcc", "-static", "-O1", "-x", "c", "-o", program, "-")
	compile.Stdin = strings.NewReader(`#include <stdio.h>
int call(int nr, int a) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(0), "d"(0) : "memory", "r8", "r9", "r10", "r11"); return r; }
int main(void) { printf("%d %d\n", call(20, 0) > 0, call(310, 0x10000000)); return 0; } /* getpid, unshare(CLONE_NEWUSER) */
`)
	out, err := compile.CombinedOutput()
	require.NoError(t, err, string(out))
	s := sandbox.New(sandbox.WithReadOnlyBind(program, "/int80"), sandbox.WithCommand("/int80"))
	control, err := s.With(sandbox.WithoutSeccomp()).Output(testkit.Deadline(t))
	if err != nil {
		runs.ExitError(t, err) // this kernel has no such convention, and kills the process
		return
	}
	require.Equal(t, "1 0\n", string(control))
	require.Equal(t, "0 -38", runs.Output(t, s))
}
