//go:build linux

package seccomp

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// defaultFor compiles the default profile for any architecture. Resolved on another one, it lacks a
// few names that only the other has, such as arch_prctl. No test here uses those.
func defaultFor(t testing.TB, goarch string, caps ...string) machine {
	t.Helper()
	p, err := Default(caps, false)
	require.NoError(t, err)
	p.Architectures = nil
	return compile(t, p, goarch)
}

func TestDefaultRefuses(t *testing.T) {
	names := strings.Fields(`io_uring_setup io_uring_enter io_uring_register userfaultfd keyctl add_key request_key
		bpf perf_event_open open_by_handle_at kexec_load kexec_file_load init_module finit_module delete_module
		unshare setns mount umount2 pivot_root move_mount open_tree fsopen fsconfig fsmount fspick
		mount_setattr swapon swapoff reboot syslog acct quotactl settimeofday clock_settime chroot lookup_dcookie
		kcmp pidfd_getfd process_madvise move_pages migrate_pages fanotify_init sethostname setdomainname nfsservctl
		mbind set_mempolicy set_mempolicy_home_node quotactl_fd vhangup lsm_set_self_attr`)
	for _, goarch := range goarches {
		m := defaultFor(t, goarch)
		for _, name := range names {
			assert.Equal(t, eperm, m.run(t, on(t, goarch, name)), "%s on %s", name, goarch)
		}
		assert.Equal(t, enosys, m.run(t, on(t, goarch, "clone3")))
		assert.Equal(t, enosys, m.run(t, on(t, goarch, "io_setup")))
		assert.Equal(t, enosys, m.run(t, on(t, goarch, "setxattrat")))
		for _, name := range strings.Fields("open_tree_attr file_getattr file_setattr listns rseq_slice_yield") {
			assert.Equal(t, enosys, m.run(t, on(t, goarch, name)), "%s is newer than Docker's list", name)
		}
		assert.Equal(t, enosys, m.run(t, call{nr: 9999, audit: on(t, goarch, "read").audit}))
		if goarch == "amd64" {
			for _, name := range strings.Fields("iopl ioperm uselib ustat sysfs _sysctl create_module query_module get_kernel_syms") {
				assert.Equal(t, eperm, m.run(t, on(t, goarch, name)), name)
			}
			assert.Equal(t, enosys, m.run(t, call{nr: x32Bit, audit: auditAMD64}))
			assert.Equal(t, enosys, m.run(t, call{nr: 102, audit: auditI386}), "socketcall")
		}
	}
}

func TestDefaultAllows(t *testing.T) {
	names := strings.Fields(`read write openat close mmap mprotect munmap brk execve exit_group futex clone wait4 ioctl
		newfstatat statx getrandom rseq prlimit64 set_robust_list set_tid_address rt_sigaction pipe2 dup3 epoll_pwait2
		fchmodat2 faccessat2 close_range seccomp prctl landlock_restrict_self mseal getxattrat futex_wait cachestat ptrace`)
	for _, goarch := range goarches {
		m := defaultFor(t, goarch)
		for _, name := range names {
			assert.Equal(t, allow, m.run(t, on(t, goarch, name)), "%s on %s", name, goarch)
		}
	}
	native := defaultFor(t, runtime.GOARCH)
	if runtime.GOARCH == "amd64" {
		for _, name := range []string{"arch_prctl", "stat", "open", "fork", "vfork", "modify_ldt"} {
			assert.Equal(t, allow, native.run(t, on(t, "amd64", name)), name)
		}
	}
}

func TestDefaultArguments(t *testing.T) {
	const high = 1 << 32
	namespaces := []uint64{
		unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER,
		unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP,
	}
	for _, goarch := range goarches {
		m := defaultFor(t, goarch)
		check := func(want uint32, name string, args ...uint64) {
			t.Helper()
			assert.Equal(t, want, m.run(t, on(t, goarch, name, args...)), "%s(%#x) on %s", name, args, goarch)
		}
		check(allow, "clone", unix.CLONE_VM|unix.CLONE_THREAD|unix.CLONE_FILES|uint64(unix.SIGCHLD))
		for _, flag := range namespaces {
			check(eperm, "clone", flag)
			check(eperm, "clone", flag|uint64(unix.SIGCHLD)|high)
		}
		for _, persona := range []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} {
			check(allow, "personality", persona)
		}
		check(eperm, "personality", 0x0040000) // ADDR_NO_RANDOMIZE
		for _, request := range []uint64{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD} {
			check(eperm, "ioctl", 0, request)
			check(eperm, "ioctl", 0, request|high)
			check(eperm, "ioctl", 0, request|0xffffffff<<32)
		}
		for _, request := range []uint64{unix.TCGETS, unix.TIOCGWINSZ, unix.TIOCINQ, unix.TIOCSTI + 1, unix.TIOCLINUX - 1, unix.TIOCGETD, unix.SIOCGIFCONF, unix.SIOCGIFMTU} {
			check(allow, "ioctl", 0, request)
		}
		check(errno|uint32(unix.ENOPROTOOPT), "setsockopt", 3, unix.IPPROTO_IPV6, ipv6FlowLabelMgr)
		check(errno|uint32(unix.ENOPROTOOPT), "setsockopt", 3, unix.IPPROTO_IPV6|high, ipv6FlowLabelMgr|high)
		for _, option := range []uint64{14, 32, 38} { // TCP_MD5SIG, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY
			check(errno|uint32(unix.ENOPROTOOPT), "setsockopt", 3, unix.IPPROTO_TCP, option)
			check(errno|uint32(unix.ENOPROTOOPT), "setsockopt", 3, unix.IPPROTO_TCP|high, option|high)
			check(allow, "setsockopt", 3, unix.SOL_SOCKET, option)
		}
		check(allow, "setsockopt", 3, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		for _, name := range []string{"setxattr", "lsetxattr", "fsetxattr"} {
			check(allow, name, 0, 0, 0, 0)
			check(allow, name, high, high, high, MaxAttribute)
			check(errno|uint32(unix.ENOSPC), name, 0, 0, 0, MaxAttribute+1)
			check(errno|uint32(unix.ENOSPC), name, 0, 0, 0, high)
		}
		check(allow, "setsockopt", 3, unix.IPPROTO_IP, ipv6FlowLabelMgr)
		check(allow, "setsockopt", 3, unix.IPPROTO_IPV6, ipv6FlowLabelMgr+1)
		for _, request := range []uint64{0x8940, 0x8941, 0x8980, 0x8981, 0x8982, 0x8983, 0x89a0, 0x89a1} {
			check(errno|uint32(unix.ENOPKG), "ioctl", 0, request)
			check(errno|uint32(unix.ENOPKG), "ioctl", 0, request|high)
		}
		for _, command := range []uint64{unix.F_SETLEASE, 1040} {
			check(eperm, "fcntl", 0, command)
			check(eperm, "fcntl", 0, command|high)
			check(eperm, "fcntl", 0, command|0xffffffff<<32)
		}
		for _, command := range []uint64{
			unix.F_DUPFD, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK, unix.F_SETLKW, unix.F_SETOWN, unix.F_OFD_SETLK,
			unix.F_DUPFD_CLOEXEC, unix.F_SETPIPE_SZ, unix.F_GETPIPE_SZ, unix.F_ADD_SEALS, unix.F_GET_SEALS, unix.F_GETLEASE, unix.F_GET_RW_HINT,
		} {
			check(allow, "fcntl", 0, command)
		}
	}
}

func TestDefaultSetID(t *testing.T) {
	const high = 1 << 32
	modes := map[string]uint{"chmod": 1, "fchmod": 1, "creat": 1, "mknod": 1, "fchmodat": 2, "fchmodat2": 2, "mknodat": 2, "open": 2, "openat": 3}
	p, err := Default(nil, true)
	require.NoError(t, err)
	p.Architectures = nil
	for _, goarch := range goarches {
		m, only, with := defaultFor(t, goarch), compile(t, OnlySetID(), goarch), compile(t, p, goarch)
		for name, arg := range modes {
			if goarch == "arm64" && slices.Contains([]string{"chmod", "creat", "mknod", "open"}, name) {
				continue // it has no such call
			}
			for mode, refused := range map[uint64]bool{
				0o755: false, 0o1777: false, 0o4755: true, 0o2755: true, 0o6755: true, 0o4000: true, 0o2000 | high: true, 0o755 | 0o4000<<32: false,
			} {
				args := make([]uint64, 6)
				args[arg] = mode
				if strings.HasPrefix(name, "open") {
					assert.Equal(t, allow, m.run(t, on(t, goarch, name, args...)), "%s %o makes nothing", name, mode)
				}
				for _, makes := range []uint64{unix.O_CREAT | unix.O_WRONLY, unix.O_TMPFILE | unix.O_RDWR, unix.O_CREAT | high} {
					if strings.HasPrefix(name, "open") {
						args[arg-1] = makes
					}
					want := allow
					if refused {
						want = eperm
					}
					assert.Equal(t, want, m.run(t, on(t, goarch, name, args...)), "%s %o %#x on %s", name, mode, makes, goarch)
					assert.Equal(t, want, only.run(t, on(t, goarch, name, args...)), "%s %o %#x on %s", name, mode, makes, goarch)
					assert.Equal(t, allow, with.run(t, on(t, goarch, name, args...)))
				}
			}
		}
		assert.Equal(t, enosys, m.run(t, on(t, goarch, "openat2")))
		assert.Equal(t, enosys, only.run(t, on(t, goarch, "openat2")))
		assert.Equal(t, eperm, only.run(t, on(t, goarch, "io_uring_setup")))
		assert.Equal(t, eperm, only.run(t, on(t, goarch, "ptrace")))
		assert.Equal(t, allow, only.run(t, on(t, goarch, "bpf")), "nothing else is refused")
		assert.Equal(t, allow, with.run(t, on(t, goarch, "openat2")))
	}
}

func TestDefaultCapabilities(t *testing.T) {
	tests := []struct{ capability, unlocks string }{
		{"CAP_SYS_ADMIN", "mount unshare setns clone clone3 bpf perf_event_open"},
		{"CAP_BPF", "bpf"},
		{"CAP_PERFMON", "perf_event_open"},
		{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
		{"CAP_SYS_MODULE", "init_module finit_module"},
		{"CAP_SYS_CHROOT", "chroot"},
		{"CAP_SYS_PTRACE", "kcmp pidfd_getfd"},
		{"CAP_SYS_TIME", "settimeofday clock_settime"},
		{"CAP_SYS_BOOT", "reboot"},
		{"CAP_NET_RAW", "socket"},
	}
	never := strings.Fields("io_uring_setup userfaultfd keyctl add_key request_key kexec_load kexec_file_load")
	first := func(name string) uint64 { // argument
		if name == "socket" {
			return unix.AF_PACKET
		}
		return unix.CLONE_NEWNS
	}
	for _, goarch := range goarches {
		for _, test := range tests {
			m := defaultFor(t, goarch, test.capability)
			for _, name := range strings.Fields(test.unlocks) {
				assert.Equal(t, allow, m.run(t, on(t, goarch, name, first(name))), "%s with %s", name, test.capability)
			}
			for _, name := range never {
				assert.Equal(t, eperm, m.run(t, on(t, goarch, name)), "%s with %s", name, test.capability)
			}
			assert.Equal(t, eperm, m.run(t, on(t, goarch, "ioctl", 0, unix.TIOCSTI)))
		}
	}
}

// TestDefaultAgainstEvaluator compares both for every system call, and for random arguments,
// conventions and numbers.
func TestDefaultAgainstEvaluator(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_NET_RAW", "CAP_SYS_PTRACE"}} {
		p, err := Default(caps, false)
		require.NoError(t, err)
		p.Architectures = nil
		for _, goarch := range goarches {
			m := compile(t, p, goarch)
			for nr := range uint32(520) {
				for _, value := range []uint64{0, 1, 8, unix.AF_VSOCK, unix.AF_ALG, unix.TIOCSTI, unix.CLONE_NEWUSER, unix.S_ISUID | unix.O_CREAT, 1 << 32} {
					c := call{nr: nr, audit: on(t, goarch, "read").audit, args: [6]uint64{value, value, value, value}}
					require.Equal(t, evaluate(t, p, goarch, c), m.run(t, c), "%s %d(%#x)", goarch, nr, value)
				}
			}
			for seed := range uint64(20) {
				compare(t, rand.New(rand.NewPCG(seed, 3)), p, goarch, m)
			}
		}
	}
}

// TestDefaultSize bounds the length: every run pays for the kernel's translation of the filter.
func TestDefaultSize(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}} {
		p, err := Default(caps, false)
		require.NoError(t, err)
		p.Architectures = nil
		for _, goarch := range goarches {
			f, err := Compile(p, goarch)
			require.NoError(t, err)
			t.Logf("default profile, %s, capabilities %v: %d instructions", goarch, caps, f.Len())
			assert.Less(t, f.Len(), 400)
		}
	}
}

func TestCache(t *testing.T) {
	one, err := CachedDefault([]string{"CAP_NET_RAW", "CAP_CHOWN", "CAP_CHOWN"}, false)
	require.NoError(t, err)
	two, err := CachedDefault([]string{"CAP_CHOWN", "CAP_NET_RAW"}, false)
	require.NoError(t, err)
	assert.Same(t, one, two)
	three, err := CachedDefault([]string{"CAP_SYS_ADMIN"}, false)
	require.NoError(t, err)
	assert.NotSame(t, one, three)

	p := profile()
	before, err := CachedCompile(p)
	require.NoError(t, err)
	p.DefaultAction = specs.ActAllow
	after, err := CachedCompile(p)
	require.NoError(t, err)
	assert.NotEqual(t, before.Bytes(), after.Bytes(), "a changed profile is another profile")
	again, err := CachedCompile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow})
	require.NoError(t, err)
	assert.Same(t, after, again)

	_, err = CachedCompile(nil)
	require.ErrorContains(t, err, "is nil")
}

func TestCacheIsBounded(t *testing.T) {
	var c cache[string]
	for i := range 3 * cacheSize {
		_, err := c.get(fmt.Sprint(i), func() (*Filter, error) { return &Filter{}, nil })
		require.NoError(t, err)
		require.LessOrEqual(t, len(c.filters), cacheSize)
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p, err := Default(nil, false)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p, runtime.GOARCH); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCachedDefault(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CachedDefault(nil, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCachedCompile(b *testing.B) {
	p, err := Default(nil, false)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CachedCompile(p); err != nil {
			b.Fatal(err)
		}
	}
}
