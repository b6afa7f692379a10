package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/queue"
)

// Exit statuses besides those of commands. All but misused are those of sandbox run, and of env(1),
// timeout(1) and the shell.
const (
	misused   = 2
	timedOut  = 124
	failed    = 125
	signaled  = 128 // and the signal's number
	outOfMem  = signaled + int(syscall.SIGKILL)
	outOfSize = signaled + 25 // SIGXFSZ on Linux
)

// interrupt is a signal that asks this program to end.
type interrupt struct {
	syscall.Signal
	again <-chan struct{} // closed at the next one
}

func (i interrupt) Error() string        { return i.Signal.String() }
func (i interrupt) Is(target error) bool { return target == context.Canceled }

// interruptible returns a context that SIGINT, SIGTERM and SIGHUP cancel, with the interrupt as its
// cause.
func interruptible() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as SIGHUP is by nohup, and SIGINT in a shell's background job
			signal.Notify(signals, s)
		}
	}
	again := make(chan struct{})
	go func() {
		cancel(interrupt{(<-signals).(syscall.Signal), again})
		<-signals
		close(again)
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// status says on the standard error what is to be said of an error, and returns the exit status.
func (e *env) status(err error) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var by interrupt
	var exit *sandbox.ExitError
	status, ended := failed, false
	switch {
	case errors.Is(err, errUsage) || errors.As(err, new(*sandbox.OptionError)):
		status = misused
	case errors.As(err, &exit) && !errors.Is(err, queue.ErrDead) && !errors.Is(err, queue.ErrOutputs):
		status = exitStatus(exit.Result)
		ended = exit.Reason == sandbox.Exited && exit.ExitCode > 0
	case e.ctx.Err() != nil && errors.As(context.Cause(e.ctx), &by):
		status = signaled + int(by.Signal)
		if !errors.As(err, &by) { // it is only that the context has ended
			err = fmt.Errorf("%w: %w", err, by)
		}
	}
	if ended {
		return status
	}
	for line := range strings.Lines(inFlags.Replace(err.Error())) { // of several errors
		line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "queue: "), "sandbox: ")
		fmt.Fprintln(e.err, "sandbox-queue:", plain(line))
	}
	return status
}

// exitStatus returns the exit status for the end of a task's command.
func exitStatus(r *sandbox.Result) int {
	switch r.Reason {
	case sandbox.TimedOut, sandbox.CPUTimedOut:
		return timedOut
	case sandbox.OutOfMemory:
		return outOfMem
	case sandbox.OutputExceeded:
		return outOfSize
	}
	switch {
	case r.Signal != 0:
		return signaled + int(r.Signal)
	case r.ExitCode > 0:
		return r.ExitCode
	}
	return failed
}
