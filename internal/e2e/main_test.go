//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

func init() {
	for name, run := range map[string]func(args []string) error{
		"alloc":    testkit.Alloc,
		"spin":     testkit.Spin,
		"syscall":  syscallHelper,
		"orphan":   orphanHelper,
		"inspect":  inspectHelper,
		"affinity": affinityHelper,
		"count":    countHelper,
		"start":    startHelper,
		"nested":   nestedHelper,
		"hold":     holdHelper,
		"clocks":   clocksHelper,
		"ping":     pingHelper,
		"disk":     diskHelper,
		"scratch":  scratchHelper,
	} {
		testkit.AddHelper(name, run)
	}
}

// clocksHelper prints the monotonic clock, the boot clock and the time of day.
func clocksHelper([]string) error {
	for _, clock := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_REALTIME} {
		var t unix.Timespec
		if err := unix.ClockGettime(clock, &t); err != nil {
			return err
		}
		fmt.Printf("%d.%09d ", t.Sec, t.Nsec)
	}
	return nil
}

// pingHelper sends an echo request over IPv4 and IPv6 to its own loopback, as ping does without
// privileges: icmp(7).
func pingHelper([]string) error {
	for _, to := range []struct {
		family, protocol int
		request          byte // ICMP_ECHO, ICMPV6_ECHO_REQUEST
		address          unix.Sockaddr
	}{
		{unix.AF_INET, unix.IPPROTO_ICMP, 8, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}},
		{unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}},
	} {
		s, err := unix.Socket(to.family, unix.SOCK_DGRAM, to.protocol)
		if err == unix.EAFNOSUPPORT {
			continue // this kernel has no IPv6
		}
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.Sendto(s, []byte{to.request, 0, 0, 0, 0, 0, 0, 1, 'x'}, 0, to.address); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		var reply [64]byte
		n, err := unix.Read(s, reply[:])
		if err != nil || n != 9 || reply[8] != 'x' {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		fmt.Println("reply")
	}
	return nil
}

// syscallHelper makes a system call whose arguments are zero, or the numbers that follow, and
// prints the result.
func syscallHelper(args []string) error {
	var n [7]uintptr
	for i, a := range args {
		v, err := strconv.ParseUint(a, 0, 64)
		if err != nil {
			return err
		}
		n[i] = uintptr(v)
	}
	if _, _, errno := syscall.RawSyscall6(n[0], n[1], n[2], n[3], n[4], n[5], n[6]); errno != 0 {
		fmt.Println(unix.ErrnoName(errno))
	} else {
		fmt.Println("OK")
	}
	return nil
}

// countHelper makes things of a kind as long as that works, and prints how many.
func countHelper(args []string) error {
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 1024})
	makers := map[string]func(i int) error{
		"inotify": func(int) error { _, err := unix.InotifyInit1(0); return err },
		"pty":     func(int) error { _, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0); return err },
		"file":    func(i int) error { return unix.Mknod(fmt.Sprintf("%s/%d", args[1], i), unix.S_IFREG|0o600, 0) },
	}
	n := 0
	for n < 900 && makers[args[0]](n) == nil {
		n++
	}
	fmt.Println(n)
	return nil
}

// orphanHelper leaves a process that has its output open in a session of its own.
func orphanHelper(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// inspectHelper tries to inspect and to signal PID 1, and prints what worked.
func inspectHelper([]string) error {
	for _, name := range []string{"environ", "mem", "maps", "stack"} {
		if b, err := os.ReadFile("/proc/1/" + name); err == nil && len(b) > 0 {
			fmt.Println("read", name)
		}
	}
	for _, name := range []string{"exe", "root", "cwd", "ns/mnt"} {
		if to, err := os.Readlink("/proc/1/" + name); err == nil && to != "" { // 5.10 answers with nothing, and succeeds
			fmt.Println("followed", name)
		}
	}
	for fd := range 100 {
		if _, err := os.Readlink(fmt.Sprintf("/proc/1/fd/%d", fd)); err == nil {
			fmt.Println("followed descriptor", fd)
		}
	}
	if err := unix.PtraceAttach(1); err == nil {
		fmt.Println("traced")
	}
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGTERM} {
		_ = unix.Kill(1, sig) // without effect, whether refused or ignored: the run goes on
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	fmt.Println("alive")
	return nil
}

// startHelper, as another user of the host, tries to make a run, and prints why that fails.
func startHelper(args []string) error {
	s := sandbox.New(sandbox.WithCommand("true"))
	if len(args) > 0 {
		s = s.With(sandbox.WithoutUserNamespace())
	}
	_, err := s.Run(context.Background())
	fmt.Println(err)
	return sandbox.Shutdown(context.Background())
}

// nestedHelper tries a run, and prints the result.
func nestedHelper([]string) error {
	defer func() { _ = sandbox.Shutdown(context.Background()) }()
	out, err := runs.Shell("id -u").Output(context.Background())
	if err != nil {
		fmt.Println(err)
		return nil
	}
	fmt.Printf("ran as %s", out)
	return nil
}

func affinityHelper([]string) error {
	var set unix.CPUSet
	err := unix.SchedGetaffinity(0, &set)
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			fmt.Println(cpu)
		}
	}
	return err
}
