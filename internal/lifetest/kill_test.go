//go:build linux

package lifetest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// TestKilledHost kills a host process at random moments. All its processes must end at once, and
// the next boot of any process must remove the rest.
func TestKilledHost(t *testing.T) {
	testkit.Need(t, "root")
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 0))
	defer adopt(t)()

	kills := testkit.Scale(50, 10)
	boot, rest := testkit.Scale(80*time.Millisecond, 4*time.Second), testkit.Scale(600*time.Millisecond, 15*time.Second)
	moments := map[string]int{}
	var slowest time.Duration
	for i := range kills {
		most := rest
		if i%3 == 0 {
			most = boot
		}
		delay := time.Duration(random.Int64N(int64(most)))
		phase, took := killOne(t, seed+uint64(i), delay)
		moments[phase]++
		slowest = max(slowest, took)
		bootOnce(t)
		requireNothingLeft(t)
	}
	t.Logf("%d kills, while the host was: %v; the last process was gone after %v at most", kills, moments, slowest)
}

// TestKilledHostPaused kills a host process whose run is paused: on cgroup v1 a frozen process
// can't die, and so its cell can't.
func TestKilledHostPaused(t *testing.T) {
	testkit.Need(t, "root")
	defer adopt(t)()
	for range testkit.Scale(5, 2) {
		v := startVictim(t, "pause")
		require.Eventually(t, func() bool { return v.phase() == "paused" }, testkit.Scale(10*time.Second, 2*time.Minute), time.Millisecond)
		took := v.kill(t)
		t.Logf("the last process was gone after %v", took)
		bootOnce(t)
		requireNothingLeft(t)
	}
}

// TestKilledHostServices kills a host process whose ten services have all that services may have,
// or wait for a snapshot that is being made.
func TestKilledHostServices(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "idmapped tmpfs")
	defer adopt(t)()
	for _, while := range []string{"snapshot", "serving"} {
		v := startVictim(t, while)
		require.Eventually(t, func() bool { return v.phase() == while }, testkit.Scale(20*time.Second, 3*time.Minute), time.Millisecond)
		took := v.kill(t)
		t.Logf("%s: the last process was gone after %v", while, took)
		bootOnce(t)
		requireNothingLeft(t)
	}
}

// adopt makes orphans children of this process, whatever namespace they are in, until end is
// called, which reaps them.
func adopt(t *testing.T) (end func()) {
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	return func() {
		require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0))
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
				return
			}
		}
	}
}

// seedOf returns a new seed each time or, to reproduce a failure, the given one.
func seedOf(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SANDBOX_TEST_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("SANDBOX_TEST_SEED=%d", seed)
	return seed
}

func killOne(t *testing.T, seed uint64, delay time.Duration) (phase string, took time.Duration) {
	t.Helper()
	v := startVictim(t, strconv.FormatUint(seed, 10))
	time.Sleep(delay)
	took = v.kill(t)
	return v.phase(), took
}

type victimProcess struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	phases *os.File
	before map[int]bool // processes that do not belong to it
}

func startVictim(t *testing.T, how string) *victimProcess {
	t.Helper()
	v := &victimProcess{before: map[int]bool{}}
	for _, p := range descendants(t) {
		v.before[p.pid] = true
	}
	fd, err := unix.MemfdCreate("phase", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	v.phases = os.NewFile(uintptr(fd), "phase")
	t.Cleanup(func() { v.phases.Close() })
	v.cmd = testkit.HelperCommand(context.Background(), "victim", how)
	v.cmd.ExtraFiles = []*os.File{v.phases}
	v.cmd.Stderr = &v.stderr
	require.NoError(t, v.cmd.Start())
	return v
}

// kill returns how long it took until the last process was gone.
func (v *victimProcess) kill(t *testing.T) time.Duration {
	t.Helper()
	require.NoError(t, v.cmd.Process.Kill())
	start := time.Now()
	limit := testkit.Scale(3*time.Second, 30*time.Second)
	for {
		// Not cmd.Wait: that would also wait for the processes that hold its standard
		// error.
		own := v.reap(t)
		if len(own) == 0 {
			break
		}
		if time.Since(start) > limit {
			left := fmt.Sprint(own)
			v.cleanUp(t, own)
			t.Fatalf("while %s: %v after the host was killed these processes are left:\n%s", v.phase(), limit, left)
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(start)
	_ = v.cmd.Wait()
	require.Empty(t, v.stderr.String(), "the host complained while %s", v.phase())
	return took
}

// reap lists the victim's processes and waits for those that have ended. exec.Cmd waits for the
// victim itself.
func (v *victimProcess) reap(t *testing.T) (own []process) {
	t.Helper()
	for _, p := range descendants(t) {
		if v.before[p.pid] {
			continue
		}
		if p.state == "Z" && p.pid == v.cmd.Process.Pid {
			continue
		}
		if p.state == "Z" && p.parent == os.Getpid() {
			_, err := unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
			require.NoError(t, err)
			continue
		}
		own = append(own, p)
	}
	return own
}

// cleanUp makes a failed test leave nothing behind: a sweep thaws what is frozen.
func (v *victimProcess) cleanUp(t *testing.T, own []process) {
	for _, p := range own {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	bootOnce(t)
	for deadline := time.Now().Add(5 * time.Second); len(v.reap(t)) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

func (v *victimProcess) phase() string {
	var b [16]byte
	n, _ := v.phases.ReadAt(b[:], 0)
	if n == 0 {
		return "starting"
	}
	return string(bytes.TrimRight(b[:n], " "))
}

// bootOnce boots a cell, which removes what dead owners have left, and ends it.
func bootOnce(t *testing.T) {
	t.Helper()
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	out, err := sandbox.New(sandbox.WithCell(c), sandbox.WithCommand("echo", "hi")).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "hi\n", string(out))
	require.NoError(t, c.Close())
}

// victim is the host process that is killed. Until then it runs sandboxes of all kinds.
func victim(args []string) error {
	switch args[0] {
	case "pause":
		pauseForEver()
	case "snapshot":
		serveForEver("touch /data/x; sleep 100")
	case "serving":
		serveForEver("touch /data/x")
	}
	seed, err := strconv.ParseUint(args[0], 10, 64)
	check(err)
	random := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	var background atomic.Int64
	for {
		phase("booting")
		_, err := sandbox.New(sandbox.WithCommand("true")).Run(ctx)
		check(err)
		for {
			s := randomSandbox(random)
			kind := random.IntN(12)
			if kind == 0 {
				break
			}
			if kind <= 2 && background.Load() < 5 {
				background.Add(1)
				go func() {
					defer background.Add(-1)
					_, _ = s.With(sandbox.WithCommand("sh", "-c", "sleep 100 & sleep 100")).Run(ctx) // until the cell is shut down
				}()
				continue
			}
			if kind == 3 {
				pauseOne(s)
				continue
			}
			phase("running")
			out, err := s.With(sandbox.WithCommand("sh", "-c", "true & echo hi")).Output(ctx)
			check(err)
			if string(out) != "hi\n" {
				check(fmt.Errorf("output %q", out))
			}
		}
		phase("shutting down")
		check(sandbox.Shutdown(ctx))
	}
}

func randomSandbox(random *rand.Rand) *sandbox.Sandbox {
	s := sandbox.New()
	if random.IntN(2) == 0 {
		s = s.With(sandbox.WithMemory(int64(16+random.IntN(64)) * sandbox.MiB))
	}
	if random.IntN(3) == 0 {
		s = s.With(sandbox.WithCPUs(0.5 + random.Float64()))
	}
	if random.IntN(3) == 0 { // a template of its own
		s = s.With(sandbox.WithTmpfs(fmt.Sprintf("/tmp%d", random.IntN(50)), sandbox.MiB))
	}
	if random.IntN(5) == 0 {
		s = s.With(sandbox.WithWritableRoot(8 * sandbox.MiB))
	}
	return s
}

func pauseOne(s *sandbox.Sandbox) {
	phase("pausing")
	p, err := s.With(sandbox.WithCommand("sh", "-c", "sleep 100 & while :; do :; done")).Start(context.Background())
	check(err)
	check(p.Pause())
	phase("paused")
	time.Sleep(20 * time.Millisecond)
	check(p.Resume())
	phase("killing")
	check(p.Kill())
	_, _ = p.Wait()
}

func pauseForEver() {
	for range 2 {
		p, err := sandbox.New(sandbox.WithCommand("sh", "-c", "sleep 100 & while :; do :; done")).Start(context.Background())
		check(err)
		check(p.Pause())
	}
	phase("paused")
	select {}
}

// serveForEver has ten services, with copies of what a script makes in /data.
func serveForEver(script string) {
	data := service.NewSnapshot("/data", sandbox.MiB, sandbox.New(sandbox.WithCommand("sh", "-c", script)))
	var all []*service.Service
	for n := range 10 {
		s := sandbox.New(sandbox.WithCommand("sh", "-c", "trap '' TERM; ls /data/x && sleep 100"), sandbox.WithMemory(32*sandbox.MiB))
		all = append(all, service.New(fmt.Sprint("x", n), s, service.Port(80), service.From(data), service.Volume("/more", sandbox.MiB),
			service.Restart(3), service.Ready(service.Log("x")), service.Health(10*time.Millisecond, 1, service.Command("true")),
			service.Observe(func(e service.Event) {
				if e.State == service.Preparing {
					phase("snapshot")
				}
			})))
	}
	_, err := service.StartAll(context.Background(), all...)
	check(err)
	phase("serving")
	select {}
}

var phases = os.NewFile(3, "phase")

func phase(name string) {
	_, err := phases.WriteAt(fmt.Appendf(nil, "%-16s", name), 0)
	check(err)
}

// check ends a helper process that meets an error. Its standard error must be empty.
func check(err error) {
	if err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error()+"\n")
		os.Exit(1)
	}
}
