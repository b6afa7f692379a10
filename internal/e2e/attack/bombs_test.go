//go:build linux

package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("bomb", bombHelper) }

// bombs take all they can get of something. They end only if they get no more.
var bombs = map[string]func() error{
	"memory": func() error { return testkit.Alloc([]string{"1024"}) },
	"files in memory": func() error {
		for i := range 64 {
			if err := os.WriteFile(fmt.Sprintf("/dev/shm/%d", i), make([]byte, 4<<20), 0o600); err != nil {
				return err
			}
		}
		return errors.New("all were written")
	},
	"pipes": func() error {
		return fill(func() (int, error) {
			var p [2]int
			err := unix.Pipe2(p[:], unix.O_NONBLOCK)
			return p[1], err
		})
	},
	"sockets": func() error {
		return fill(func() (int, error) {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			return p[1], err
		})
	},
	"threads": func() error {
		var p [2]int
		if err := unix.Pipe(p[:]); err != nil {
			return err
		}
		for range 10000 {
			go func() { _, _ = unix.Read(p[0], make([]byte, 1)) }()
		}
		return holdOut()
	},
	"forks": func() error {
		for {
			_, _ = syscall.ForkExec("/bin/sh", []string{"sh", "-c", "b() { b | b & b; }; b"}, new(syscall.ProcAttr))
			_, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		}
	},
	"zombies": func() error {
		var attr syscall.ProcAttr
		for n := 0; ; n++ {
			if _, err := syscall.ForkExec("/bin/true", []string{"true"}, &attr); err != nil {
				fmt.Println(n)
				return holdOut()
			}
		}
	},
	"stops": func() error {
		_ = exec.Command("/bin/sleep", "1000").Start()
		for {
			_ = unix.Kill(-1, unix.SIGSTOP)
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		}
	},
	"processes": func() error { // for a process that has no shell
		for n := 0; ; n++ {
			if err := forkSleeper(); err != nil && n == 0 {
				return err
			}
		}
	},
	"deaf": func() error {
		var all []os.Signal
		for s := range 65 {
			all = append(all, syscall.Signal(s))
		}
		signal.Ignore(all...)
		return holdOut()
	},
	"deep directories": func() error {
		for i := range 3000 {
			if err := errors.Join(os.Mkdir("d", 0o777), os.Chdir("d")); err != nil {
				return fmt.Errorf("level %d: %w", i, err)
			}
		}
		return holdOut()
	},
}

// holdOut waits until it is killed.
func holdOut() error {
	for {
		time.Sleep(time.Hour)
	}
}

// fill writes to new buffers until there are no more.
func fill(buffer func() (int, error)) error {
	full := make([]byte, 1<<20)
	for {
		fd, err := buffer()
		if err != nil {
			return err
		}
		for err == nil {
			_, err = unix.Write(fd, full)
		}
	}
}

func bombHelper(args []string) error { return bombs[args[0]]() }

// setOff sets off the bomb with that name in the process of a function, and returns any other word.
var setOff = function.New("set off", func(_ context.Context, name string) (string, error) {
	if bomb := bombs[name]; bomb != nil {
		return name, bomb()
	}
	return name, nil
})

// bombTest is a bomb in a run with the limit that holds it.
type bombTest struct {
	name   string
	needs  string
	run    *sandbox.Sandbox
	reason sandbox.Reason
}

func bombLimit() time.Duration {
	if testkit.InGuest {
		return 4 * time.Second
	}
	return time.Second
}

func bombTests(t *testing.T) []bombTest {
	limit := bombLimit()
	memory, timeout, few := sandbox.WithMemory(48*sandbox.MiB), sandbox.WithTimeout(limit), sandbox.WithPIDs(64)
	return []bombTest{
		{"memory", "cgroup memory", runs.Helper("bomb", "memory").With(memory), sandbox.OutOfMemory},
		{"files in memory", "cgroup memory", runs.Helper("bomb", "files in memory").With(memory), sandbox.OutOfMemory},
		{"pipes", "cgroup memory", runs.Helper("bomb", "pipes").With(memory), sandbox.OutOfMemory},
		{"sockets", "cgroup memory", runs.Helper("bomb", "sockets").With(memory), sandbox.OutOfMemory},
		{"forks", "cgroup pids", runs.Helper("bomb", "forks").With(few, timeout), sandbox.TimedOut},
		// It ends by itself.
		{"threads", "cgroup pids", runs.Helper("bomb", "threads").With(few, sandbox.WithTimeout(testkit.Patience/2)), sandbox.PIDsExceeded},
		{"zombies", "cgroup pids", runs.Helper("bomb", "zombies").With(few, timeout), sandbox.TimedOut},
		{"a loop on every core", "cgroup cpu", runs.Shell("for i in 1 2 3 4; do (while :; do :; done) & done; wait", sandbox.WithCPUs(0.5), timeout), sandbox.TimedOut},
		{"CPU time", "CPU accounting", runs.Shell("for i in 1 2 3 4; do (while :; do :; done) & done; wait", sandbox.WithCPUTime(limit/4)), sandbox.CPUTimedOut},
		{"stops", "", runs.Helper("bomb", "stops").With(timeout), sandbox.TimedOut},
		{"deaf", "", runs.Helper("bomb", "deaf").With(timeout), sandbox.TimedOut},
		{"deep directories", "", runs.Helper("bomb", "deep directories").With(timeout), sandbox.TimedOut},
		{"output", "", runs.Shell("exec cat /dev/zero", sandbox.WithOutputLimit(sandbox.MiB)), sandbox.OutputExceeded},
		{"output that nobody reads", "", runs.Shell("exec cat /dev/zero", timeout, sandbox.WithStdout(unreadPipe(t))), sandbox.TimedOut},
		{"daemons", "", runs.Shell("for i in 1 2 3 4; do setsid -f sleep 1000; done; exit 7"), sandbox.Exited},
	}
}

// Each bomb is stopped by its limit, which is the reason in the result, and is gone when Run
// returns.
func TestAttackBombs(t *testing.T) {
	t.Parallel()
	for _, test := range bombTests(t) {
		t.Run(test.name, func(t *testing.T) { test.goOff(t, test.run, runs.Start) })
	}
}

// goOff sets the bomb off in a run of s that begin starts.
func (test *bombTest) goOff(t *testing.T, s *sandbox.Sandbox, begin func(testing.TB, *sandbox.Sandbox) *sandbox.Process) {
	if test.needs != "" {
		testkit.Need(t, test.needs)
	}
	mark := testkit.ALongTime()
	began := time.Now()
	p := begin(t, s.With(sandbox.WithEnv("MARK="+mark)))
	result, err := p.Wait()
	require.Equal(t, test.reason, runs.ExitError(t, err).Reason)
	require.Less(t, time.Since(began), bombLimit()+testkit.Patience/2)
	requireNone(t, mark)
	u := result.Usage
	if test.needs == "cgroup memory" {
		require.Positive(t, u.OOMKills)
	}
	if test.needs == "cgroup memory" && !slices.Contains(u.Uncounted, "MemoryPeak") {
		require.LessOrEqual(t, u.MemoryPeak, uint64(49*sandbox.MiB), "the kernel charges in batches, one for each CPU")
	}
	if test.needs == "cgroup pids" && !slices.Contains(u.Uncounted, "PIDsPeak") {
		require.LessOrEqual(t, u.PIDsPeak, uint64(64))
		require.Greater(t, u.PIDsPeak, uint64(3), "it went off, on a slow machine too")
	}
	t.Logf("%v after %v", result.Reason, time.Since(began).Round(time.Millisecond))
}

// unreadPipe is one end of a pipe whose other end nobody reads.
func unreadPipe(t *testing.T) *os.File {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return w
}

// requireNone fails if there is a process with that text in its environment.
func requireNone(t *testing.T, mark string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		require.NotContains(t, string(b), "MARK="+mark, f)
	}
}

// A run beside a bomb that has limits is not much slower than alone.
func TestAttackBombsBeside(t *testing.T) {
	testkit.Need(t, "a machine for timing")
	idle := sandbox.New(sandbox.WithReadOnlyBind(testkit.StaticTrue(t), "/true"), sandbox.WithCommand("/true"))
	limits := []sandbox.Option{sandbox.WithMemory(64 * sandbox.MiB), sandbox.WithPIDs(64), sandbox.WithCPUs(0.5), sandbox.WithTimeout(testkit.Patience)}
	for name, bomb := range map[string]*sandbox.Sandbox{
		"loops":  runs.Shell("for i in 1 2 3 4; do (while :; do :; done) & done; wait"),
		"forks":  runs.Helper("bomb", "forks"),
		"memory": runs.Shell("while :; do tail -c 1G /dev/zero; done"),
	} {
		t.Run(name, func(t *testing.T) {
			var ratios []string
			for range 5 { // the machine may be busy with something else
				alone := medianOfRuns(t, idle)
				p := runs.Start(t, bomb.With(limits...))
				beside := medianOfRuns(t, idle)
				_ = p.Kill()
				_, _ = p.Wait()
				ratios = append(ratios, fmt.Sprintf("%.2f", float64(beside)/float64(alone)))
				if beside < 3*alone {
					t.Logf("beside the bomb a run takes %s x", strings.Join(ratios, ", "))
					return
				}
			}
			require.Fail(t, "slower than 3 x each time", "%v", ratios)
		})
	}
}

func medianOfRuns(t *testing.T, s *sandbox.Sandbox) time.Duration {
	var all []time.Duration
	for range 31 {
		began := time.Now()
		_, err := s.Run(testkit.Deadline(t))
		require.NoError(t, err)
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// What a run writes to a disk stays in memory and is counted, but is written out when the limit is
// reached.
func TestAttackPageCache(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "block I/O limits")
	dir, err := os.MkdirTemp("/var/tmp", "sandbox-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	result, err := runs.Shell("head -c 128M /dev/zero >/job/file; wc -c </job/file", sandbox.WithBind(dir, "/job"), sandbox.WithMemory(16*sandbox.MiB)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.LessOrEqual(t, result.Usage.MemoryPeak, uint64(17*sandbox.MiB))
	require.Zero(t, result.Usage.OOMKills)
}
