//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// A further command in a live run is a Run too, whose field in is the run. Its clone, which stays
// outside the run's pid namespace, has the part of PID 1: it reports the command's end.

// execs are the further commands of a run.
type execs struct {
	mu    sync.Mutex
	ended bool
	all   map[*Run]context.CancelCauseFunc // of their starts
	none  sync.WaitGroup                   // of all

	last    *spec.Spec // the one whose command is
	command *command
}

// Exec executes another command in the run. set applies the options.
func (r *Run) Exec(ctx context.Context, set func(*spec.Spec)) (*Run, error) {
	if r.in != nil {
		return r.in.Exec(ctx, set)
	}
	conf, err := r.current().Exec(set)
	errs := append([]error{err}, checkOpen(&conf.Streams)...)
	if r.guest != nil {
		errs = append(errs, conf.CheckGuestCommand()...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if r.isPaused() {
		return nil, &fault.SetupError{Stage: "Exec", Err: errors.New("the run is paused"), Hint: "call Resume first"}
	}
	if ctx.Err() != nil {
		return nil, fault.NotStarted(ctx)
	}
	if r.guest != nil {
		return r.execInGuest(ctx, conf)
	}
	plan, err := r.plan.Join()
	if err != nil {
		return nil, err
	}
	command, err := r.execs.program(r.engine, conf)
	if err != nil {
		return nil, err
	}
	return r.execByPlan(ctx, conf, plan, command)
}

func (r *Run) execByPlan(ctx context.Context, conf *spec.Spec, plan *compile.Plan, command *program.Program) (*Run, error) {
	from := recipe{engine: r.engine, cell: r.cell, plan: plan, limits: r.limits}
	x := &Run{clone: &clone{recipe: from, program: plan.Run, spec: conf, joins: true, group: r.group, refused: r.refused, gone: make(chan struct{})}, in: r, done: make(chan struct{})}
	return r.startExec(ctx, x, func(ctx context.Context) error { return x.join(ctx, command) })
}

// startExec starts a further command by join.
func (r *Run) startExec(ctx context.Context, x *Run, join func(context.Context) error) (*Run, error) {
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !r.execs.add(x, cancel) {
		return nil, os.ErrProcessDone
	}
	if err := join(starting); err != nil {
		x.abandon()
		if x.streams != nil {
			x.streams.Close()
		}
		if x.guest != nil {
			r.endGivenUp(x)
		}
		if starting.Err() != nil && ctx.Err() == nil || r.endsWith(err) {
			return nil, os.ErrProcessDone
		}
		return nil, withOwnHint(err)
	}
	x.begin(ctx)
	return x, nil
}

// endsWith reports whether a command could not be started because the run ends.
func (r *Run) endsWith(err error) bool {
	var call *cell.CallError
	if errors.As(err, &call) && (call.Number == unix.SYS_SETNS || errors.Is(err, unix.ENOMEM)) {
		// Before it closes its socket, a process that ends can't be entered from, as it has
		// no memory any more (kernel/exit.c, do_exit), and its pid namespace takes no
		// processes (kernel/pid.c, alloc_pid).
		select {
		case <-r.gone:
		case <-time.After(abandonWait):
		}
	}
	return errors.Is(err, os.ErrProcessDone) || !r.conn.Quiet()
}

// join starts the command.
func (x *Run) join(ctx context.Context, command *program.Program) (err error) {
	files, err := x.in.entrances()
	defer closeFiles(files)
	if err != nil {
		return err
	}
	if x.conn, err = x.cell.Join(x.plan.Run, descriptors(files)); err != nil {
		return x.startLost(ctx, &fault.SetupError{Stage: "clone", Err: err})
	}
	x.before = x.counts()
	if err := x.joined(ctx); err != nil {
		return err
	}
	return x.execute(ctx, x.spec, command)
}

// entrances returns what a clone enters the run by.
func (r *Run) entrances() ([]*os.File, error) {
	init, err := forkserver.Dup(r.init)
	if err != nil {
		return nil, os.ErrProcessDone
	}
	if !r.spec.Namespaces.HostIDs {
		return []*os.File{init}, nil
	}
	defer init.Close()
	pid, err := pidOf(init)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, name := range compile.Entrances {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			break // it has ended
		}
		files = append(files, f)
	}
	// If PID 1 has ended, its number may be another's.
	if signal(init, 0) != nil || len(files) < len(compile.Entrances) {
		closeFiles(files)
		return nil, os.ErrProcessDone
	}
	return files, nil
}

// pidOf returns the number of a pidfd's process: pidfd_open(2), fdinfo.
func pidOf(pidfd *os.File) (pid int, err error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if number, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err = strconv.Atoi(strings.TrimSpace(number))
		}
	}
	if pid <= 0 || err != nil {
		return 0, os.ErrProcessDone
	}
	return pid, nil
}

// add adds one that is about to start. It reports false if the run has ended.
func (e *execs) add(x *Run, cancel context.CancelCauseFunc) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return false
	}
	if e.all == nil {
		e.all = map[*Run]context.CancelCauseFunc{}
	}
	e.all[x] = cancel
	e.none.Go(func() {
		<-x.gone
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.all, x)
	})
	return true
}

// end waits until none is left of a run of which nothing lives any more in its pid namespace.
func (e *execs) end() {
	e.mu.Lock()
	e.ended = true
	for _, cancel := range e.all {
		cancel(errRunEnds)
	}
	e.mu.Unlock()
	e.none.Wait()
}

// program returns the program of a command, the last one's if it is the same.
func (e *execs) program(of *Engine, c *spec.Spec) (*program.Program, error) {
	e.mu.Lock()
	if e.last == nil || !c.SameCommand(e.last) {
		e.last, e.command = &spec.Spec{Command: c.Command, Security: c.Security, Streams: spec.Streams{Extra: make([]*os.File, len(c.Streams.Extra))}}, new(command)
	}
	last := e.command
	e.mu.Unlock()
	return last.program(of, c)
}
