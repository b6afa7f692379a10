//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

// TestMain is also the helper programs that tests run in sandboxes, and the
// project's leak test: after all tests and a Shutdown nothing may be left.
func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(runHelper(os.Args[1:]))
	}
	flag.Parse()
	before := takeInventory()
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := sandbox.Shutdown(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Shutdown:", err)
		code = 1
	}
	builds.remove()
	if left := before.awaitNothingAdded(10 * time.Second); left != "" {
		fmt.Fprint(os.Stderr, "left behind:\n", left)
		code = 1
	}
	if unused := unusedHelpers(); code == 0 && unused != "" {
		fmt.Fprintln(os.Stderr, "helpers that no test used:", unused)
		code = 1
	}
	os.Exit(code)
}

// patience is how long a test waits for what must happen. The guest is
// emulated and may be 50 times slower than its host.
var patience = func() time.Duration {
	if inGuest() {
		return 10 * time.Minute
	}
	return time.Minute
}()

func inGuest() bool { return os.Getenv("VM_GUEST") == "1" }

const helperEnv = "SANDBOX_TEST_HELPER"

// helpers are the programs that the test binary can be, in a run.
var helpers = map[string]func(args []string) error{
	"alloc":    allocHelper,
	"spin":     spinHelper,
	"syscall":  syscallHelper,
	"orphan":   orphanHelper,
	"inspect":  inspectHelper,
	"affinity": affinityHelper,
	"count":    countHelper,
	"start":    startHelper,
	"nested":   nestedHelper,
	"hold":     holdHelper,
	"hoard":    hoardHelper,
	"sockets":  socketsHelper,
	"send":     sendHelper,
	"clocks":   clocksHelper,
	"ping":     pingHelper,
}

func runHelper(args []string) int {
	if len(args) == 0 || helpers[args[0]] == nil {
		fmt.Fprintf(os.Stderr, "no helper %q\n", args)
		return 2
	}
	if err := helpers[args[0]](args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// allocHelper uses memory, so many MiB of it, and says so.
func allocHelper(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(mem); i += 4096 {
		mem[i] = 1
	}
	fmt.Println("allocated")
	return nil
}

// clocksHelper tells what the clocks show: the monotonic one, the boot one, the time of day.
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

// spinHelper keeps a CPU busy until it has used so much of it.
func spinHelper(args []string) error {
	d, err := time.ParseDuration(args[0])
	for err == nil {
		var used unix.Rusage
		err = unix.Getrusage(unix.RUSAGE_SELF, &used)
		if time.Duration(used.Utime.Nano()+used.Stime.Nano()) > d {
			break
		}
	}
	return err
}

// syscallHelper makes a system call whose arguments are all zero, or numbers
// that follow, and prints how it went.
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

// orphanHelper leaves a process in a session of its own with its output open.
func orphanHelper(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// inspectHelper tries to look into and to signal PID 1, and prints what worked.
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

// nestedHelper tries a run, and prints how it went.
func nestedHelper([]string) error {
	defer func() { _ = sandbox.Shutdown(context.Background()) }()
	out, err := shell("id -u").Output(context.Background())
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

var usedHelpers sync.Map

// helper is a sandbox that runs a helper program.
func helper(name string, args ...string) *sandbox.Sandbox {
	if helpers[name] == nil {
		panic("no helper " + name)
	}
	usedHelpers.Store(name, true)
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return sandbox.New(sandbox.WithReadOnlyBind(exe, "/helper"), sandbox.WithEnv(helperEnv+"=1"),
		sandbox.WithCommand("/helper", append([]string{name}, args...)...))
}

// unusedHelpers tells which no test used, if all tests were run.
func unusedHelpers() string {
	if os.Geteuid() != 0 || flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.list").Value.String() != "" {
		return ""
	}
	var unused []string
	for name := range helpers {
		if _, ok := usedHelpers.Load(name); !ok {
			unused = append(unused, name)
		}
	}
	slices.Sort(unused)
	return strings.Join(unused, ", ")
}

// shell is a sandbox that runs a script.
func shell(script string, opts ...sandbox.Option) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand("/bin/sh", "-c", script)).With(opts...)
}

// deadline is a context that ends when the test's patience does.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// output runs the sandbox, which must succeed, and returns what it wrote,
// without the space around it.
func output(t testing.TB, s *sandbox.Sandbox) string {
	t.Helper()
	out, err := s.Output(deadline(t))
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		require.NoError(t, err, "stdout: %s\nstderr: %s", out, exit.Stderr)
	}
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// start starts the sandbox and makes sure that it has ended before the test does.
func start(t testing.TB, s *sandbox.Sandbox) *sandbox.Process {
	t.Helper()
	p, err := s.Start(deadline(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
	})
	return p
}

// exitError is the error of a run that started.
func exitError(t testing.TB, err error) *sandbox.ExitError {
	t.Helper()
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.NotNil(t, exit.Result)
	return exit
}

// setupError is the error of a run that did not start. Its text contains each of words.
func setupError(t testing.TB, err error, words ...string) *sandbox.SetupError {
	t.Helper()
	var setup *sandbox.SetupError
	require.ErrorAs(t, err, &setup)
	require.NotEmpty(t, setup.Stage)
	for _, w := range words {
		require.ErrorContains(t, err, w)
	}
	return setup
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			require.FailNow(t, "waited in vain", what)
		}
	}
}

// aLongTime is an argument for sleep that no other process on this machine has.
func aLongTime() string { return fmt.Sprintf("1%08d.%09d", rand.IntN(1e8), rand.IntN(1e9)) }

// running is the processes of this machine with the given last argument.
func running(lastArg string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasSuffix(string(b), "\x00"+lastArg+"\x00") {
			pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// requireGone fails if a process with the given last argument is there.
func requireGone(t testing.TB, lastArg string) {
	t.Helper()
	require.Empty(t, running(lastArg), "outlived its run")
}

// writeFile writes a file with exactly that mode.
func writeFile(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(name, []byte(content), mode))
	require.NoError(t, os.Chmod(name, mode)) // whatever the umask is
}

// openDir is a directory of the test's that everybody can enter, at the end of
// a path that everybody can walk.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// builds are programs compiled for tests.
var builds compiled

type compiled struct {
	once sync.Once
	dir  string
	err  error
}

// staticTrue is a statically linked program that does nothing.
func staticTrue(t testing.TB) string {
	t.Helper()
	need(t, "gcc")
	builds.once.Do(func() {
		if builds.dir, builds.err = os.MkdirTemp("", "sandbox-test-"); builds.err != nil {
			return
		}
		_ = os.Chmod(builds.dir, 0o755)
		cmd := exec.Command("gcc", "-static", "-O2", "-x", "c", "-o", filepath.Join(builds.dir, "true"), "-")
		cmd.Stdin = strings.NewReader("int main(void) { return 0; }\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			builds.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, builds.err)
	return filepath.Join(builds.dir, "true")
}

func (c *compiled) remove() {
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}
