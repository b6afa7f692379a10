//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

// TestRootlessWaitDelay has the host's readers and writers block, in runs that end in all ways.
// Each run ends in time and reports how it ended.
func TestRootlessWaitDelay(t *testing.T) {
	t.Parallel()
	const soon = 50 * time.Millisecond
	cancelled := errors.New("enough")
	for name, test := range map[string]struct {
		script string
		opts   func(w *testkit.Stuck) []sandbox.Option
		want   error // nil if it ends well
		reason sandbox.Reason
		code   int
	}{
		"stdout": {"echo x", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"stderr": {"echo x >&2", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStderr(w)} }, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"both as one": {"echo x; echo y >&2", func(w *testkit.Stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithStderr(w)}
		}, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"counted": {"echo x", func(w *testkit.Stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithOutputLimit(100)}
		}, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"a failure": {"echo x; exit 3", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, nil, sandbox.Exited, 3},
		"a timeout": {"echo x; sleep 1000", func(w *testkit.Stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithTimeout(time.Second)}
		}, sandbox.ErrTimeout, sandbox.TimedOut, -1},
		"a full pipe": {"cat /dev/zero", func(w *testkit.Stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithTimeout(time.Second)}
		}, sandbox.ErrTimeout, sandbox.TimedOut, -1},
		"cancellation": {"echo x; sleep 1000", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, cancelled, sandbox.Canceled, -1},
		"stdin":        {"exit 0", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdin(w)} }, nil, sandbox.Exited, 0},
		"no output":    {"exit 0", func(w *testkit.Stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, nil, sandbox.Exited, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := testkit.NewStuck(t)
			ctx, cancel := context.WithCancelCause(testkit.Deadline(t))
			defer cancel(nil)
			if test.want == cancelled {
				go func() {
					<-w.Begun
					cancel(cancelled)
				}()
			}
			result, err := runs.Shell(test.script, sandbox.WithWaitDelay(soon)).With(test.opts(w)...).Run(ctx)
			require.NoError(t, testkit.Deadline(t).Err())
			require.Equal(t, test.reason, result.Reason)
			require.Equal(t, test.code, result.ExitCode)
			switch {
			case test.want != nil:
				require.ErrorIs(t, err, test.want)
			case test.code == 0:
				require.NoError(t, err)
			default:
				require.Equal(t, test.code, runs.ExitError(t, err).ExitCode)
				require.NotErrorIs(t, err, sandbox.ErrWaitDelay, "the run's own error comes first")
			}
		})
	}
}

// TestRootlessWaitDelaySlow has writers that are slow, but not too slow: nothing is lost.
func TestRootlessWaitDelaySlow(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{0, testkit.Patience} {
		var got bytes.Buffer
		slow := writerFunc(func(b []byte) (int, error) {
			time.Sleep(10 * time.Millisecond)
			return got.Write(b)
		})
		_, err := runs.Shell("yes | head -c 60000", sandbox.WithStdout(slow), sandbox.WithWaitDelay(d)).Run(testkit.Deadline(t))
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("y\n", 30_000), got.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestRootlessWaitDelayOutput cuts off what Output and CombinedOutput collect: what they return
// does not change afterwards.
func TestRootlessWaitDelayOutput(t *testing.T) {
	t.Parallel()
	for range 5 {
		for _, get := range []func(*sandbox.Sandbox) ([]byte, error){
			func(s *sandbox.Sandbox) ([]byte, error) { return s.Output(testkit.Deadline(t)) },
			func(s *sandbox.Sandbox) ([]byte, error) { return s.CombinedOutput(testkit.Deadline(t)) },
		} {
			out, err := get(runs.Shell("yes | head -c 60000; yes | head -c 60000 >&2", sandbox.WithWaitDelay(1)))
			if err != nil {
				require.ErrorIs(t, err, sandbox.ErrWaitDelay)
			}
			require.True(t, strings.HasPrefix(strings.Repeat("y\n", 60_000), string(out)))
		}
	}
}

// TestRootlessWaitDelayPool requires that a stuck writer holds a pool's only slot no longer than
// WaitDelay.
func TestRootlessWaitDelayPool(t *testing.T) {
	t.Parallel()
	jobs := pool.New(runs.Shell("echo x", sandbox.WithWaitDelay(50*time.Millisecond)), 1)
	w := testkit.NewStuck(t)
	_, err := jobs.Run(testkit.Deadline(t), sandbox.WithStdout(w))
	require.ErrorIs(t, err, sandbox.ErrWaitDelay)
	_, err = jobs.Run(testkit.Deadline(t))
	require.NoError(t, err)
	closePool(t, jobs)
}

// TestRootlessWaitDelayFunc has a function's log go to a stuck writer.
func TestRootlessWaitDelayFunc(t *testing.T) {
	t.Parallel()
	soon := sandbox.WithWaitDelay(50 * time.Millisecond)
	out, err := work.Call(testkit.Deadline(t), job{Do: "count"}, sandbox.WithStderr(testkit.NewStuck(t)), soon)
	require.NoError(t, err)
	require.NotEmpty(t, out.Text)
	_, err = work.Call(testkit.Deadline(t), job{Do: "wait"}, sandbox.WithStderr(testkit.NewStuck(t)), soon, sandbox.WithTimeout(200*time.Millisecond))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	workers := work.With(sandbox.WithStderr(testkit.NewStuck(t)), soon).Workers(1)
	for range 3 {
		_, err := workers.Call(testkit.Deadline(t), job{Do: "count"})
		require.NoError(t, err)
	}
	workers.Close()
}
