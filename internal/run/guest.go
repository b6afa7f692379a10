//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/guest"
	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wall"
)

// A run in a cell of gVisor is a container of its own, in which package guest is PID 1. Outside,
// the runtime's command stands for it: PID 1 of a pid namespace with all of gVisor's processes for
// this run, and a child of this process.

// guestRun is what such a run, and its further commands, have besides.
type guestRun struct {
	wall.Guest
	place   *cell.Guest
	ends    bool             // the run is to end without a reason of its own
	control *forkserver.Conn // by which PID 1 is asked for commands
}

// guestThreads is how many threads gVisor's kernel may have on the host for a run, which can't be
// told how many processes it may have itself.
const guestThreads = 4096

// startGuest makes a run in a cell of gVisor, and returns once its command was executed.
func (s *Sandbox) startGuest(ctx context.Context, in *cell.Cell) (*Run, error) {
	limit, err := enforceable(&s.Spec.Limits, in)
	if err != nil {
		return nil, err
	}
	r := &Run{clone: &clone{recipe: recipe{engine: s.engine, cell: in, limits: limit}, spec: &s.Spec, gone: make(chan struct{})}, done: make(chan struct{})}
	r.guest = &guestRun{}
	place, err := in.EnterGuest(r.endGuest)
	if err != nil {
		return nil, err
	}
	r.guest.place = place
	r.guest.Guest = wall.Guest{ID: place.ID, Dir: place.Dir, Hostname: s.Spec.Namespaces.Hostname, Writable: s.Spec.Root.Writable}
	if !s.Spec.Security.SetID && !s.Spec.Security.NoSeccomp {
		r.guest.Seccomp = seccomp.OnlySetID() // what is in a bind has its mode on the host
	}
	if err := r.bootGuest(ctx); err != nil {
		if r.init != nil {
			_ = signal(r.init, unix.SIGKILL)
			awaitEnd(r.init)
		}
		switch {
		case ctx.Err() != nil:
			err = fault.NotStarted(ctx)
		case in.Dying():
			err = in.Lost()
		default:
			err = r.guestError(err)
		}
		if r.streams != nil {
			r.streams.Close()
		}
		r.release()
		return nil, err
	}
	r.begin(ctx)
	return r, nil
}

// bootGuest starts the container and waits until the command has been executed in it.
func (r *Run) bootGuest(ctx context.Context) error {
	g := r.guest
	if err := r.openStreams(); err != nil {
		return err
	}
	if err := r.makeGroup(); err != nil {
		return &fault.SetupError{Stage: "cgroup", Err: err}
	}
	if err := r.guestRoot(); err != nil {
		return &fault.SetupError{Stage: "root", Err: err}
	}
	control, far, err := forkserver.NewConn()
	if err != nil {
		return &fault.SetupError{Stage: "runsc", Err: err}
	}
	g.control, g.Control = control, far
	g.Args, g.Env = append(g.Args, guest.Args...), guest.Env
	err = r.askGuest() // which PID 1 looks at when it is there
	if err != nil {
		far.Close()
		return err
	}
	opened, err := r.execGuest()
	if err != nil {
		return err
	}
	defer opened.Close()
	if err := r.allowed(ctx); err != nil {
		return err
	}
	if _, err := opened.WriteString("\n"); err != nil {
		return err
	}
	return r.awaitGuest(ctx)
}

// askGuest asks PID 1 to start the command.
func (r *Run) askGuest() (err error) {
	c, n := &r.spec.Command, &r.spec.Namespaces
	ask := guest.Command{Dir: c.Dir, UID: n.UID, GID: n.GID, Groups: n.Groups, Argv: c.Argv, Env: c.Environ()}
	if ask.Dir == "" {
		ask.Dir = spec.HomeDir
	}
	r.conn, err = guest.Start(r.guest.control, &ask, descriptors(r.streams.Child()))
	r.streams.CloseChild()
	if err != nil && !hasEnded(err) {
		err = &fault.SetupError{Stage: "asking gVisor's PID 1", Err: err}
	}
	return err
}

// execGuest starts the runtime's command, which waits until a line is written to what it returns.
func (r *Run) execGuest() (open *os.File, err error) {
	g := r.guest
	defer g.Control.Close()
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	g.Gate = gate
	started := make(chan error, 1)
	go func() {
		// With the end of the thread that starts it, the command ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd, err := r.cell.GuestRuntime().StartGuest(&g.Guest)
		if err == nil {
			err = r.watchGuest(cmd.Process)
		}
		if err != nil {
			err = &fault.SetupError{Stage: "runsc", Err: err}
		} else {
			err = r.placeGuest() // before the wait, after which the number may be another's
		}
		started <- err
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Wait()
		}
	}()
	if err = <-started; err != nil {
		open.Close()
		return nil, err
	}
	return open, nil
}

// watchGuest opens the pidfds of the runtime's command, for which nobody has waited yet.
func (r *Run) watchGuest(p *os.Process) error {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.pid = p.Pid
	for _, f := range []**os.File{&r.init, &r.pidfd} {
		fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			return errors.Join(os.NewSyscallError("pidfd_open", err), p.Kill())
		}
		*f = os.NewFile(uintptr(fd), "pidfd")
	}
	if r.guest.ends {
		return p.Kill()
	}
	return nil
}

// placeGuest gives the runtime's command its priority and its cgroup.
func (r *Run) placeGuest() error {
	if err := forkserver.DropPriority(r.pid); err != nil {
		return &fault.SetupError{Stage: "runsc", Err: err}
	}
	if r.group != nil {
		if err := r.group.Add(r.pid); err != nil {
			return &fault.SetupError{Stage: "cgroup", Err: err}
		}
	}
	return nil
}

// endGuest ends a run whose cell ends, or whose PID 1 does.
func (r *Run) endGuest() {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.guest.ends = true
	if r.init != nil && !r.state.over {
		_ = signal(r.init, unix.SIGKILL)
	}
}

// guestPatience is far more than a container of gVisor takes to start.
const guestPatience = 2 * time.Minute

// awaitGuest waits until the command has been executed.
func (r *Run) awaitGuest(ctx context.Context) error {
	late, done := r.graceAfter(ctx)
	defer done()
	late, cancel := context.WithTimeoutCause(late, guestPatience, errors.New("gVisor takes too long to start the command"))
	defer cancel()
	var said forkserver.Message
	err := r.under(late, func() (err error) {
		said, err = r.conn.Next()
		return err
	})
	if said.File != nil {
		said.File.Close() // nothing that is true brings one
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return fault.NotStarted(ctx)
	case err != nil && late.Err() != nil:
		return context.Cause(late)
	case err != nil:
		return err
	case said.Kind == program.Started:
		r.started = time.Now()
		return nil
	case said.Kind != program.Failed:
		return fmt.Errorf("unexpected event %v", said.Kind)
	case said.Index == guest.InDir:
		return &fault.SetupError{Stage: "working directory", Err: &fs.PathError{Op: "chdir", Path: r.spec.Command.Dir, Err: unix.Errno(said.Errno)}}
	}
	errno := unix.Errno(said.Errno)
	return &fault.SetupError{Stage: "exec", Err: &fs.PathError{Op: "exec", Path: r.spec.Command.Argv[0], Err: errno}, Hint: hint.Exec(errno)}
}

// guestError returns why a container whose end was noticed by err has not started the command.
func (r *Run) guestError(err error) error {
	var setup *fault.SetupError
	if errors.As(err, &setup) {
		return setup
	}
	e := &fault.SetupError{Stage: "runsc", Err: fmt.Errorf("gVisor has not started the command: %w%s", err, r.guest.Complaint())}
	if r.group != nil {
		if u, err := r.group.Usage(); err == nil && u.OOMKills > 0 {
			e.Err, e.Hint = fault.ErrOutOfMemory, "raise WithMemory: gVisor's own memory is within it"
		}
	}
	return e
}

// leave gives back what the run had in its cell.
func (g *guestRun) leave() {
	if g.control != nil {
		g.control.Close()
	}
	_ = g.place.Leave() // what is left, the cell's end deletes
}

// execInGuest executes a further command.
func (r *Run) execInGuest(ctx context.Context, conf *spec.Spec) (*Run, error) {
	from := recipe{engine: r.engine, cell: r.cell, limits: r.limits}
	x := &Run{clone: &clone{recipe: from, spec: conf, joins: true, guest: r.guest, group: r.group, pid: r.pid, gone: make(chan struct{})}, in: r, done: make(chan struct{})}
	return r.startExec(ctx, x, func(ctx context.Context) error {
		if err := x.openStreams(); err != nil {
			return err
		}
		if err := x.allowed(ctx); err != nil {
			return err
		}
		x.before = x.counts()
		err := x.askGuest()
		if err == nil {
			err = x.awaitGuest(ctx)
		}
		if hasEnded(err) || errors.Is(err, io.EOF) {
			return os.ErrProcessDone // with PID 1, the run ends
		}
		var setup *fault.SetupError
		if err == nil || ctx.Err() != nil || errors.As(err, &setup) {
			return err
		}
		return &fault.SetupError{Stage: "asking gVisor's PID 1", Err: err}
	})
}

// killPatience is far more than PID 1 takes to kill a command.
const killPatience = 30 * time.Second

// killInGuest has PID 1 kill a further command, or ends the run if PID 1 does not: root of the run
// can stop it. The caller holds the state's lock.
func (r *Run) killInGuest() {
	_ = guest.Kill(r.conn)
	if r.state.grace != nil {
		r.state.grace.Stop()
	}
	r.state.grace = time.AfterFunc(killPatience, func() { r.in.kill(fault.Signaled) })
}

// endGivenUp ends the run unless PID 1 soon ends a further command whose start was given up.
// Otherwise each of them would keep a socket here.
func (r *Run) endGivenUp(x *Run) {
	select {
	case <-x.gone:
		return
	default:
	}
	time.AfterFunc(killPatience, func() {
		select {
		case <-x.gone:
		default:
			r.kill(fault.Signaled)
		}
	})
}

// errNoPrograms is the error of Explain.
var errNoPrograms = &fault.SetupError{Stage: "Explain", Err: errors.New("a run in a cell of runsc is made by gVisor, not by system calls of this module"), Hint: "leave WithCell out to see those of another run"}

// noGuest returns the error of what a run in a cell of gVisor can't do.
func (r *Run) noGuest(what string) error {
	if r.guest == nil {
		return nil
	}
	return &fault.SetupError{Stage: what, Err: errors.New("a run in a cell of runsc can't do that: it has a kernel of its own"), Hint: "use another cell"}
}
