//go:build linux

package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/guest"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wall"
)

// A run in a cell of gVisor is a container of its own, in which package guest is PID 1. Outside,
// the runtime's command stands for it: PID 1 of a pid namespace with all of gVisor's processes for
// this run, and a child of this process.

// guestRun is what such a run has in place of a clone's connection.
type guestRun struct {
	wall.Guest
	place   *cell.Guest
	ends    bool // the cell does
	reports *json.Decoder
	pipe    *os.File // where they come from
}

// startGuest makes a run in a cell of gVisor, and returns once its command was executed.
func (s *Sandbox) startGuest(ctx context.Context, in *cell.Cell) (*Run, error) {
	limit, err := enforceable(&s.Spec.Limits, in)
	if err != nil {
		return nil, err
	}
	limit.PIDs = 0 // the default is for processes, and the host sees gVisor's threads
	r := &Run{clone: &clone{recipe: recipe{engine: s.engine, cell: in, limits: limit}, spec: &s.Spec, gone: make(chan struct{})}, done: make(chan struct{})}
	r.guest = &guestRun{}
	place, err := in.EnterGuest(r.endGuest)
	if err != nil {
		return nil, err
	}
	r.guest.place = place
	r.guest.Guest = wall.Guest{ID: place.ID, Dir: place.Dir, Hostname: s.Spec.Namespaces.Hostname, Writable: s.Spec.Root.Writable}
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
	conduct := guest.Conduct{Dir: r.spec.Command.Dir, UID: r.spec.Namespaces.UID, GID: r.spec.Namespaces.GID, Groups: r.spec.Namespaces.Groups}
	if conduct.Dir == "" {
		conduct.Dir = spec.HomeDir
	}
	args, env := conduct.Line(r.spec.Command.Argv, r.spec.Command.Environ())
	g.Args, g.Env = append(g.Args, args...), env
	opened, err := r.execGuest()
	if err != nil {
		return err
	}
	defer opened.Close()
	if r.group != nil {
		if err := r.group.Add(r.pid); err != nil {
			return &fault.SetupError{Stage: "cgroup", Err: err}
		}
	}
	if _, err := opened.WriteString("\n"); err != nil {
		return err
	}
	return r.awaitGuest(ctx)
}

// execGuest starts the runtime's command, which waits until a line is written to what it returns.
func (r *Run) execGuest() (open *os.File, err error) {
	g := r.guest
	pipe, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	g.pipe, g.reports = pipe, guest.Reports(pipe)
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	g.Files, g.Gate = append(r.streams.Child(), report), gate
	started := make(chan error, 1)
	go func() {
		// With the end of the thread that starts it, the command ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd, err := r.cell.GuestRuntime().StartGuest(&g.Guest)
		if err == nil {
			err = r.watchGuest(cmd.Process)
		}
		started <- err
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Wait()
		}
	}()
	err = <-started
	r.streams.CloseChild()
	if err != nil {
		open.Close()
		return nil, &fault.SetupError{Stage: "runsc", Err: err}
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

// endGuest ends a run whose cell ends.
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
	ctx, cancel := context.WithTimeoutCause(ctx, guestPatience, errors.New("gVisor takes too long to start"))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = signal(r.init, unix.SIGKILL) })
	defer stop()
	var said guest.Report
	err := r.guest.reports.Decode(&said)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err // the pipe's end
	case said.Started:
		r.started = time.Now()
		return nil
	case said.Dir:
		return &fault.SetupError{Stage: "working directory", Err: &fs.PathError{Op: "chdir", Path: r.spec.Command.Dir, Err: said.Errno}}
	}
	return &fault.SetupError{Stage: "exec", Err: &fs.PathError{Op: "exec", Path: r.spec.Command.Argv[0], Err: said.Errno}}
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

// awaitEnd returns the command's end, and whether the run has reported one.
func (g *guestRun) awaitEnd() (program.Event, bool) {
	var said guest.Report
	if err := g.reports.Decode(&said); err != nil || !said.Ended {
		return program.Event{Status: uint32(unix.SIGKILL)}, false
	}
	return program.Event{Kind: program.Exited, Status: uint32(said.Status), UserCPU: said.UserCPU, SystemCPU: said.SystemCPU, MaxRSS: said.MaxRSS}, true
}

// leave gives back what the run had in its cell.
func (g *guestRun) leave() {
	if g.pipe != nil {
		g.pipe.Close()
	}
	_ = g.place.Leave() // what is left, the cell's end deletes
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
