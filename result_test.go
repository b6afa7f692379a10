package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/fault"
)

func TestReasonString(t *testing.T) {
	seen := map[string]bool{}
	for r := Exited; r <= RunEnded; r++ {
		require.NotContains(t, r.String(), "Reason(")
		require.False(t, seen[r.String()], r.String())
		seen[r.String()] = true
	}
	require.Equal(t, "Reason(-1)", Reason(-1).String())
	require.Equal(t, "Reason(9)", (RunEnded + 1).String())
}

func TestExitError(t *testing.T) {
	killed := func(r Reason) Result { return Result{ExitCode: -1, Signal: syscall.SIGKILL, Reason: r} }
	tests := []struct {
		result Result
		cause  error
		text   string
		is     error
	}{
		{Result{ExitCode: 3}, nil, "sandbox: exit status 3", nil},
		{Result{ExitCode: -1, Signal: syscall.SIGSEGV, Reason: Signaled}, nil, "sandbox: signal: segmentation fault", nil},
		{killed(TimedOut), nil, "sandbox: timed out (signal: killed)", ErrTimeout},
		{killed(CPUTimedOut), nil, "sandbox: out of CPU time (signal: killed)", ErrCPUTime},
		{killed(OutOfMemory), nil, "sandbox: out of memory (signal: killed)", ErrOutOfMemory},
		{Result{ExitCode: 1, Reason: OutOfMemory}, nil, "sandbox: out of memory (exit status 1)", ErrOutOfMemory},
		{Result{ExitCode: 2, Reason: PIDsExceeded}, nil, "sandbox: too many processes (exit status 2)", ErrPIDLimit},
		{Result{Reason: OutputExceeded}, nil, "sandbox: too much output (exit status 0)", ErrOutputLimit},
		{killed(Canceled), context.Canceled, "sandbox: canceled (signal: killed)", context.Canceled},
		{killed(Canceled), context.DeadlineExceeded, "sandbox: canceled: context deadline exceeded (signal: killed)", context.DeadlineExceeded},
	}
	sentinels := []error{ErrTimeout, ErrCPUTime, ErrOutOfMemory, ErrOutputLimit, ErrPIDLimit, ErrCellLost, context.Canceled, context.DeadlineExceeded}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			var err error = &ExitError{Result: &test.result, cause: test.cause}
			require.EqualError(t, err, test.text)
			for _, sentinel := range sentinels {
				require.Equal(t, sentinel == test.is, errors.Is(err, sentinel), "%v", sentinel)
			}
			var exit *ExitError
			require.ErrorAs(t, fmt.Errorf("task 7: %w", err), &exit)
			require.Equal(t, test.result.ExitCode, exit.ExitCode)
		})
	}
}

func TestResultString(t *testing.T) {
	for want, r := range map[string]Result{
		"exit status 0": {}, "signal: killed": {ExitCode: -1, Signal: syscall.SIGKILL, Reason: Signaled},
		"canceled (exit status 3)": {ExitCode: 3, Reason: Canceled},
	} {
		require.Equal(t, want, fmt.Sprint(&r))
	}
}

func TestContextError(t *testing.T) {
	mine := errors.New("the client has gone")
	canceled, cancel := context.WithCancelCause(context.Background())
	cancel(mine)
	plain, cancelPlain := context.WithCancel(context.Background())
	cancelPlain()
	late, cancelLate := context.WithTimeoutCause(context.Background(), 0, mine)
	defer cancelLate()
	wrapping, cancel := context.WithCancelCause(context.Background())
	cancel(fmt.Errorf("job 7: %w", context.Canceled))
	for _, test := range []struct {
		ctx  context.Context
		text string
	}{
		{canceled, "context canceled: the client has gone"},
		{plain, "context canceled"},
		{late, "context deadline exceeded: the client has gone"},
		{wrapping, "job 7: context canceled"},
	} {
		err := fault.Ended(test.ctx)
		require.EqualError(t, err, test.text)
		for _, err := range []error{err, &ExitError{Result: &Result{Reason: Canceled}, cause: err}} {
			require.ErrorIs(t, err, test.ctx.Err())
			require.ErrorIs(t, err, context.Cause(test.ctx))
		}
	}
}

func TestSetupError(t *testing.T) {
	err := &SetupError{Stage: "exec", Err: &fs.PathError{Op: "exec", Path: "x", Err: syscall.ENOENT}}
	require.EqualError(t, err, "sandbox: exec: exec x: no such file or directory")
	require.ErrorIs(t, err, fs.ErrNotExist)
	err.Hint = "install x"
	require.EqualError(t, err, "sandbox: exec: exec x: no such file or directory (install x)")
}

// A remedy is in the table once, also if the error has it in its own text.
func TestReportRemedy(t *testing.T) {
	r := &Report{Features: []Feature{
		{Name: "a", Err: &SetupError{Stage: "cell", Err: errors.New("it needs root"), Hint: "run it as root"}, Remedy: "run it as root"},
		{Name: "b", Err: errors.New("too old"), Remedy: "a newer kernel"},
		{Name: "c", Err: errors.New("it needs more")},
	}}
	require.Regexp(t, `(?m)^a +no +sandbox: cell: it needs root \(run it as root\)\nb +no +too old; remedy: a newer kernel\nc +no +it needs more$`, r.String())
}
