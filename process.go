package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
)

// Process is a run that was started, or a command that Exec started in one. Its methods are safe
// for concurrent use.
type Process struct {
	r *running

	once   sync.Once
	result *Result
	err    error
}

// Exec executes another command in the run, as another process of it: with the same namespaces,
// root, cgroup, limits, user, capabilities and filter, and what the run has written so far. It
// returns as soon as the command has been executed, and the caller must call Wait on what it
// returns.
//
// The options are those of a command: WithCommand, WithStdin, WithStdout, WithStderr,
// WithExtraFiles, WithTerminal, WithTimeout and WithOutputLimit, which are its own, and WithEnv,
// WithDir, WithRlimit, WithWaitDelay and WithStopSignal, which add to those of the run or replace
// them. Every other option belongs to the run, and is an *OptionError. Otherwise the errors are
// those of Start. If the run has ended, the error is os.ErrProcessDone; a paused run refuses, with
// a *SetupError.
//
// The end of the command is not the end of the run, and what the command leaves in the background
// goes on until the run ends. The end of the run is that of its commands: their Reason is RunEnded,
// and the error tells of both. If the run is killed for its memory as a whole, they are OutOfMemory
// too; and so is a command that fails by itself if the kernel killed a process of the run
// meanwhile, as it does not tell whose that was. ctx, the timeout, Kill and Close kill the command
// with its descendants and the processes of its session. One that has left both, as a daemon does,
// lives on in the run.
//
// Ended is closed at the end of the command, Pause and Resume are for the whole run, and Exec
// starts another command there. Usage covers the command and the children that it waited for, as
// getrusage(2) does: Uncounted names the rest, which is in the run's Usage.
//
// A second Exec of the same command compiles nothing anew. Other processes of the run may stop the
// command before it has been executed, once it has no rights but theirs: give ctx a deadline. What
// ends a command of a run that is paused has an effect once that is resumed, on cgroup v1.
func (p *Process) Exec(ctx context.Context, opts ...Option) (*Process, error) {
	r, err := exec(ctx, p.r, opts)
	if err != nil {
		return nil, err
	}
	return &Process{r: r}, nil
}

// PID returns the command's process id as this process sees it, or 0 for a run of WithHold. The
// number may belong to another process once Wait has returned.
func (p *Process) PID() int { return p.r.PID() }

// Wait waits until no process of the run is left, and until all of its output has been written, or
// WithWaitDelay is over, and returns how it ended. Its mounts and its cgroup are removed a moment
// later, at the latest with the cell. Then Wait closes Terminal and the pipes of StdinPipe and so
// on, so what is to be read must be read before. The errors are those of Run; a failure to copy
// input or output is the error if there is no other, and errors.Is finds it in that of a command
// that failed by itself, as by SIGPIPE. Every call returns the same values.
func (p *Process) Wait() (*Result, error) {
	p.once.Do(func() {
		p.result, p.err = wait(p.r)
		pipes := p.r.Pipes()
		pipes.Close()
		if t := p.r.Terminal(); t != nil {
			_ = t.Close()
		}
	})
	return p.result, p.err
}

// StdinPipe returns the pipe to the command's standard input that WithStdinPipe asked for, or nil.
// Closing it is the end of the input.
func (p *Process) StdinPipe() io.WriteCloser { return p.r.Pipes().Stdin }

// StdoutPipe returns the pipe from the command's standard output that WithStdoutPipe asked for, or
// nil. It ends when nobody can write to it any more, at the latest with the run.
func (p *Process) StdoutPipe() io.ReadCloser { return p.r.Pipes().Stdout }

// StderrPipe returns the pipe from the command's standard error that WithStderrPipe asked for, or
// nil, as StdoutPipe does.
func (p *Process) StderrPipe() io.ReadCloser { return p.r.Pipes().Stderr }

// Terminal returns the other end of the terminal that WithTerminal asked for, or nil. A Read
// returns what the command writes, and io.EOF when nobody has the terminal open any more. What is
// written is what is typed. Close hangs up: the command gets SIGHUP. Wait closes it when the
// command has ended, so what is to be read must be read before. It is also a syscall.Conn, with
// which another process can be given the descriptor.
func (p *Process) Terminal() io.ReadWriteCloser {
	if t := p.r.Terminal(); t != nil {
		return t
	}
	return nil
}

// Resize changes the size of the command's terminal, of which that is told by SIGWINCH. Without
// WithTerminal the error is errors.ErrUnsupported.
func (p *Process) Resize(rows, cols uint16) error {
	if t := p.r.Terminal(); t != nil {
		return t.Resize(rows, cols)
	}
	return fmt.Errorf("sandbox: Resize without WithTerminal: %w", errors.ErrUnsupported)
}

// Ended returns a channel that is closed when no process of the run is left. Its output may still
// have to be written, for which Wait waits.
func (p *Process) Ended() <-chan struct{} { return p.r.Ended() }

// Published returns the addresses at which the run is published, in the order of the WithPublish
// options, with the ports that were chosen for those that say 0.
func (p *Process) Published() []netip.AddrPort { return p.r.Published() }

// Signal sends a signal to the command. It returns os.ErrProcessDone if the command has ended, and
// for a run of WithHold.
func (p *Process) Signal(sig os.Signal) error { return p.r.Signal(sig) }

// Kill kills every process of the run. For an Exec, see there.
func (p *Process) Kill() error { return p.r.Kill() }

// Close ends the run, if it has not ended, gently with WithStopSignal, and waits as Wait does. A
// run of WithHold has then ended well: its Result is that of an exit with status 0. The error is
// that of Wait if it is no *ExitError. Close may be called more than once.
func (p *Process) Close() error {
	p.r.Close()
	_, err := p.Wait()
	var exit *ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// Pause stops every process of the run until Resume. The processes do not notice it. Time goes on:
// a timeout still ends the run. It needs the freezer (cgroup v1) or cgroup v2.
func (p *Process) Pause() error { return p.r.Pause() }

// Resume lets a paused run go on.
func (p *Process) Resume() error { return p.r.Resume() }

// Update changes limits of the run while it lives: WithMemory, WithSwap, WithCPUs, WithCPUWeight,
// WithCPUSet, WithPIDs, WithIO, WithCPUTime and WithTimeout, to more or to less. What is not given
// stays, and a limit of 0 is none, or the default. WithTimeout counts from the execution of the
// command, and WithCPUTime all that was used: less than that ends the run. WithIO replaces all four
// rates of a device; a rate of math.MaxUint64 is none. Of a command of Exec, Update changes
// WithTimeout alone.
//
// All or nothing is changed. Errors are an *OptionError for an option that is no limit, or more
// than the pool has; os.ErrProcessDone, if the run ends or has ended; and a *SetupError, if this
// machine can't enforce the limit or the kernel refuses it. Less memory than the run uses is
// refused after the kernel has tried to reclaim the rest, so that nothing is killed for it; on
// cgroup v2 what the run takes at the very same time may be, and the run may be slowed down for up
// to two seconds. WithPIDs below the present number ends nothing, but allows no more.
//
// The run sees the change where it sees its limits (docs/CGROUPS.md), which takes one of the start.
// On cgroup v1 a limit of CPUs, or WithCPUSet, can change only if the run was started with one. A
// program that has planned for its limits, as a JVM does at its start, does not look again.
func (p *Process) Update(opts ...Option) error { return update(p.r, opts) }

// Usage returns what the run has used so far. Without cgroups only Wall is known before the end.
func (p *Process) Usage() (Usage, error) { return usage(p.r) }
