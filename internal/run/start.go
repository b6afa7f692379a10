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

// start makes a prepared run execute a command.
func start(ctx context.Context, ready *clone, conf *spec.Spec, command *program.Program) (*Run, error) {
	r := &Run{clone: ready, done: make(chan struct{})}
	if err := r.execute(ctx, conf, command); err != nil {
		r.abandon()
		r.refused.finish(conf.Supervision.WaitDelay)
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
		return err
	}
	if err := r.allowed(ctx); err != nil {
		return err
	}
	if err := r.publish(); err != nil {
		return err
	}
	if r.in == nil {
		r.refused.reportTo(conf.Supervision.Refused)
	}
	if ctx.Err() != nil {
		return fault.NotStarted(ctx)
	}
	late, cancel := r.graceAfter(ctx)
	defer cancel()
	r.started = time.Now()
	return r.under(late, func() error {
		err := r.conn.Hand(command.Image(), descriptors(r.streams.Child()))
		r.streams.CloseChild()
		if err != nil && !hasEnded(err) { // if it has ended, follow returns why
			return r.startLost(ctx, err)
		}
		return r.follow(ctx, program.Started)
	})
}

// errRunEnds is why the start of a further command is canceled when its run ends.
var errRunEnds = errors.New("the run ends")

// graceAfter returns a context that ends the grace of WithStopSignal after ctx does. A command that
// is handed over when ctx ends has maybe been executed, and is to get its signal then.
func (r *Run) graceAfter(ctx context.Context) (context.Context, context.CancelFunc) {
	c := &r.spec.Supervision
	if c.StopGrace == 0 || r.spec.Command.Hold {
		return ctx, func() {}
	}
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		if context.Cause(ctx) == errRunEnds {
			return
		}
		select {
		case <-time.After(c.StopGrace):
		case <-late.Done():
		}
	})
	return late, func() { stop(); cancel() }
}

// openStreams opens what the command gets as its descriptors.
func (r *Run) openStreams() (err error) {
	c, s := &r.spec.Supervision, &r.spec.Streams
	conf := stdio.Config{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Extra: s.Extra,
		Limit: c.OutputLimit, Exceeded: func() { r.kill(fault.OutputExceeded) }, Delay: c.WaitDelay, Lull: s.Lull,
	}
	if s.Function != nil {
		conf.Extra = append(slices.Clip(s.Extra), s.Function.Conn)
		if conf.Last, err = cell.OwnFile(); err != nil {
			return &fault.SetupError{Stage: "own program", Err: err}
		}
	}
	if r.streams, err = stdio.Open(conf); err != nil {
		return &fault.SetupError{Stage: "standard streams", Err: err}
	}
	return nil
}

// allowed asks whoever may keep the command from being started.
func (r *Run) allowed(ctx context.Context) error {
	before := r.spec.Supervision.Before
	if before == nil {
		return nil
	}
	err := before(ctx)
	if ctx.Err() != nil {
		return fault.NotStarted(ctx)
	}
	return err
}

// under calls f, which waits for the run, and interrupts the wait when ctx ends.
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

// shapeOf returns what compiling must know of the cell for a run with the given limits. On cgroup
// v1 an ordinary user may only move processes that have its own id (kernel/cgroup/cgroup-v1.c,
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

// follow takes the run's events until the run is Ready and has joined its cgroup, is Waiting for
// its command, or has Started it, as until says, and until PID 1's pidfd is there. That comes from
// another process, the fork server, and may be later than all the events.
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
		case m.Kind == program.Cloned, m.Kind == program.Terminal, m.Kind == program.Listener:
		case m.Kind == program.Ready:
			if r.network != nil {
				r.network.Watch(m.PID)
			}
			if err := r.join(m.PID); hasEnded(err) {
				unjoined = err // the command has ended; a later event says why
			} else if err != nil {
				return r.startLost(ctx, err)
			} else {
				r.stage = m.Kind
			}
		case unjoined != nil && (m.Kind == program.Started || m.Kind == program.Waiting):
			return r.startLost(ctx, unjoined)
		// Its process was killed on the way.
		case m.Kind == program.Started && r.joins && r.command == nil:
			return r.startLost(ctx, unix.ESRCH)
		case m.Kind == program.Waiting && r.stage == program.Ready, m.Kind == program.Started && r.stage != 0 && r.command != nil:
			r.stage = m.Kind
		case m.Kind == program.Exited:
			r.exited = &m.Event // the fork server's Cloned is still to come
		case m.Kind == program.Failed, m.Kind == program.Refused:
			err := setupError(r.failure(m.Event), r.spec)
			// Nothing will open the run's gate any more, or its cgroup is gone.
			if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENODEV) {
				return r.startLost(ctx, err)
			}
			return err
		default:
			return &fault.SetupError{Stage: "clone", Err: fmt.Errorf("unexpected event %v", m.Kind)}
		}
	}
	return nil
}

// hasEnded reports whether err means that the run's process is gone.
func hasEnded(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// failure returns the error of a Failed or Refused event. Calls of the command's program are
// numbered on from those of the run's program.
func (r *clone) failure(e program.Event) error {
	n := uint32(r.program.Len())
	if e.Kind == program.Failed && r.command != nil && e.Index >= n {
		e.Index -= n
		return cell.Failure(r.command, e)
	}
	return cell.Failure(r.program, e)
}

// startLost returns why a run ended before its command was executed. err is the error by which that
// was noticed.
func (r *clone) startLost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.NotStarted(ctx)
	}
	// A start notices that the cell has ended by its sockets and processes, or by its cgroup,
	// which systemd removes when all that was in it has ended.
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

// join keeps hold of the command's process. One that does not go ahead waits for this: it is put
// into its cgroup, if it can't join that by itself, and goes on.
func (r *clone) join(pid int) error {
	r.pid = pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return &fault.SetupError{Stage: "pidfd_open", Err: err}
	}
	r.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if r.goesAhead() {
		return nil
	}
	if !r.joinsAlone() {
		err = r.group.Add(pid)
	}
	if err == nil {
		err = r.letJoin()
	}
	if err != nil {
		return &fault.SetupError{Stage: "cgroup", Err: err}
	}
	return nil
}

// joinsAlone reports whether the command's process joins its cgroup by itself, or has none.
func (r *clone) joinsAlone() bool { return r.plan.Joins > 0 || r.group == nil }

// goesAhead reports whether the command's process finds what it joins its cgroup by when it gets
// there. One that enters a live run waits until this process has hold of it: from then on the run's
// user may kill it.
func (r *clone) goesAhead() bool { return r.joinsAlone() && !r.joins }

// letJoin sends the command's process what it joins its cgroup by, if it does that by itself, for
// which it waits when it is ready.
func (r *clone) letJoin() error { return r.conn.Go(descriptors(r.entrance)...) }

// setupError returns the *SetupError of a failed call of a run, or of its template. It returns
// other errors as they are.
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
		// The kernel kills no process for the memory that execve itself takes.
		if call.Errno == unix.ENOMEM && c.Limits.Memory != 0 {
			why, e.Hint = fmt.Errorf("%w (%w)", fault.ErrOutOfMemory, call.Errno), "raise WithMemory"
		}
		e.Stage, e.Err = "exec", &fs.PathError{Op: "exec", Path: c.Command.Argv[0], Err: why}
	}
	return e
}
