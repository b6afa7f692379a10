//go:build linux

package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// stuck is a Writer and Reader that returns only when the test is over.
type stuck struct {
	over  chan struct{}
	begun chan struct{} // closed by the first call
	once  sync.Once
	calls atomic.Int32
}

// newStuck also requires that a writer that was given up is not called again.
func newStuck(t *testing.T) *stuck {
	s := &stuck{over: make(chan struct{}), begun: make(chan struct{})}
	t.Cleanup(func() {
		close(s.over)
		time.Sleep(10 * time.Millisecond)
		require.LessOrEqual(t, s.calls.Load(), int32(1))
	})
	return s
}

func (s *stuck) block() {
	s.calls.Add(1)
	s.once.Do(func() { close(s.begun) })
	<-s.over
}

func (s *stuck) Write(b []byte) (int, error) { s.block(); return len(b), nil }
func (s *stuck) Read([]byte) (int, error)    { s.block(); return 0, io.EOF }

// TestRootlessWaitDelay has the host's readers and writers block, in runs of all kinds of ends.
// Each run is over in time, and says how it ended.
func TestRootlessWaitDelay(t *testing.T) {
	t.Parallel()
	const soon = 50 * time.Millisecond
	cancelled := errors.New("enough")
	for name, test := range map[string]struct {
		script string
		opts   func(w *stuck) []sandbox.Option
		want   error // nil if it ends well
		reason sandbox.Reason
		code   int
	}{
		"stdout":      {"echo x", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"stderr":      {"echo x >&2", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStderr(w)} }, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"both as one": {"echo x; echo y >&2", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithStderr(w)} }, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"counted": {"echo x", func(w *stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithOutputLimit(100)}
		}, sandbox.ErrWaitDelay, sandbox.Exited, 0},
		"a failure": {"echo x; exit 3", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, nil, sandbox.Exited, 3},
		"a timeout": {"echo x; sleep 1000", func(w *stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithTimeout(time.Second)}
		}, sandbox.ErrTimeout, sandbox.TimedOut, -1},
		"a full pipe": {"cat /dev/zero", func(w *stuck) []sandbox.Option {
			return []sandbox.Option{sandbox.WithStdout(w), sandbox.WithTimeout(time.Second)}
		}, sandbox.ErrTimeout, sandbox.TimedOut, -1},
		"cancellation": {"echo x; sleep 1000", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, cancelled, sandbox.Canceled, -1},
		"stdin":        {"exit 0", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdin(w)} }, nil, sandbox.Exited, 0},
		"no output":    {"exit 0", func(w *stuck) []sandbox.Option { return []sandbox.Option{sandbox.WithStdout(w)} }, nil, sandbox.Exited, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newStuck(t)
			ctx, cancel := context.WithCancelCause(deadline(t))
			defer cancel(nil)
			if test.want == cancelled {
				go func() {
					<-w.begun
					cancel(cancelled)
				}()
			}
			result, err := shell(test.script, sandbox.WithWaitDelay(soon)).With(test.opts(w)...).Run(ctx)
			require.NoError(t, deadline(t).Err())
			require.Equal(t, test.reason, result.Reason)
			require.Equal(t, test.code, result.ExitCode)
			switch {
			case test.want != nil:
				require.ErrorIs(t, err, test.want)
			case test.code == 0:
				require.NoError(t, err)
			default:
				require.Equal(t, test.code, exitError(t, err).ExitCode)
				require.NotErrorIs(t, err, sandbox.ErrWaitDelay, "the run's own error comes first")
			}
		})
	}
}

// TestRootlessWaitDelaySlow has writers that are slow, but not too slow: nothing is lost.
func TestRootlessWaitDelaySlow(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{0, patience} {
		var got bytes.Buffer
		slow := writerFunc(func(b []byte) (int, error) {
			time.Sleep(10 * time.Millisecond)
			return got.Write(b)
		})
		_, err := shell("yes | head -c 60000", sandbox.WithStdout(slow), sandbox.WithWaitDelay(d)).Run(deadline(t))
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("y\n", 30_000), got.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestRootlessWaitDelayOutput cuts off what Output and CombinedOutput keep: what they return stays
// as it is.
func TestRootlessWaitDelayOutput(t *testing.T) {
	t.Parallel()
	for range 5 {
		for _, get := range []func(*sandbox.Sandbox) ([]byte, error){
			func(s *sandbox.Sandbox) ([]byte, error) { return s.Output(deadline(t)) },
			func(s *sandbox.Sandbox) ([]byte, error) { return s.CombinedOutput(deadline(t)) },
		} {
			out, err := get(shell("yes | head -c 60000; yes | head -c 60000 >&2", sandbox.WithWaitDelay(1)))
			if err != nil {
				require.ErrorIs(t, err, sandbox.ErrWaitDelay)
			}
			require.True(t, strings.HasPrefix(strings.Repeat("y\n", 60_000), string(out)))
		}
	}
}

// TestRootlessWaitDelayPool has a stuck writer hold the only slot of a pool no longer than it may.
func TestRootlessWaitDelayPool(t *testing.T) {
	t.Parallel()
	pool := sandbox.NewPool(shell("echo x", sandbox.WithWaitDelay(50*time.Millisecond)), 1)
	w := newStuck(t)
	_, err := pool.Run(deadline(t), sandbox.WithStdout(w))
	require.ErrorIs(t, err, sandbox.ErrWaitDelay)
	_, err = pool.Run(deadline(t))
	require.NoError(t, err)
	closePool(t, pool)
}

// TestRootlessWaitDelayFunc has a function's log go to a writer that is stuck.
func TestRootlessWaitDelayFunc(t *testing.T) {
	t.Parallel()
	soon := sandbox.WithWaitDelay(50 * time.Millisecond)
	out, err := work.Call(deadline(t), job{Do: "count"}, sandbox.WithStderr(newStuck(t)), soon)
	require.NoError(t, err)
	require.NotEmpty(t, out.Text)
	_, err = work.Call(deadline(t), job{Do: "wait"}, sandbox.WithStderr(newStuck(t)), soon, sandbox.WithTimeout(200*time.Millisecond))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	pool := work.Workers(1, sandbox.WithStderr(newStuck(t)), soon)
	for range 3 {
		_, err := pool.Call(deadline(t), job{Do: "count"})
		require.NoError(t, err)
	}
	pool.Close()
}
