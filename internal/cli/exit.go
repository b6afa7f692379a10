package cli

// How the end of a run is reported to the caller: an exit status, and a line on the standard error
// if the status isn't the command's own or a limit contributed to it.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/cellkit/sandbox"
)

// The same as those of env(1), timeout(1) and the shell.
const (
	statusTimeout       = 124
	statusSetup         = 125
	statusNotExecutable = 126
	statusNotFound      = 127
	statusSignal        = 128 // plus the signal's number
	statusOutOfMemory   = statusSignal + int(syscall.SIGKILL)
	statusOutput        = statusSignal + 25 // as if by SIGXFSZ; the number is Linux's
)

// outcome returns the exit status for a run, and the reason if that isn't the command's own. cause
// is why the run's context ended.
func outcome(s *settings, result *sandbox.Result, err, cause error) (status int, reason error) {
	var signal interrupt
	switch {
	case err == nil:
		return 0, nil
	case errors.Is(err, context.Canceled) && errors.As(cause, &signal):
		return statusSignal + int(signal.Signal), signal
	case result == nil && errors.Is(err, sandbox.ErrOutOfMemory):
		return statusOutOfMemory, outOfMemory(s.memory)
	case result == nil:
		return startFailure(err)
	}
	switch result.Reason {
	case sandbox.Exited:
		if result.ExitCode == 0 {
			return statusSetup, err // the command did well, but its input or output could not be copied
		}
		return result.ExitCode, nil
	case sandbox.Signaled:
		return commandStatus(result), fmt.Errorf("ended by signal %d (%v)", result.Signal, result.Signal)
	case sandbox.TimedOut:
		return statusTimeout, fmt.Errorf("timed out (limit %v)", s.timeout)
	case sandbox.CPUTimedOut:
		return statusTimeout, fmt.Errorf("out of CPU time (limit %v)", s.cpuTime)
	case sandbox.OutOfMemory:
		return statusOutOfMemory, outOfMemory(s.memory)
	case sandbox.OutputExceeded:
		return statusOutput, fmt.Errorf("too much output (limit %s)", formatSize(uint64(s.output)))
	case sandbox.PIDsExceeded: // the command went on, and its status may say more
		return commandStatus(result), fmt.Errorf("too many processes (%d refused; -pids sets the limit)", result.Usage.PIDsRefused)
	}
	return statusSetup, err
}

// commandStatus returns the status that a shell would report for the command.
func commandStatus(r *sandbox.Result) int {
	if r.Signal != 0 {
		return statusSignal + int(r.Signal)
	}
	return r.ExitCode
}

func outOfMemory(limit int64) error {
	if limit == 0 { // a parent's limit, or the machine's memory
		return errors.New("out of memory")
	}
	return fmt.Errorf("out of memory (limit %s)", formatSize(uint64(limit)))
}

// startFailure distinguishes a command that does not exist, or can't be executed, from everything
// else.
func startFailure(err error) (int, error) {
	var setup *sandbox.SetupError
	var exec *fs.PathError
	if !errors.As(err, &setup) || setup.Stage != "exec" || !errors.As(err, &exec) {
		return statusSetup, flagNames(err)
	}
	status := statusNotExecutable
	if errors.Is(exec, fs.ErrNotExist) {
		status = statusNotFound
	}
	if setup.Hint == "" {
		return status, fmt.Errorf("%s: %w", exec.Path, exec.Err)
	}
	return status, fmt.Errorf("%s: %w (%s)", exec.Path, exec.Err, inFlags(setup.Hint))
}
