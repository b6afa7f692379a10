//go:build linux

package queue

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

func TestMain(m *testing.M) { testkit.Main(m, sweep, sandbox.Shutdown) }

// sweep removes what workers that were killed have left, as the next cell of any process does.
func sweep(context.Context) error {
	c, err := sandbox.NewCell()
	if err != nil {
		return err
	}
	return c.Close()
}

// The helper work is a worker in a process of its own: a URL, its slots, and a directory that its
// runs have, writable, at /out.
func init() {
	testkit.AddHelper("work", func(args []string) error {
		ctx := context.Background()
		q, err := Open(ctx, args[0])
		if err != nil {
			return err
		}
		defer q.Close()
		s := sandbox.New(sandbox.WithMemory(128*sandbox.MiB), sandbox.WithPIDs(64))
		if args[2] != "" {
			s = s.With(sandbox.WithBind(args[2], "/out"))
		}
		var slots int
		if _, err := fmt.Sscan(args[1], &slots); err != nil {
			return err
		}
		return NewWorker(q, pool.New(s, slots), Slots(slots), TakeServices("127.0.0.1")).Run(ctx)
	})
}

// open opens a queue in this process.
func open(t testing.TB, opts ...Option) *Queue {
	t.Helper()
	q, err := Open(testkit.Deadline(t), "", append([]Option{Dir(t.TempDir())}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(q.Close)
	return q
}

// work starts a worker in this process, which ends with the test or by the returned function.
func work(t testing.TB, q *Queue, opts ...WorkerOption) (stop func()) {
	t.Helper()
	return workIn(t, q, 4, opts...)
}

// workIn starts one with so many slots.
func workIn(t testing.TB, q *Queue, slots int, opts ...WorkerOption) (stop func()) {
	t.Helper()
	p := pool.New(sandbox.New(sandbox.WithMemory(128*sandbox.MiB), sandbox.WithPIDs(64)), slots)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- NewWorker(q, p, append([]WorkerOption{Slots(slots)}, opts...)...).Run(ctx) }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, p.Close(context.Background()))
	}
	t.Cleanup(stop)
	return stop
}

// startWorker starts a worker as a process of its own.
func startWorker(t testing.TB, q *Queue, slots int, out string) *os.Process {
	t.Helper()
	return startProgram(t, "", q, slots, out)
}

// startProgram starts a worker of another program, which is this test's otherwise, or of this one.
func startProgram(t testing.TB, program string, q *Queue, slots int, out string) *os.Process {
	t.Helper()
	cmd := testkit.HelperCommand(context.Background(), "work", q.URL(), fmt.Sprint(slots), out)
	if program != "" {
		cmd.Path = program
	}
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it has ended
		<-ended
	})
	return cmd.Process
}

// longDeadline is for tests of many runs or processes, on a busy machine.
func longDeadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*testkit.Patience)
	t.Cleanup(cancel)
	return ctx
}

func submit(t testing.TB, q *Queue, task Task) string {
	t.Helper()
	id, err := q.Submit(testkit.Deadline(t), task)
	require.NoError(t, err)
	return id
}

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

// awaitState waits until a task has a state.
func awaitState(t testing.TB, q *Queue, id string, s State) Status {
	t.Helper()
	var now Status
	testkit.Eventually(t, fmt.Sprintf("%s: %v", id, s), func() bool {
		time.Sleep(20 * time.Millisecond)
		got, err := q.Status(testkit.Deadline(t), id)
		require.NoError(t, err)
		now = got
		return got.State == s
	})
	return now
}

func text(b []byte) string { return strings.TrimSpace(string(b)) }

// dirOf returns a directory with a file.
func dirOf(t testing.TB, name, content string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	return os.DirFS(dir)
}
