package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// start makes a run. If the cell turns out to have died before the command was
// executed, another one is booted and the run started there.
func (s *Sandbox) start(ctx context.Context) (*Process, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fault.NotStarted(ctx)
	}
	for attempt := 0; ; attempt++ {
		r, err := s.startOnce(ctx)
		if err == nil {
			return &Process{r}, nil
		}
		if !errors.Is(err, cell.ErrLost) {
			var setup *SetupError
			if errors.As(err, &setup) {
				s.plans.forget() // the host's files may have changed since it was compiled
			}
			return nil, err
		}
		if s.config.Place.Cell != nil || attempt == 2 {
			return nil, fmt.Errorf("sandbox: %w (%w)", ErrCellLost, err)
		}
	}
}

func (s *Sandbox) startOnce(ctx context.Context) (*running, error) {
	if s.config.Root.ShowsHost() {
		readAhead()
	}
	c, err := findCell(&s.config)
	if err != nil {
		return nil, err
	}
	return s.startIn(ctx, c)
}

// check reports all wrong options: first what is wrong whatever this machine is like, which is
// looked for once, then what they name and is not there.
func (s *Sandbox) check() error {
	c := &s.config
	s.once.Do(func() { s.invalid = append(c.Check(), s.command.checkFilter(&c.Security)) })
	errs := append(slices.Clone(s.invalid), checkOnline(&c.Limits))
	errs = append(errs, checkDevices(&c.Limits)...)
	errs = append(errs, checkSources(&c.Root)...)
	errs = append(errs, checkOpen(&c.Streams)...)
	if c.Place.Cell != nil {
		_, err := findCell(c) // boots none
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// runCount names the runs' cgroups.
var runCount atomic.Uint64

// startIn takes a run that was prepared, or prepares one, and has it execute the command.
func (s *Sandbox) startIn(ctx context.Context, c *cell.Cell) (_ *running, err error) {
	if ctx.Err() != nil { // it took a boot to get here
		return nil, fault.NotStarted(ctx)
	}
	command, err := s.command.program(&s.config)
	if err != nil {
		return nil, err
	}
	from, err := newRecipe(&s.config, s.plans, c)
	if err != nil {
		return nil, err
	}
	r := s.prepared.take(from)
	if r == nil {
		if r, err = from.prepare(ctx, &s.config); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			r.abandon()
		}
	}()
	if err := r.execute(ctx, &s.config, command); err != nil {
		return nil, err
	}
	r.begin(ctx)
	return r, nil
}

// recipe is what a run is prepared from.
type recipe struct {
	cell    *cell.Cell
	plan    *plan
	limits  limits.Spec
	sources sources
}

func newRecipe(c *spec.Spec, plans *plans, in *cell.Cell) (from recipe, err error) {
	from.cell = in
	if from.limits, err = enforceable(&c.Limits, in); err != nil {
		return from, err
	}
	if from.plan, err = plans.plan(*c, shapeOf(c, in, from.limits)); err != nil {
		return from, err
	}
	from.sources, err = from.plan.sources()
	return from, err
}

// prepare makes a run that lacks nothing but a command.
func (from recipe) prepare(ctx context.Context, conf *spec.Spec) (_ *running, err error) {
	c, p := from.cell, from.plan
	r := &running{recipe: from, config: conf, done: make(chan struct{}), gone: make(chan struct{})}
	if r.block, err = c.Take(conf.Namespaces.UID, conf.Namespaces.GID, p.ownUser); errors.Is(err, cell.ErrLost) {
		return nil, err
	} else if err != nil {
		return nil, &SetupError{Stage: "user namespace", Err: err}
	}
	defer func() {
		if err != nil {
			r.abandon()
		}
	}()
	if upper := upperOf(&conf.Root); upper != nil {
		if err := upper.use.beginRun(); err != nil {
			return nil, &SetupError{Stage: "WithScratchRoot", Err: err, Hint: "a scratch for each, or one run after the other"}
		}
		r.upper = upper
	}
	if err := r.spawn(); err != nil {
		return nil, err
	}
	// While the clone sets itself up, make the cgroup that it will join.
	if c.Limits != nil {
		if p := conf.Limits.Pool; p.IsLimited() {
			if err := makePool(p, c); err != nil {
				return nil, r.startLost(ctx, &SetupError{Stage: "cgroup", Err: err})
			}
		}
		if r.group, err = c.Limits.Create(fmt.Sprintf("run-%d", runCount.Add(1)), from.limits); err != nil {
			return nil, r.startLost(ctx, &SetupError{Stage: "cgroup", Err: err})
		}
	}
	return r, r.under(ctx, func() error { return r.follow(ctx, program.Ready) })
}

// execute hands over the command with its streams, and waits until it has been executed.
func (r *running) execute(ctx context.Context, conf *spec.Spec, command *program.Program) (err error) {
	r.config, r.commandProgram = conf, command
	if err := r.openStreams(); err != nil {
		return &SetupError{Stage: "standard streams", Err: err}
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

func (r *running) openStreams() (err error) {
	c, s := &r.config.Supervision, &r.config.Streams
	conf := stdio.Config{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Extra: s.Extra,
		Limit: c.OutputLimit, Exceeded: func() { r.kill(OutputExceeded) }, Delay: c.WaitDelay,
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
func (r *running) under(ctx context.Context, f func() error) error {
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
func shapeOf(c *spec.Spec, in *cell.Cell, limit limits.Spec) shape {
	s := shape{singleID: in.SingleID(), hostIDs: in.Config().HostIDs, wideIDs: in.WideIDs()}
	if in.Limits != nil {
		s.joins = in.Limits.Joins(limit)
		s.savedID = s.joins > 0 && in.Rootless()
		s.views, s.view = in.Limits.Views(), in.Limits.View(asked(&c.Limits, limit))
	}
	return s
}

// enforceable is the limits of a run in the cell, or what stands in the way of
// those that were asked for.
func enforceable(l *spec.Limits, c *cell.Cell) (limits.Spec, error) {
	want, err := wanted(l)
	if err != nil {
		return want, err
	}
	given, pool := asked(l, want), l.Pool
	switch {
	case c.Limits != nil:
		err = c.Tree.Missing(given)
		if pool.IsLimited() {
			if missing := c.Tree.Missing(together(pool)); missing != nil {
				err = errors.Join(err, fmt.Errorf("the pool's %w", missing))
			}
		}
		if l.CPUTime != 0 {
			err = errors.Join(err, c.Tree.MissingCPUTime())
		}
	case !given.Empty() || l.CPUTime != 0 || pool.IsLimited():
		err = fmt.Errorf("%s: %w", strings.Join(optionsOf(l), ", "), c.LimitsErr)
	}
	if err != nil {
		return want, &SetupError{Stage: "cgroup", Err: err}
	}
	if c.Limits != nil && c.Tree.Missing(want) != nil {
		want.PIDs = 0 // a default that can't be enforced: Check says so
	}
	if pool.IsLimited() {
		want = within(pool, want)
	}
	return want, nil
}

// asked is the part of what is wanted that is no default.
func asked(l *spec.Limits, want limits.Spec) limits.Spec {
	if l.PIDs == 0 {
		want.PIDs = 0
	}
	return want
}

// spawn opens what accompanies the run's program and sends both.
func (r *running) spawn() (err error) {
	p := r.plan
	defer func() {
		if err != nil && !errors.Is(err, cell.ErrLost) && r.cell.Dying() { // its ids are looked up in a process that has ended
			err = r.cell.Lost()
		}
	}()
	template, err := r.template(p)
	if err != nil {
		return err
	}
	defer template.Release()
	trees, err := openTrees(r.cell, p.files, r.block)
	defer closeFiles(trees)
	if err != nil {
		return err
	}
	r.conn, err = r.cell.Spawn(p.run, r.block, template, descriptors(trees))
	if err != nil && !errors.Is(err, cell.ErrLost) {
		err = &SetupError{Stage: "clone", Err: err}
	}
	return err
}

func (r *running) template(p *plan) (*cell.Template, error) {
	t, err := r.cell.Template(r.sources.template, p.copies, p.template, func() ([]*os.File, error) {
		return openTrees(r.cell, p.trees, r.block)
	})
	if err != nil {
		return nil, setupError(err, r.config)
	}
	return t, nil
}

func descriptors(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return fds
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// follow takes the run's events until it is Ready, and has then joined its cgroup, is Waiting for its command, or has Started it, and
// its pidfd is there: that comes from another process, the fork server, which may be later than all of them.
func (r *running) follow(ctx context.Context, until program.Kind) error {
	var unjoined error
	for r.stage < until || r.pidfd == nil {
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
		case m.Kind == program.Waiting && r.stage == program.Ready, m.Kind == program.Started && r.stage != 0 && r.commandProgram != nil:
			r.stage = m.Kind
		case m.Kind == program.Exited:
			r.exited = &m.Event // before the fork server, which is another process, said Cloned
		case m.Kind == program.Failed, m.Kind == program.Refused:
			err := setupError(r.failure(m.Event), r.config)
			if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENODEV) { // nobody will open its gate, or its cgroup is gone
				return r.startLost(ctx, err)
			}
			return err
		default:
			return &SetupError{Stage: "clone", Err: fmt.Errorf("unexpected event %v", m.Kind)}
		}
	}
	return nil
}

// hasEnded tells the errors of who speaks to a run, or looks for one, whose command has ended.
func hasEnded(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// failure is what a Failed or Refused event says. The calls of the command's program count on from those before it.
func (r *running) failure(e program.Event) error {
	n := uint32(r.plan.run.Len())
	if e.Kind == program.Failed && r.commandProgram != nil && e.Index >= n {
		e.Index -= n
		return cell.Failure(r.commandProgram, e)
	}
	return cell.Failure(r.plan.run, e)
}

// startGone is how a start notices that the cell has ended: by its sockets and processes, or its cgroup, which systemd
// removes when all that was in it has ended.
var startGone = []error{io.EOF, unix.ECONNRESET, unix.EPIPE, unix.ESRCH, unix.ENOENT, unix.ENODEV}

// startLost says why a run ended before its command was executed. err is what
// was noticed of that.
func (r *running) startLost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.NotStarted(ctx)
	}
	isGone := func(e error) bool { return errors.Is(err, e) }
	if slices.ContainsFunc(startGone, isGone) && r.cell.DiesNow() {
		return r.cell.Lost()
	}
	if setup, ok := err.(*SetupError); ok {
		return setup
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("PID 1 of the run ended without a word")
	}
	return &SetupError{Stage: "clone", Err: err}
}

// join puts the command, which waits, into its cgroup, and lets it go on.
func (r *running) join(pid int) error {
	r.pid = pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return &SetupError{Stage: "pidfd_open", Err: err}
	}
	r.command = os.NewFile(uintptr(fd), "pidfd")
	if err := r.admit(); err != nil {
		return &SetupError{Stage: "cgroup", Err: err}
	}
	return nil
}

// admit puts the command into its cgroup, or has it do that itself where it can.
func (r *running) admit() error {
	if r.plan.joins == 0 {
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
	e := &SetupError{Stage: call.Stage, Err: err, Hint: hint(call)}
	switch {
	case call.Purpose == program.Directory && c.Command.DirOf != "":
		e.Stage = c.Command.DirOf + ": config field WorkingDir"
	case call.Purpose == program.Exec:
		var why error = call.Errno
		if call.Errno == unix.ENOMEM && c.Limits.Memory != 0 { // the kernel kills nobody for what execve itself takes
			why, e.Hint = fmt.Errorf("%w (%w)", ErrOutOfMemory, call.Errno), "raise WithMemory"
		}
		e.Stage, e.Err = "exec", &fs.PathError{Op: "exec", Path: c.Command.Argv[0], Err: why}
	}
	return e
}
