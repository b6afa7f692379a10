//go:build linux

package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("unruly", unrulyHelper)
	testkit.AddHelper("give", giveHelper)
	testkit.AddHelper("keep", keepHelper)
}

// unruly is what a run may be doing, endlessly, while it is inspected, paused and killed.
var unruly = map[string]func() error{
	"renames itself": func() error {
		for i := 0; ; i++ {
			name := []string{") R 1 1 (", "a\nState:\tX (dead)\n", "\x01\xff(((", "sandbox-init", "kworker/0:1"}[i%5]
			_ = unix.Prctl(unix.PR_SET_NAME, pathOf(name), 0, 0, 0)
			kept = kept[:0]
		}
	},
	"executes itself": func() error {
		return syscall.Exec("/helper", []string{"/helper", "unruly", "executes itself"}, os.Environ())
	},
	"forks": func() error {
		for {
			pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if pid == 0 {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			_, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
	},
	"leaves orphans": func() error {
		for {
			pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if pid == 0 {
				_, _, _ = unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
				_, _, _ = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			_, _ = unix.Wait4(-1, nil, 0, nil)
		}
	},
	"begins threads": func() error {
		for {
			ended := make(chan bool)
			go func() { runtime.LockOSThread(); close(ended) }() // ends the thread
			<-ended
		}
	},
	"is traced, and stopped": func() error {
		runtime.LockOSThread()
		pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		for pid == 0 {
			_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0, 0, 0, 0)
			self, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
			_, _, _ = unix.RawSyscall(unix.SYS_KILL, self, uintptr(unix.SIGTRAP), 0)
		}
		for i := 0; ; i++ {
			var status unix.WaitStatus
			if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
				return err
			}
			if i%100 == 99 {
				time.Sleep(20 * time.Millisecond) // stays stopped
			}
			_ = unix.PtraceCont(int(pid), 0)
		}
	},
	"waits for a child that shares its fate": func() error { // in vfork(2), which only a fatal signal interrupts
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD|unix.CLONE_VFORK), 0, 0, 0, 0, 0)
		for errno == 0 && pid == 0 {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
		return errno
	},
	"stops itself": func() error {
		for {
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		}
	},
	"signals everybody": func() error {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTSTP)
		for {
			for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGTERM, unix.SIGCHLD, 34} {
				_ = unix.Kill(1, s)
			}
			_ = unix.Kill(-1, unix.SIGCONT)
		}
	},
	"has its streams in a thousand places": func() error {
		null, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		for i := 0; ; i++ {
			for fd := range 3 {
				_, _ = unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 10)
				if i%100 == 99 {
					_ = unix.Dup3(null, fd, 0)
				}
			}
			if i%1000 == 999 {
				_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 10, 1<<20, 0)
			}
		}
	},
	"writes what nobody reads": func() error {
		for {
			if _, err := os.Stdout.Write(make([]byte, 1<<16)); err != nil {
				return err
			}
		}
	},
}

func unrulyHelper(args []string) error { return unruly[args[0]]() }

// Whatever a run is doing, several callers at once can pause and resume it, inspect and signal it,
// and end it, paused or not. It ends at once, with the right reason, and nothing of it is left.
func TestAttackUnruly(t *testing.T) {
	t.Parallel()
	rounds := 3
	if testkit.InGuest {
		rounds = 1
	}
	for name := range unruly {
		t.Run(name, func(t *testing.T) {
			for range rounds {
				for reason, end := range map[sandbox.Reason]func(p *sandbox.Process, cancel func()){
					sandbox.Signaled: func(p *sandbox.Process, _ func()) { _ = p.Kill() },
					sandbox.Canceled: func(_ *sandbox.Process, cancel func()) { cancel() },
				} {
					requireManageable(t, name, reason, end)
				}
			}
		})
	}
}

func requireManageable(t *testing.T, name string, reason sandbox.Reason, end func(*sandbox.Process, func())) {
	t.Helper()
	mark := testkit.ALongTime()
	s := runs.Helper("unruly", name).With(sandbox.WithEnv("MARK="+mark), sandbox.WithStdout(unreadPipe(t)))
	if testkit.Controller("pids") {
		s = s.With(sandbox.WithPIDs(40))
	}
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	defer cancel()
	p, err := s.Start(ctx)
	require.NoError(t, err)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for range 8 {
				var err error
				switch rand.IntN(4) {
				case 0:
					err = p.Pause()
				case 1:
					err = p.Resume()
				case 2:
					_, err = p.Usage()
				case 3:
					err = p.Signal(syscall.SIGCONT)
				}
				if err != nil && !errors.As(err, new(*sandbox.SetupError)) { // there may be no freezer
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	all.Wait()
	if rand.IntN(2) == 0 {
		_ = p.Pause()
	}
	began := time.Now()
	end(p, cancel)
	result, err := p.Wait()
	require.Error(t, err)
	require.NotNil(t, result, "%v", err)
	require.Equal(t, reason, result.Reason)
	require.Less(t, time.Since(began), testkit.Patience/4)
	require.ErrorIs(t, p.Pause(), os.ErrProcessDone)
	requireNone(t, mark)
}

// A run sends its output's descriptor to another, which keeps it, and writes to it after the first
// has ended. The first run's result is there when it ends, and contains nothing that was written
// afterwards.
func TestAttackGivenStreams(t *testing.T) {
	t.Parallel()
	pair := socketPair(t, unix.SOCK_SEQPACKET)
	hold, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer hold.Close()
	keeper := runs.Start(t, runs.Helper("keep").With(sandbox.WithExtraFiles(pair[1]), sandbox.WithStdin(neverEnding(t))))
	for _, limited := range []bool{false, true} {
		var out, stderr bytes.Buffer
		s := runs.Helper("give").With(sandbox.WithExtraFiles(pair[0]), sandbox.WithStdout(&out), sandbox.WithStderr(io.MultiWriter(&stderr)))
		if limited {
			s = s.With(sandbox.WithOutputLimit(10 * sandbox.MiB))
		}
		began := time.Now()
		result, err := s.Run(testkit.Deadline(t))
		if limited && errors.Is(err, sandbox.ErrOutputLimit) {
			require.Equal(t, sandbox.OutputExceeded, result.Reason)
		} else {
			require.NoError(t, err, "%s", &stderr)
			require.Contains(t, out.String(), "mine\n")
		}
		require.Less(t, time.Since(began), testkit.Patience/2)
		length := out.Len()
		time.Sleep(20 * time.Millisecond)
		require.Equal(t, length, out.Len(), "what comes later is not the run's")
	}
	require.NoError(t, keeper.Signal(syscall.Signal(0)), "it still has them")
}

// giveHelper sends its standard output and error, and ends when another process has them.
func giveHelper([]string) error {
	fmt.Println("mine")
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(1, 2), nil, 0); err != nil {
		return err
	}
	_, err := unix.Read(3, make([]byte, 1))
	return err
}

// keepHelper receives descriptors, reports that, and goes on writing to them.
func keepHelper([]string) error {
	signal.Ignore(syscall.SIGPIPE)
	for {
		oob := make([]byte, unix.CmsgSpace(8))
		_, n, _, _, err := unix.Recvmsg(3, nil, oob, 0)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return fmt.Errorf("%d messages: %w", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		if _, err := unix.Write(3, []byte{0}); err != nil {
			return err
		}
		for _, fd := range fds {
			go func() {
				for {
					if _, err := unix.Write(fd, []byte("not mine\n")); err != nil {
						return
					}
				}
			}()
		}
	}
}
