//go:build linux

package attack

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A filter that asks for each call that it refuses must refuse all the same, whatever the run does
// while a call waits, and whatever other filters it has.
func TestAttackRootlessRefusals(t *testing.T) {
	t.Parallel()
	var comms sync.Map
	told := sandbox.WithRefusals(func(r sandbox.Refusal) { comms.Store(r.Comm, true) })
	t.Run("set-id", func(t *testing.T) {
		testkit.Need(t, "idmapped tmpfs or an ordinary user")
		dir := testkit.OpenDir(t)
		requireHeld(t, "set-id", attacker("set-id").With(told, sandbox.WithBind(dir, "/job"), sandbox.WithDir("/job")))
		requireNoSetID(t, dir)
	})
	requireHeld(t, "refusals", attacker("refusals").With(told))
	for comm := range comms.Range {
		require.LessOrEqual(t, len(comm.(string)), 15)
	}
	for name, o := range tried(t, "refusals", runs.Output(t, attacker("refusals").With(sandbox.WithSetID()))) {
		require.True(t, o.through || name == "end", "the control: %s: %s", name, o.by)
	}
}

// Nor does a run keep this process busy by calls that are refused, or end badly in the midst of
// them.
func TestAttackRootlessRefusedFlood(t *testing.T) {
	flood := func(opts ...sandbox.Option) (calls, limit int) {
		var took int
		out := runs.Output(t, runs.Helper("flood of refused calls").With(opts...))
		_, err := fmt.Sscan(out, &calls, &took)
		require.NoError(t, err, "%q", out)
		// At once, one for each millisecond, and some leeway.
		return calls, 1000 + took + 100
	}
	calls, limit := flood(sandbox.WithRefusals(func(sandbox.Refusal) {}))
	require.LessOrEqual(t, calls, limit)
	calls, limit = flood()
	require.Greater(t, calls, limit, "the control")
}

// Calls that name a path wait for a look at what it names. All that a run can do to
// the look is to make it useless; nor does a run find out by it what this machine has.
func TestAttackRootlessRefusedPaths(t *testing.T) {
	t.Parallel()
	var told atomic.Int64
	count := sandbox.WithRefusals(func(r sandbox.Refusal) {
		told.Add(1)
		assert.LessOrEqual(t, len(r.Path), unix.PathMax)
	})
	names := runs.Output(t, runs.Helper("unruly paths").With(count))
	require.Equal(t, runs.Output(t, runs.Helper("unruly paths")), names, "the same without")
	require.LessOrEqual(t, told.Load(), int64(512))
}

func init() {
	testkit.AddHelper("flood of refused calls", func([]string) error {
		var calls atomic.Int64
		began := time.Now()
		for range 4 {
			go func() {
				for {
					_, _, _ = unix.Syscall(unix.SYS_MOUNT, 0, 0, 0)
					calls.Add(1)
				}
			}()
		}
		time.Sleep(time.Second)
		fmt.Println(calls.Load(), time.Since(began).Milliseconds())
		return nil // with calls that wait
	})
	testkit.AddHelper("unruly paths", unrulyPaths)
	testkit.AddHelper("give set-id bits", func(args []string) error {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("\x1b[2J\n\"\xff\x00")[0])), 0, 0, 0)
		fmt.Println("begins")
		for {
			_ = unix.Chmod(args[0], unix.S_ISUID|0o755)
		}
	})
	testkit.HelperArgs("give set-id bits")
	addAttacks("refusals", []attack{
		{name: "a filter that allows", try: func([]string) error {
			if _, err := loadFilter(unix.SECCOMP_RET_ALLOW, 0); err != nil {
				return err
			}
			return giveSetID("allowed")
		}},
		{name: "a call whose thread is killed", try: func([]string) error {
			const name = "/tmp/killed"
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				return err
			}
			for i := range 30 {
				c := exec.Command("/helper", "give set-id bits", name)
				out, err := c.StdoutPipe()
				if err == nil {
					err = c.Start()
				}
				if err == nil {
					_, err = io.ReadFull(out, make([]byte, 1))
				}
				if err != nil {
					return err
				}
				time.Sleep(time.Duration(i) * time.Millisecond)
				_ = c.Process.Kill()
				_ = c.Wait()
			}
			return hasSetID(name)
		}},
		{name: "a listener of its own", try: func([]string) error {
			// The listener is left open.
			_, err := loadFilter(unix.SECCOMP_RET_ALLOW, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
			return err
		}},
		{name: "a listener that is open", try: func([]string) error {
			files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
			for _, f := range files {
				if to, _ := os.Readlink(f); strings.Contains(to, "seccomp notify") {
					return nil
				}
			}
			return errNothing
		}},
	})
}

const atFDCWD = ^uintptr(99) // AT_FDCWD

// unrulyPaths names files in ways that a look at them has to bear, and prints how the calls end.
func unrulyPaths([]string) error {
	access := func(name string, path uintptr) {
		_, _, errno := unix.Syscall(unix.SYS_FACCESSAT, atFDCWD, path, 0)
		fmt.Println(name, unix.ErrnoName(errno))
	}
	text := func(name, path string) {
		p, err := unix.BytePtrFromString(path)
		if err != nil {
			panic(err)
		}
		access(name, uintptr(unsafe.Pointer(p)))
		runtime.KeepAlive(p)
	}
	page, err := unix.Mmap(-1, 0, 2*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	if err := unix.Mprotect(page[os.Getpagesize():], unix.PROT_NONE); err != nil {
		return err
	}
	end := page[os.Getpagesize()-4:]
	copy(end, "/tmp")
	access("a path without an end", uintptr(unsafe.Pointer(&end[0])))
	copy(end, "/us\x00")
	access("a path at the end of what can be read", uintptr(unsafe.Pointer(&end[0])))
	access("no memory", 1)
	access("memory of the kernel", ^uintptr(0)-4096)
	text("too long a path", strings.Repeat("/tmp/..", 1000))
	text("too long a name", "/"+strings.Repeat("x", 300))
	text("many steps", strings.Repeat("/tmp/..", 500))
	text("nothing", "")

	_ = os.Symlink("loop", "/tmp/loop")
	text("a loop", "/tmp/loop/x")
	_ = os.Symlink("/tmp/..", "/tmp/up")
	text("links", strings.Repeat("/tmp/up", 39)+"/etc")
	_ = os.Symlink(strings.Repeat("/tmp/..", 500), "/tmp/long")
	text("long links", "/tmp/long/tmp/long/tmp/long")
	text("the root's parent", "/../../../../etc/nothing")
	text("links of proc", "/proc/self/root/proc/self/cwd/proc/1/root/etc/shadow")
	text("what a terminal would not bear", "/tmp/\x1b[2J\n\xff")

	_ = unix.Mkfifo("/tmp/fifo", 0o600)
	fd, err := unix.Open("/tmp/fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	fmt.Println("a FIFO without a writer", fd >= 0, err)
	fd, err = unix.Open("/tmp/fifo", unix.O_WRONLY|unix.O_NONBLOCK, 0)
	fmt.Println("a FIFO with a reader", fd >= 0, err)

	// Paths and files that change while calls wait, from a process of many threads that
	// executes another program in their midst.
	_ = os.Mkdir("/tmp/dir", 0o700)
	name := append([]byte("/tmp/dir/"), make([]byte, 5000)...)
	for i := range 8 {
		go func() {
			for {
				_, _, _ = unix.Syscall(unix.SYS_FACCESSAT, atFDCWD, uintptr(unsafe.Pointer(&name[0])), 0)
				name[(i*37)%len("/tmp/dir/")]++
				_ = os.Rename("/tmp/dir", "/tmp/other")
				_ = os.Rename("/tmp/other", "/tmp/dir")
			}
		}()
	}
	time.Sleep(200 * time.Millisecond)
	return unix.Exec("/bin/sh", []string{"sh", "-c", "echo the end"}, nil)
}

// loadFilter loads a filter of one instruction for this thread.
func loadFilter(action uint32, flags uintptr) (fd uintptr, err error) {
	code := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: action}}
	program := unix.SockFprog{Len: 1, Filter: &code[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return fd, nil
}

func giveSetID(name string) error {
	name = filepath.Join("/tmp", name)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Chmod(name, unix.S_ISUID|0o755); err != nil {
		return err
	}
	return hasSetID(name)
}

func hasSetID(name string) error {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_ISUID == 0 {
		return fmt.Errorf("the mode is %o", st.Mode)
	}
	return nil
}
