//go:build linux

package lifetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestManyRuns runs all kinds of sandboxes in parallel, which several goroutines derive from one.
func TestManyRuns(t *testing.T) {
	testkit.Need(t, "root")
	defer shutdown(t)
	runs, atATime := testkit.Scale(500, 40), testkit.Scale(50, 8)
	start := time.Now()
	for _, err := range manyRuns(runs, atATime, sandbox.New()) {
		assert.NoError(t, err)
	}
	took := time.Since(start)
	t.Logf("%d runs, %d at a time, in %v: %v each", runs, atATime, took.Round(time.Millisecond), (took / time.Duration(runs)).Round(time.Microsecond))
}

// TestManyHosts has several processes use the library at the same time.
func TestManyHosts(t *testing.T) {
	testkit.Need(t, "root")
	hosts, runs := testkit.Scale(8, 3), testkit.Scale(20, 8)
	start := time.Now()
	var all sync.WaitGroup
	for i := range hosts {
		all.Go(func() {
			out, err := testkit.HelperCommand(t.Context(), "worker", strconv.Itoa(runs), strconv.Itoa(i%2)).CombinedOutput()
			assert.NoError(t, err)
			assert.Equal(t, fmt.Sprintf("%d runs\n", runs), string(out))
		})
	}
	all.Wait()
	t.Logf("%d processes, %d runs each, in %v", hosts, runs, time.Since(start).Round(time.Millisecond))
	bootOnce(t) // every other worker did not shut down
	requireNothingLeft(t)
}

// worker is one of the processes of TestManyHosts.
func worker(args []string) error {
	runs, err := strconv.Atoi(args[0])
	check(err)
	check(errors.Join(manyRuns(runs, 5, sandbox.New())...))
	if args[1] == "1" {
		check(sandbox.Shutdown(context.Background()))
	}
	fmt.Printf("%d runs\n", runs)
	return nil
}

// manyRuns makes runs of every kind in turn and returns the errors.
func manyRuns(runs, atATime int, base *sandbox.Sandbox) (errs []error) {
	var (
		mu   sync.Mutex
		all  sync.WaitGroup
		next = make(chan int)
	)
	for range atATime {
		all.Go(func() {
			for i := range next {
				kind := kinds[i%len(kinds)]
				if err := kind.run(base, i); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("run %d, %s: %w", i, kind.name, err))
					mu.Unlock()
				}
			}
		})
	}
	for i := range runs {
		next <- i
	}
	close(next)
	all.Wait()
	return errs
}

var kinds = []struct {
	name string
	run  func(base *sandbox.Sandbox, i int) error
}{
	{"exit code", exitCode},
	{"streams", streams},
	{"memory", memory},
	{"timeout", timeout},
	{"files", files},
	{"processes", processes},
	{"output", output},
	{"size", size},
	{"writable root", writableRoot},
}

// shell derives a sandbox that runs a script.
func shell(base *sandbox.Sandbox, script string, opts ...sandbox.Option) *sandbox.Sandbox {
	return base.With(append(opts, sandbox.WithCommand("/bin/sh", "-c", script))...)
}

// wrote compares the output.
func wrote(s *sandbox.Sandbox, want string) error {
	got, err := s.Output(context.Background())
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil || string(got) != want {
		return fmt.Errorf("got %q, want %q: %w", got, want, err)
	}
	return nil
}

func exitCode(base *sandbox.Sandbox, i int) error {
	want := 1 + i%100
	res, err := shell(base, "exit $CODE", sandbox.WithEnv(fmt.Sprintf("CODE=%d", want))).Run(context.Background())
	var exit *sandbox.ExitError
	if !errors.As(err, &exit) || res.ExitCode != want || res.Reason != sandbox.Exited {
		return fmt.Errorf("got %+v, %w; want exit code %d", res, err, want)
	}
	return nil
}

func streams(base *sandbox.Sandbox, i int) error {
	want := strings.Repeat(fmt.Sprintf("%d\n", i), 50_000)
	return wrote(base.With(sandbox.WithCommand("cat"), sandbox.WithStdin(strings.NewReader(want))), want)
}

func memory(base *sandbox.Sandbox, i int) error {
	limit := int64(8+i%8) * sandbox.MiB
	// tail keeps the last line, which never ends.
	res, err := shell(base, "tail -n 1 /dev/zero", sandbox.WithMemory(limit), sandbox.WithTimeout(5*time.Minute)).Run(context.Background())
	if !errors.Is(err, sandbox.ErrOutOfMemory) || res.Usage.OOMKills == 0 || res.Usage.MemoryPeak > uint64(limit) {
		return fmt.Errorf("got %+v, %w; want it out of %d bytes of memory", res, err, limit)
	}
	return nil
}

func timeout(base *sandbox.Sandbox, i int) error {
	limit := time.Duration(50+i%50) * time.Millisecond
	res, err := shell(base, "sleep 1000 & sleep 1000", sandbox.WithTimeout(limit)).Run(context.Background())
	if !errors.Is(err, sandbox.ErrTimeout) || res.Usage.Wall < limit {
		return fmt.Errorf("got %+v, %w; want a timeout after %v", res, err, limit)
	}
	return nil
}

func files(base *sandbox.Sandbox, i int) error {
	name := fmt.Sprintf("host-%d", i)
	data := bytes.Repeat([]byte{'a' + byte(i%26)}, 10_000)
	s := shell(base, "hostname; cat /data/file", sandbox.WithHostname(name), sandbox.WithFile("/data/file", data, 0o444))
	return wrote(s, name+"\n"+string(data))
}

func processes(base *sandbox.Sandbox, i int) error {
	limit := int64(3 + i%3)
	res, err := shell(base, "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done", sandbox.WithPIDs(limit)).Run(context.Background())
	if res == nil || res.ExitCode <= 0 || res.Usage.PIDsPeak > uint64(limit) {
		return fmt.Errorf("got %+v, %w; want fork to fail at %d processes", res, err, limit)
	}
	return nil
}

func output(base *sandbox.Sandbox, i int) error {
	limit := int64(10_000 + i)
	got, err := base.With(sandbox.WithCommand("yes"), sandbox.WithOutputLimit(limit)).Output(context.Background())
	if !errors.Is(err, sandbox.ErrOutputLimit) || int64(len(got)) != limit {
		return fmt.Errorf("got %d bytes, %w; want %d", len(got), err, limit)
	}
	return nil
}

// size uses one of several templates: the mount points differ.
func size(base *sandbox.Sandbox, i int) error {
	dir := fmt.Sprintf("/space%d", i%20)
	s := shell(base, "ls -d /space*; head -c 2000000 /dev/zero 2>/dev/null >"+dir+"/file; wc -c <"+dir+"/file", sandbox.WithTmpfs(dir, sandbox.MiB))
	return wrote(s, fmt.Sprintf("%s\n%d\n", dir, sandbox.MiB))
}

func writableRoot(base *sandbox.Sandbox, i int) error {
	s := shell(base, "echo $N >/mine && cat /mine", sandbox.WithWritableRoot(4*sandbox.MiB), sandbox.WithEnv(fmt.Sprintf("N=%d", i)))
	return wrote(s, fmt.Sprintf("%d\n", i))
}

// TestCellKilled kills the fork server again and again while runs start and one is paused: a run
// must start in another cell, or report that its own was lost.
func TestCellKilled(t *testing.T) {
	testkit.Need(t, "root")
	defer shutdown(t)
	before := map[int]bool{}
	for _, p := range descendants(t) {
		before[p.pid] = true
	}
	for range testkit.Scale(10, 2) {
		p, err := shell(sandbox.New(), "sleep 1000 & while :; do :; done").Start(t.Context())
		require.NoError(t, err)
		require.NoError(t, p.Pause())
		for _, child := range descendants(t) {
			if child.parent == os.Getpid() && !before[child.pid] && child.state != "Z" {
				child, err := os.FindProcess(child.pid)
				require.NoError(t, err)
				require.NoError(t, child.Kill())
			}
		}
		err = wrote(sandbox.New(sandbox.WithCommand("echo", "hi")), "hi\n")
		if errors.Is(err, sandbox.ErrCellLost) { // it was started before they were dead
			err = wrote(sandbox.New(sandbox.WithCommand("echo", "hi")), "hi\n")
		}
		require.NoError(t, err)
		_, err = p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
	}
}
