//go:build linux

package attack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

// The fork server, or the process in it that serves, is killed at any moment of all kinds of runs
// at once. All of them end with that as the only reason, nothing of them is left, and their
// sandboxes go on in another cell. Not in parallel: other tests use the same cell.
func TestAttackForkServerKilled(t *testing.T) {
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)))
	input := neverEnding(t)
	other, err := sandbox.NewCell()
	require.NoError(t, err)
	bystander := runs.Start(t, sandbox.New(sandbox.WithCommand("cat"), sandbox.WithCell(other), sandbox.WithStdin(input)))

	crowd := newCrowd(t)
	rounds, most := 16, 40*time.Millisecond
	if testkit.InGuest {
		rounds, most = 2, time.Second
	}
	for i := range rounds {
		t.Run(fmt.Sprint(i), func(t *testing.T) { crowd.attacked(t, i%2 == 0, time.Duration(rand.Int64N(int64(most)))) })
	}
	crowd.end(t)
	require.NoError(t, bystander.Signal(syscall.Signal(0)), "another cell has nothing to do with it")
	require.NoError(t, bystander.Kill())
	_, err = bystander.Wait()
	require.ErrorContains(t, err, "killed")
	require.NoError(t, other.Close())
	require.NoError(t, sandbox.Shutdown(testkit.Deadline(t)))
	require.Empty(t, testkit.ChildPIDs()) // TestMain checks the rest
}

// neverEnding returns an input that never has data.
func neverEnding(t *testing.T) *os.File {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

// crowd holds everything that outlives a cell.
type crowd struct {
	prepared *sandbox.Sandbox
	pool     *pool.Pool
	workers  *function.Workers[string, string]
	scratch  *sandbox.Scratch // nil if the kernel has none
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{
		prepared: runs.Shell("exit 0", sandbox.WithPrepared(2)),
		pool:     pool.New(runs.Shell("exit 0"), 2),
		workers:  setOff.Workers(2),
	}
	if testkit.AsRoot() && testkit.Kernel(6, 3) || !testkit.AsRoot() && testkit.Kernel(5, 12) {
		var err error
		c.scratch, err = sandbox.NewScratch(sandbox.MiB)
		require.NoError(t, err)
		require.NoError(t, c.scratch.CopyIn(fstest.MapFS{"kept": &fstest.MapFile{Data: []byte("kept"), Mode: 0o644}}, "."))
	}
	return c
}

func (c *crowd) end(t *testing.T) {
	require.NoError(t, c.pool.Close(testkit.Deadline(t)))
	c.workers.Close()
	if c.scratch != nil {
		require.NoError(t, c.scratch.Close())
	}
}

// attacked starts runs of all kinds, and kills the fork server after a while, or all of its
// processes.
func (c *crowd) attacked(t *testing.T, whole bool, after time.Duration) {
	mark := testkit.ALongTime()
	live := runs.Start(t, runs.Shell("sleep "+mark+" & sleep "+mark, c.mounted()...))
	server := parent(t, parent(t, live.PID()))
	if whole {
		server = parent(t, server)
	}
	require.NotEqual(t, os.Getpid(), server)
	paused := runs.Start(t, runs.Shell("sleep "+mark+" & while :; do :; done"))
	isPaused := paused.Pause() == nil
	require.True(t, isPaused || !testkit.Controller("freezer"))

	killed, kill := context.WithCancel(testkit.Deadline(t))
	var busy sync.WaitGroup
	for name, f := range c.users(mark) {
		busy.Go(func() {
			for i := 0; killed.Err() == nil; i++ {
				if err := f(testkit.Deadline(t), i); err != nil && !errors.Is(err, sandbox.ErrCellLost) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	time.Sleep(after)
	require.NoError(t, syscall.Kill(server, syscall.SIGKILL))
	for _, p := range []*sandbox.Process{live, paused} {
		_, err := p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost)
	}
	kill()
	busy.Wait()
	testkit.RequireGone(t, mark)
	c.requireFine(t)
}

func (c *crowd) mounted() []sandbox.Option {
	if c.scratch == nil {
		return nil
	}
	return []sandbox.Option{sandbox.WithScratch("/job", c.scratch)}
}

// users are the operations that are under way when the fork server is killed. Each either succeeds,
// maybe in the next cell, or loses its cell.
func (c *crowd) users(mark string) map[string]func(ctx context.Context, i int) error {
	run := func(s *sandbox.Sandbox, opts ...sandbox.Option) func(context.Context, int) error {
		return func(ctx context.Context, _ int) error { _, err := s.With(opts...).Run(ctx); return err }
	}
	return map[string]func(context.Context, int) error{
		"run":      run(runs.Shell("true & exit 0", c.mounted()...)),
		"prepared": run(c.prepared),
		"prepare":  func(ctx context.Context, _ int) error { return c.prepared.Prepare(ctx) },
		"pool":     func(ctx context.Context, _ int) error { _, err := c.pool.Run(ctx); return err },
		"template": func(ctx context.Context, i int) error {
			_, err := runs.Shell("exit 0", sandbox.WithTmpfs(fmt.Sprintf("/t%s-%d", mark, i), sandbox.MiB)).Run(ctx)
			return err
		},
		"function": func(ctx context.Context, _ int) error {
			_, err := c.workers.Call(ctx, "x")
			return err
		},
		"pause": func(ctx context.Context, _ int) error {
			p, err := runs.Shell("exec sleep " + mark).Start(ctx)
			if err != nil {
				return err
			}
			if err := p.Pause(); err == nil {
				_ = p.Resume()
			}
			_, _ = p.Usage()
			_ = p.Kill()
			_, err = p.Wait()
			if errors.As(err, new(*sandbox.ExitError)) {
				err = nil // killed above
			}
			return err
		},
	}
}

// requireFine requires that everything works that did before.
func (c *crowd) requireFine(t *testing.T) {
	t.Helper()
	require.Equal(t, "fine", runs.Output(t, runs.Shell("echo fine")))
	require.NoError(t, c.prepared.Prepare(testkit.Deadline(t)))
	_, err := runs.StartPrepared(t, c.prepared).Wait()
	require.NoError(t, err)
	_, err = c.pool.Run(testkit.Deadline(t))
	require.NoError(t, err)
	out, err := c.workers.Call(testkit.Deadline(t), "fine")
	require.NoError(t, err)
	require.Equal(t, "fine", out)
	if c.scratch == nil {
		return
	}
	b, err := fs.ReadFile(c.scratch.FS(), "kept")
	require.NoError(t, err)
	require.Equal(t, "kept", string(b))
	require.Equal(t, "kept", runs.Output(t, runs.Shell("cat /job/kept", c.mounted()...)))
}
