package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/cellkit/sandbox"
)

func lines(err error) []string { return strings.Split(err.Error(), "\n") }

// ended returns what the library returns for a run that ended like this.
func ended(reason sandbox.Reason, code int, signal syscall.Signal) (*sandbox.Result, error) {
	r := &sandbox.Result{Reason: reason, ExitCode: code, Signal: signal}
	if code == 0 && reason == sandbox.Exited {
		return r, nil
	}
	return r, &sandbox.ExitError{Result: r}
}

func TestOutcomeOfRuns(t *testing.T) {
	s := &settings{memory: 64 * sandbox.MiB, output: 1000, timeout: 2 * time.Second, cpuTime: 1500 * time.Millisecond}
	for _, c := range []struct {
		reason sandbox.Reason
		code   int
		signal syscall.Signal
		status int
		line   string
	}{
		{sandbox.Exited, 0, 0, 0, ""},
		{sandbox.Exited, 3, 0, 3, ""},
		{sandbox.Exited, 255, 0, 255, ""},
		{sandbox.Signaled, -1, syscall.SIGKILL, 137, "ended by signal 9 (killed)"},
		{sandbox.Signaled, -1, syscall.SIGSEGV, 139, "ended by signal 11 (segmentation fault)"},
		{sandbox.TimedOut, -1, syscall.SIGKILL, 124, "timed out (limit 2s)"},
		{sandbox.CPUTimedOut, -1, syscall.SIGKILL, 124, "out of CPU time (limit 1.5s)"},
		{sandbox.OutOfMemory, -1, syscall.SIGKILL, 137, "out of memory (limit 64 MiB)"},
		{sandbox.OutOfMemory, 1, 0, 137, "out of memory (limit 64 MiB)"},
		{sandbox.PIDsExceeded, 2, 0, 2, "too many processes (0 refused; -pids sets the limit)"},
		{sandbox.PIDsExceeded, -1, syscall.SIGABRT, 134, "too many processes"},
		{sandbox.OutputExceeded, -1, syscall.SIGKILL, 153, "too much output (limit 1000 bytes)"},
		{sandbox.OutputExceeded, 0, 0, 153, "too much output (limit 1000 bytes)"},
	} {
		result, err := ended(c.reason, c.code, c.signal)
		checkOutcome(t, s, result, err, nil, c.status, c.line)
	}
	result, err := ended(sandbox.OutOfMemory, -1, syscall.SIGKILL)
	checkOutcome(t, &settings{}, result, err, nil, 137, "out of memory")
}

func TestOutcomeOfFailures(t *testing.T) {
	exec := func(why error) error {
		return &sandbox.SetupError{Stage: "exec", Err: &fs.PathError{Op: "exec", Path: "x", Err: why}}
	}
	missing := &fs.PathError{Op: "stat", Path: "/x", Err: syscall.ENOENT}
	copying := errors.New("sandbox: copying standard streams: no space left on device")
	for _, c := range []struct {
		result *sandbox.Result
		err    error
		status int
		line   string
	}{
		{nil, exec(syscall.ENOENT), 127, "x: no such file or directory"},
		{nil, exec(syscall.EACCES), 126, "x: permission denied"},
		{nil, exec(syscall.ENOEXEC), 126, "x: exec format error"},
		{nil, &sandbox.OptionError{Option: "WithBind", Err: missing}, 125, "-bind: stat /x: no such file or directory"},
		{nil, &sandbox.OptionError{Option: "WithFS", Err: missing}, 125, "WithFS: stat /x"},
		{nil, errors.Join(&sandbox.OptionError{Option: "WithDir", Err: errors.New("x")}, &sandbox.OptionError{Option: "WithEnv", Err: missing}), 125, "-dir: x\n-env: stat /x"},
		{nil, &sandbox.SetupError{Stage: "WithRootfs", Err: missing}, 125, "-rootfs: stat /x"},
		{nil, &sandbox.SetupError{Stage: "cgroup", Err: errors.New("WithMemory: none\nWithPIDs: none")}, 125, "sandbox: cgroup: -memory: none\n-pids: none"},
		{nil, &sandbox.SetupError{Stage: "cell", Err: errors.New("broken"), Hint: "mend it"}, 125, "sandbox: cell: broken (mend it)"},
		{nil, sandbox.ErrCellLost, 125, "the cell is gone"},
		{nil, errors.ErrUnsupported, 125, "unsupported operation"},
		{&sandbox.Result{}, copying, 125, copying.Error()},
	} {
		checkOutcome(t, &settings{}, c.result, c.err, nil, c.status, c.line)
	}
	_, reason := outcome(&settings{}, nil, exec(syscall.EIO), nil)
	assert.EqualError(t, reason, "x: input/output error")
	tooBig := &sandbox.SetupError{Stage: "exec", Err: &fs.PathError{Op: "exec", Path: "x", Err: syscall.E2BIG}, Hint: "WithEnv is too large"}
	status, reason := outcome(&settings{}, nil, tooBig, nil)
	assert.Equal(t, 126, status)
	assert.EqualError(t, reason, "x: argument list too long (-env is too large)")
	tooSmall := exec(fmt.Errorf("%w (%w)", sandbox.ErrOutOfMemory, syscall.ENOMEM))
	checkOutcome(t, &settings{memory: 64 * sandbox.KiB}, nil, tooSmall, nil, 137, "out of memory (limit 64 KiB)")
}

func TestOutcomeOfSignals(t *testing.T) {
	for signal, status := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(interrupt{signal})
		line := fmt.Sprintf("canceled by signal %d", signal)
		// before the command was started, after it, and too late
		checkOutcome(t, &settings{}, nil, fmt.Errorf("sandbox: not started: %w", ctx.Err()), context.Cause(ctx), status, line)
		result, _ := ended(sandbox.Canceled, -1, syscall.SIGKILL)
		checkOutcome(t, &settings{}, result, ctx.Err(), context.Cause(ctx), status, line)
		result, err := ended(sandbox.Exited, 3, 0)
		checkOutcome(t, &settings{}, result, err, context.Cause(ctx), 3, "")
	}
}

// checkOutcome compares the status and the beginning of the reason.
func checkOutcome(t *testing.T, s *settings, result *sandbox.Result, err, cause error, status int, line string) {
	t.Helper()
	got, reason := outcome(s, result, err, cause)
	assert.Equal(t, status, got, "%v", err)
	if line == "" {
		assert.NoError(t, reason)
	} else if assert.Error(t, reason) {
		assert.True(t, strings.HasPrefix(reason.Error(), line), "%q does not begin with %q", reason, line)
	}
}
