//go:build linux

package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// hoard is something that the kernel counts for several runs together, or gives to the first who
// asks.
type hoard struct {
	take func(i int) error // takes one more of it, for good
	most int               // how many are tried
}

// hoards are what a run may try to take away from all others.
var hoards = map[string]hoard{
	"inotify instances":    {func(int) error { _, err := unix.InotifyInit1(0); return err }, 1000},
	"inotify watches":      {watchOne, 1 << 20},
	"terminals":            {func(int) error { _, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0); return err }, 5000},
	"asynchronous I/O":     {func(int) error { return ioSetup(65536) }, 10},
	"queued signals":       {func(int) error { return queueSignal() }, 1 << 20},
	"message queues":       {openQueue, 1000},
	"locked shared memory": {func(int) error { return lockMemory(1 << 20) }, 1000},
	"pages of pipes":       {func(int) error { return bigPipe() }, 500},
	"processes":            {func(int) error { return forkSleeper() }, 2000},
}

var watcher struct{ instance, files int }

// watchOne watches one more file. Each instance of inotify watches the same ones.
func watchOne(i int) (err error) {
	const files = 20_000
	if i%files == 0 {
		if watcher.instance, err = unix.InotifyInit1(0); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("/tmp/%d", i%files)
	if i < files {
		if err := unix.Mknod(name, unix.S_IFREG|0o600, 0); err != nil {
			return err
		}
	}
	_, err = unix.InotifyAddWatch(watcher.instance, name, unix.IN_OPEN)
	return err
}

func ioSetup(events int) error {
	var ctx uintptr
	return rawCall(unix.SYS_IO_SETUP, uintptr(events), uintptr(unsafe.Pointer(&ctx)))
}

func queueSignal() error {
	const rtmin = 34
	set := uint64(1) << (rtmin - 1)
	if err := rawCall(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&set)), 0, 8); err != nil {
		return err
	}
	info := [128]byte{}
	*(*int32)(unsafe.Pointer(&info[0])), *(*int32)(unsafe.Pointer(&info[8])) = rtmin, -1 // SI_QUEUE
	return rawCall(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(unix.Gettid()), rtmin, uintptr(unsafe.Pointer(&info[0])))
}

func openQueue(i int) error {
	return rawCall(unix.SYS_MQ_OPEN, pathOf(fmt.Sprintf("queue%d", i)), unix.O_CREAT|unix.O_RDWR, 0o600, 0)
}

func lockMemory(size int) error {
	const shmLock = 11
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, size, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.SysvShmCtl(id, shmLock, nil)
	return err
}

func bigPipe() error {
	var p [2]int
	if err := unix.Pipe2(p[:], 0); err != nil {
		return err
	}
	_, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, 1<<20)
	return err
}

// forkSleeper makes a process that does nothing.
func forkSleeper() error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	for errno == 0 && pid == 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// hoardHelper takes as many of one kind as it gets, and prints how many and why no more. Then it
// waits for the end of its input.
func hoardHelper(args []string) error {
	h := hoards[args[0]]
	if len(args) > 1 {
		h.most = 1
	}
	var err error
	n := 0
	for ; n < h.most && err == nil; n++ {
		err = h.take(n)
	}
	var errno unix.Errno
	_ = errors.As(err, &errno)
	fmt.Println(n, unix.ErrnoName(errno))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A run that takes all that it can get of something is stopped before nothing is left, and a run
// beside it gets as much as it gets alone.
func TestAttackNeighbours(t *testing.T) {
	testkit.Need(t, "root")
	for name, h := range hoards {
		t.Run(name, func(t *testing.T) {
			if name == "processes" {
				testkit.Need(t, "cgroup pids")
			}
			alone := runs.Output(t, runs.Helper("hoard", name, "one"))
			out := beside(t, runs.Helper("hoard", name).With(sandbox.WithRlimit("nofile", 20000, 20000)))
			line, err := out.ReadString('\n')
			require.NoError(t, err)
			var n int
			_, err = fmt.Sscan(line, &n)
			require.NoError(t, err)
			require.Less(t, n, h.most, "nothing stopped it")
			require.Equal(t, alone, runs.Output(t, runs.Helper("hoard", name, "one")))
			t.Logf("stopped at %s", strings.TrimSpace(line))
		})
	}
}

// beside starts a sandbox whose run goes on until the test's end, and returns its output.
func beside(t *testing.T, s *sandbox.Sandbox) *bufio.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	in, hold, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { hold.Close() })
	runs.Start(t, s.With(sandbox.WithStdin(in), sandbox.WithStdout(w)))
	in.Close()
	w.Close()
	return bufio.NewReader(r)
}

// Runs share the files of their root, and so locks and notifications of accesses, as SECURITY.md
// says. A writable root, which is a layer for each run, keeps them apart.
func TestAttackSharedFiles(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	attempt := "exec 9</usr/bin/env; if flock -n 9; then echo locked; else echo refused; fi"
	for _, layer := range []bool{false, true} {
		s := sandbox.New()
		want := "refused"
		if layer {
			s, want = s.With(sandbox.WithWritableRoot(16*sandbox.MiB)), "locked"
		}
		holder := beside(t, s.With(sandbox.WithCommand("/bin/sh", "-c", attempt+"; cat")))
		line, err := holder.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "locked\n", line)
		require.Equal(t, want, runs.Output(t, s.With(sandbox.WithCommand("/bin/sh", "-c", attempt))))
	}
}
