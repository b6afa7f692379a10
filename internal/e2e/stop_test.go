//go:build linux

package e2e

import (
	"bufio"
	"context"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// gentle starts a script that is to end gently, in a run of its own and as a further command, and
// returns once it has written a line.
func gentle(t *testing.T, ctx context.Context, text string, opts ...sandbox.Option) map[string]*sandbox.Process {
	all := map[string]*sandbox.Process{}
	for _, kind := range []string{"run", "exec"} {
		r, w := io.Pipe()
		with := script(text, append(opts, sandbox.WithStdout(w))...)
		var p *sandbox.Process
		var err error
		if kind == "run" {
			p, err = sandbox.New(with...).Start(ctx)
		} else {
			p, err = session(t).Exec(ctx, with...)
		}
		require.NoError(t, err)
		lines := bufio.NewReader(r)
		_, err = lines.ReadString('\n')
		require.NoError(t, err)
		go func() { _, _ = io.Copy(io.Discard, lines) }()
		t.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait(); w.Close() })
		all[kind] = p
	}
	return all
}

// What is asked to end by a signal may end as it likes, and its reason is told all the same.
func TestRootlessStopSignal(t *testing.T) {
	t.Parallel()
	stop := sandbox.WithStopSignal(syscall.SIGTERM, testkit.Patience)
	const leaves = "trap 'exit 3' TERM; echo; while :; do sleep 0.01; done"
	const does = "trap 'exit 0' TERM; echo; while :; do sleep 0.01; done"
	for name, test := range map[string]struct {
		text   string
		opts   []sandbox.Option
		end    func(p *sandbox.Process, cancel func())
		code   int
		reason sandbox.Reason
		is     error
	}{
		"cancel":       {leaves, nil, func(_ *sandbox.Process, cancel func()) { cancel() }, 3, sandbox.Canceled, context.Canceled},
		"cancel, well": {does, nil, func(_ *sandbox.Process, cancel func()) { cancel() }, 0, sandbox.Canceled, context.Canceled},
		"timeout":      {leaves, []sandbox.Option{sandbox.WithTimeout(testkit.Scale(4*time.Second, 15*time.Second))}, func(*sandbox.Process, func()) {}, 3, sandbox.TimedOut, sandbox.ErrTimeout},
		"close":        {leaves, nil, func(p *sandbox.Process, _ func()) { _ = p.Close() }, 3, sandbox.Exited, nil},
		"ignored":      {"trap '' TERM; echo; while :; do sleep 0.01; done", []sandbox.Option{sandbox.WithStopSignal(syscall.SIGTERM, 10*time.Millisecond)}, func(_ *sandbox.Process, cancel func()) { cancel() }, -1, sandbox.Canceled, context.Canceled},
		"kill":         {leaves, nil, func(p *sandbox.Process, _ func()) { _ = p.Kill() }, -1, sandbox.Signaled, nil},
		"kill after":   {"trap '' TERM; echo; while :; do sleep 0.01; done", nil, func(p *sandbox.Process, cancel func()) { cancel(); time.Sleep(10 * time.Millisecond); _ = p.Kill() }, -1, sandbox.Canceled, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(testkit.Deadline(t))
			defer cancel()
			for kind, p := range gentle(t, ctx, test.text, append([]sandbox.Option{stop}, test.opts...)...) {
				test.end(p, cancel)
				result, err := p.Wait()
				exit := runs.ExitError(t, err)
				require.Equal(t, test.reason, exit.Reason, kind)
				require.Equal(t, test.code, result.ExitCode, kind)
				if test.is != nil {
					require.ErrorIs(t, err, test.is, kind)
				}
			}
		})
	}
	_, err := sandbox.New(sandbox.WithCommand("true"), sandbox.WithStopSignal(syscall.Signal(0), 1)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithStopSignal")
}

// With its command, what that has started ends, however gently.
func TestRootlessStopSignalLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	defer cancel()
	mark := testkit.ALongTime()
	all := gentle(t, ctx, "sleep "+mark+" & setsid sleep "+mark+" & trap 'exit 0' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStopSignal(syscall.SIGTERM, testkit.Patience))
	testkit.Eventually(t, "all are there", func() bool { return len(testkit.Running(mark)) == 4 })
	cancel()
	for _, p := range all {
		_, err := p.Wait()
		require.ErrorIs(t, err, context.Canceled)
	}
	testkit.Eventually(t, "all are gone", func() bool { return len(testkit.Running(mark)) == 0 })
}

// A paused run is resumed to end gently.
func TestStopSignalPaused(t *testing.T) {
	testkit.Need(t, "freezer")
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	defer cancel()
	p := gentle(t, ctx, "trap 'exit 5' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStopSignal(syscall.SIGTERM, testkit.Patience))["run"]
	require.NoError(t, p.Pause())
	cancel()
	result, err := p.Wait()
	require.Equal(t, sandbox.Canceled, runs.ExitError(t, err).Reason)
	require.Equal(t, 5, result.ExitCode)
}

// Pipes are those of os/exec, for runs and further commands.
func TestRootlessPipes(t *testing.T) {
	t.Parallel()
	s := sandbox.New(script("while read l; do echo out $l; echo err $l >&2; done; exit 4", sandbox.WithStdinPipe(), sandbox.WithStdoutPipe(), sandbox.WithStderrPipe())...)
	p := session(t)
	require.Nil(t, p.StdinPipe())
	require.Nil(t, p.StdoutPipe())
	for _, start := range []func() (*sandbox.Process, error){
		func() (*sandbox.Process, error) { return s.Start(testkit.Deadline(t)) },
		func() (*sandbox.Process, error) {
			return p.Exec(testkit.Deadline(t), script("while read l; do echo out $l; echo err $l >&2; done; exit 4", sandbox.WithStdinPipe(), sandbox.WithStdoutPipe(), sandbox.WithStderrPipe())...)
		},
	} {
		p, err := start()
		require.NoError(t, err)
		out, errs := bufio.NewReader(p.StdoutPipe()), bufio.NewReader(p.StderrPipe())
		for _, word := range []string{"a", "b"} {
			_, err := io.WriteString(p.StdinPipe(), word+"\n")
			require.NoError(t, err)
			line, err := out.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "out "+word+"\n", line)
			line, err = errs.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "err "+word+"\n", line)
		}
		require.NoError(t, p.StdinPipe().Close())
		_, err = out.ReadByte()
		require.ErrorIs(t, err, io.EOF)
		_, err = p.Wait()
		require.Equal(t, 4, runs.ExitError(t, err).ExitCode)
		_, err = p.StdoutPipe().Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrClosed)
	}
	many, err := sandbox.New(script("yes", sandbox.WithStdoutPipe(), sandbox.WithOutputLimit(10))...).Start(testkit.Deadline(t))
	require.NoError(t, err)
	b, err := io.ReadAll(many.StdoutPipe())
	require.NoError(t, err)
	require.Len(t, b, 10)
	_, err = many.Wait()
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	_, err = s.Output(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithStdout")
}
