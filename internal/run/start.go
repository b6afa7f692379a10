//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// start has a run that is prepared execute a command.
func start(ctx context.Context, ready *clone, conf *spec.Spec, command *program.Program) (*Run, error) {
	r := &Run{clone: ready, done: make(chan struct{})}
	if err := r.execute(ctx, conf, command); err != nil {
		r.abandon()
		if r.streams != nil {
			r.streams.Close()
		}
		return nil, err
	}
	r.begin(ctx)
	return r, nil
}

// execute hands over the command with its streams, and waits until it has been executed.
func (r *Run) execute(ctx context.Context, conf *spec.Spec, command *program.Program) (err error) {
	r.spec, r.command = conf, command
	if err := r.openStreams(); err != nil {
		return &fault.SetupError{Stage: "standard streams", Err: err}
	}
	r.started = time.Now()
	return r.under(ctx, func() error {
		err := r.conn.Hand(command.Image(), descriptors(r.streams.Child()))
		r.streams.CloseChild()
		if err != nil && !hasEnded(err) { // if so, why comes next
			return r.startLost(ctx, err)
		}
		return r.follow(ctx, program.Started)
	})
}

func (r *Run) openStreams() (err error) {
	c, s := &r.spec.Supervision, &r.spec.Streams
	conf := stdio.Config{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Extra: s.Extra,
		Limit: c.OutputLimit, Exceeded: func() { r.kill(fault.OutputExceeded) }, Delay: c.WaitDelay,
	}
	if s.Function != nil {
		conf.Extra = append(slices.Clip(s.Extra), s.Function.Conn)
		if conf.Last, err = cell.OwnFile(); err != nil {
			return err
		}
	}
	r.streams, err = stdio.Open(conf)
	return err
}

// under does what waits for the run until ctx ends.
func (r *clone) under(ctx context.Context, f func() error) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		r.conn.Interrupt()
		close(interrupted)
	})
	defer func() {
		if !stop() {
			<-interrupted
			r.conn.Continue()
		}
	}()
	return f()
}

// shapeOf is what the cell means for the program of a run with the given limits. On cgroup v1 an
// ordinary user may only move processes that have its own id (kernel/cgroup/cgroup-v1.c,
// __cgroup1_procs_write).
func shapeOf(c *spec.Spec, in *cell.Cell, limit limits.Spec) compile.Shape {
	s := compile.Shape{SingleID: in.SingleID(), HostIDs: in.Config().HostIDs, WideIDs: in.WideIDs()}
	if in.Limits != nil {
		s.Joins = in.Limits.Joins(limit)
		s.SavedID = s.Joins > 0 && in.Rootless()
		s.Views, s.View = in.Limits.Views(), in.Limits.View(asked(&c.Limits, limit))
	}
	return s
}

// follow takes the run's events until it is Ready, and has then joined its cgroup, is Waiting for its command, or has Started it, and
// its pidfd is there: that comes from another process, the fork server, which may be later than all of them.
func (r *clone) follow(ctx context.Context, until program.Kind) error {
	var unjoined error
	for r.stage < until || r.init == nil {
		m, err := r.conn.Next()
		if err != nil {
			return r.startLost(ctx, err)
		}
		if err := r.adopt(m); err != nil {
			return r.startLost(ctx, err)
		}
		switch {
		case m.Kind == program.Cloned:
		case m.Kind == program.Ready:
			if err := r.join(m.PID); hasEnded(err) {
				unjoined = err // the command has ended, and why comes next
			} else if err != nil {
				return r.startLost(ctx, err)
			} else {
				r.stage = m.Kind
			}
		case unjoined != nil && m.Kind == program.Started:
			return r.startLost(ctx, unjoined)
		case m.Kind == program.Waiting && r.stage == program.Ready, m.Kind == program.Started && r.stage != 0 && r.command != nil:
			r.stage = m.Kind
		case m.Kind == program.Exited:
			r.exited = &m.Event // before the fork server, which is another process, said Cloned
		case m.Kind == program.Failed, m.Kind == program.Refused:
			err := setupError(r.failure(m.Event), r.spec)
			if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENODEV) { // nobody will open its gate, or its cgroup is gone
				return r.startLost(ctx, err)
			}
			return err
		default:
			return &fault.SetupError{Stage: "clone", Err: fmt.Errorf("unexpected event %v", m.Kind)}
		}
	}
	return nil
}

// hasEnded tells the errors of who speaks to a run, or looks for one, whose command has ended.
func hasEnded(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// failure is what a Failed or Refused event says. The calls of the command's program count on from those before it.
func (r *clone) failure(e program.Event) error {
	n := uint32(r.plan.Run.Len())
	if e.Kind == program.Failed && r.command != nil && e.Index >= n {
		e.Index -= n
		return cell.Failure(r.command, e)
	}
	return cell.Failure(r.plan.Run, e)
}

// startLost says why a run ended before its command was executed. err is what
// was noticed of that.
func (r *clone) startLost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.NotStarted(ctx)
	}
	// A start notices that the cell has ended by its sockets and processes, or by its cgroup, which
	// systemd removes when all that was in it has ended.
	gone := []error{io.EOF, unix.ECONNRESET, unix.EPIPE, unix.ESRCH, unix.ENOENT, unix.ENODEV}
	isGone := func(e error) bool { return errors.Is(err, e) }
	if slices.ContainsFunc(gone, isGone) && r.cell.DiesNow() {
		return r.cell.Lost()
	}
	if setup, ok := err.(*fault.SetupError); ok {
		return setup
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("PID 1 of the run ended without a word")
	}
	return &fault.SetupError{Stage: "clone", Err: err}
}

// join puts the command, which waits, into its cgroup, and lets it go on.
func (r *clone) join(pid int) error {
	r.pid = pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return &fault.SetupError{Stage: "pidfd_open", Err: err}
	}
	r.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if err := r.admit(); err != nil {
		return &fault.SetupError{Stage: "cgroup", Err: err}
	}
	return nil
}

// admit puts the command into its cgroup, or has it do that itself where it can.
func (r *clone) admit() error {
	if r.plan.Joins == 0 {
		if r.group != nil {
			if err := r.group.Add(r.pid); err != nil {
				return err
			}
		}
		return r.conn.Go()
	}
	groups, err := r.group.Joins()
	defer closeFiles(groups)
	if err != nil {
		return err
	}
	return r.conn.Go(descriptors(groups)...)
}

// setupError gives a failed call of a run, or of its template, the form that callers know.
func setupError(err error, c *spec.Spec) error {
	var call *cell.CallError
	if !errors.As(err, &call) {
		return err
	}
	e := &fault.SetupError{Stage: call.Stage, Err: err, Hint: hint.Call(call)}
	switch {
	case call.Purpose == program.Directory && c.Command.DirOf != "":
		e.Stage = c.Command.DirOf + ": config field WorkingDir"
	case call.Purpose == program.Exec:
		var why error = call.Errno
		if call.Errno == unix.ENOMEM && c.Limits.Memory != 0 { // the kernel kills nobody for what execve itself takes
			why, e.Hint = fmt.Errorf("%w (%w)", fault.ErrOutOfMemory, call.Errno), "raise WithMemory"
		}
		e.Stage, e.Err = "exec", &fs.PathError{Op: "exec", Path: c.Command.Argv[0], Err: why}
	}
	return e
}
