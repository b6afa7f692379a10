//go:build linux

package seccomp

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// The test binary also serves as the processes that live under a filter. With the default one,
// "probe" makes a few calls and prints their results, and "exec" becomes the command in its
// arguments. "random" makes the calls of TestKernelArguments.
func init() {
	testkit.AddHelper("probe", func([]string) error {
		confine(CachedDefault(nil, false))
		return json.NewEncoder(os.Stdout).Encode(probe())
	})
	testkit.AddHelper("exec", func(args []string) error {
		confine(CachedDefault(nil, false))
		return fmt.Errorf("exec: %w", syscall.Exec(args[0], args, os.Environ()))
	})
	testkit.AddHelper("random", func([]string) error {
		p, calls := harmless()
		confine(Compile(p, runtime.GOARCH))
		return json.NewEncoder(os.Stdout).Encode(errnos(calls))
	})
}

// confine puts this thread under a filter. After an exec by this thread, the filter holds for the
// whole process.
func confine(f *Filter, err error) {
	runtime.LockOSThread()
	if err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	code := f.Bytes()
	program := unix.SockFprog{Len: uint16(f.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(code)
	if e != 0 {
		panic(e)
	}
}

// probe returns the errno of each call, 0 if it succeeded.
func probe() map[string]int {
	high := uint64(1) << 32
	results := map[string]int{}
	for name, c := range map[string][4]uintptr{
		"getpid":          {unix.SYS_GETPID},
		"keyctl":          {unix.SYS_KEYCTL},
		"clone3":          {unix.SYS_CLONE3},
		"unshare":         {unix.SYS_UNSHARE, unix.CLONE_NEWUSER},
		"clone namespace": {unix.SYS_CLONE, unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)},
		"unknown":         {9999},
		"io_uring_setup":  {unix.SYS_IO_URING_SETUP, 1},
		"TIOCSTI":         {unix.SYS_IOCTL, ^uintptr(0), unix.TIOCSTI},
		"TIOCSTI, high":   {unix.SYS_IOCTL, ^uintptr(0), uintptr(unix.TIOCSTI | high)},
		"TIOCGWINSZ":      {unix.SYS_IOCTL, ^uintptr(0), unix.TIOCGWINSZ},
		"AF_VSOCK":        {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM},
		"USERSOCK":        {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_USERSOCK},
		"AF_UNIX":         {unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM},
		"lease":           {unix.SYS_FCNTL, ^uintptr(0), unix.F_SETLEASE, unix.F_RDLCK},
		"F_GETLEASE":      {unix.SYS_FCNTL, ^uintptr(0), unix.F_GETLEASE},
		"personality":     {unix.SYS_PERSONALITY, 0xffffffff},
	} {
		_, _, e := unix.RawSyscall(c[0], c[1], c[2], c[3])
		results[name] = int(e)
	}
	return results
}

// TestKernel loads the default filter and asks the kernel.
func TestKernel(t *testing.T) {
	out, err := testkit.HelperCommand(t.Context(), "probe").Output()
	require.NoError(t, err)
	var got map[string]int
	require.NoError(t, json.Unmarshal(out, &got))
	eperm, enosys := int(unix.EPERM), int(unix.ENOSYS)
	assert.Equal(t, map[string]int{
		"getpid":          0,
		"keyctl":          eperm,
		"clone3":          enosys,
		"unshare":         eperm,
		"clone namespace": eperm,
		"unknown":         enosys,
		"io_uring_setup":  eperm,
		"TIOCSTI":         eperm,
		"TIOCSTI, high":   eperm,
		"TIOCGWINSZ":      int(unix.EBADF), // reached the kernel: the descriptor is -1
		"AF_VSOCK":        int(unix.EAFNOSUPPORT),
		"USERSOCK":        int(unix.EPROTONOSUPPORT),
		"lease":           eperm,
		"F_GETLEASE":      int(unix.EBADF),
		"AF_UNIX":         0,
		"personality":     0,
	}, got)
}

// harmless returns a profile with random rules for calls that take no arguments, so that any may be
// passed, and such calls. It returns the same in every process.
func harmless() (*specs.LinuxSeccomp, []call) {
	r := rand.New(rand.NewPCG(1, 3))
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	numbers := map[string]uint32{
		"getuid": unix.SYS_GETUID, "geteuid": unix.SYS_GETEUID, "getgid": unix.SYS_GETGID,
		"getegid": unix.SYS_GETEGID, "getppid": unix.SYS_GETPPID,
	}
	names := slices.Sorted(maps.Keys(numbers))
	var calls []call
	for n := range uint(120) {
		rule := when(specs.ActErrno, pick(r, names))
		rule.ErrnoRet = ptr(1 + n)
		for _, index := range r.Perm(6)[:1+r.IntN(3)] {
			rule.Args = append(rule.Args, arg(uint(index), pick(r, allOps), randomValue(r), randomValue(r)))
		}
		p.Syscalls = append(p.Syscalls, rule)
		for range 50 {
			c := call{nr: numbers[rule.Names[0]]}
			for i := range c.args {
				c.args[i] = randomValue(r)
			}
			for _, a := range rule.Args {
				c.args[a.Index] = pick(r, []uint64{a.Value, a.Value + 1, a.Value - 1, a.ValueTwo & a.Value})
			}
			calls = append(calls, c)
		}
	}
	return p, calls
}

func errnos(calls []call) []int {
	results := make([]int, len(calls))
	for i, c := range calls {
		a := c.args
		_, _, e := unix.RawSyscall6(uintptr(c.nr), uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]), uintptr(a[4]), uintptr(a[5]))
		results[i] = int(e)
	}
	return results
}

// TestKernelArguments compares how the kernel runs a filter, including its offsets and byte order,
// with the meaning of the profile.
func TestKernelArguments(t *testing.T) {
	out, err := testkit.HelperCommand(t.Context(), "random").Output()
	require.NoError(t, err)
	var got []int
	require.NoError(t, json.Unmarshal(out, &got))
	p, calls := harmless()
	require.Len(t, got, len(calls))
	refused := 0
	for i, c := range calls {
		c.audit = on(t, runtime.GOARCH, "read").audit
		want := evaluate(t, p, runtime.GOARCH, c)
		if want == allow {
			require.Zero(t, got[i], "%+v", c)
			continue
		}
		require.Equal(t, want, errno|uint32(got[i]), "%+v", c)
		refused++
	}
	require.Greater(t, refused, len(calls)/10)
	require.Less(t, refused, len(calls))
}

// TestPrograms runs programs of other people under the default filter.
func TestPrograms(t *testing.T) {
	for _, command := range [][]string{
		{"true"},
		{"sh", "-c", "echo hello | cat >/dev/null && ls / >/dev/null"},
		{"python3", "-c", "import subprocess, threading; subprocess.run(['true'], check=True); t = threading.Thread(target=int); t.start(); t.join()"},
	} {
		t.Run(command[0], func(t *testing.T) {
			if command[0] == "python3" {
				testkit.Need(t, "python3")
			}
			path, err := exec.LookPath(command[0])
			require.NoError(t, err)
			out, err := testkit.HelperCommand(t.Context(), "exec", append([]string{path}, command[1:]...)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}
