//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/spec"
)

// Sandbox is what is behind sandbox.Sandbox: a description that nothing changes any more, and what
// was compiled from it.
type Sandbox struct {
	Spec   spec.Spec
	engine *Engine

	once    sync.Once
	invalid []error // what is wrong with the options

	// These are shared with other sandboxes for which they would be the same.
	plans    *plans
	command  *command
	prepared *prepared
}

// New returns a sandbox of the description.
func (e *Engine) New(c spec.Spec) *Sandbox {
	s := &Sandbox{Spec: c, engine: e, plans: new(plans), command: new(command)}
	s.prepared = newPrepared(s)
	return s
}

// With returns a sandbox of another description, which shares what would be the same for both.
func (s *Sandbox) With(c spec.Spec) *Sandbox {
	derived := &Sandbox{Spec: c, engine: s.engine, plans: s.plans, command: s.command, prepared: s.prepared}
	if !c.SamePlans(&s.Spec) {
		derived.plans = new(plans)
	}
	if !c.SameCommand(&s.Spec) {
		derived.command = new(command)
	}
	if derived.plans != s.plans || !c.SamePrepared(&s.Spec) {
		derived.prepared = newPrepared(derived)
	}
	return derived
}

// check returns all wrong options: first those that are wrong on every machine, which are looked
// for once, then those that name what does not exist here.
func (s *Sandbox) check() error {
	c := &s.Spec
	s.once.Do(func() { s.invalid = append(c.Check(), s.command.checkFilter(&c.Security)) })
	errs := append(slices.Clone(s.invalid), checkOnline(&c.Limits))
	errs = append(errs, checkDevices(&c.Limits)...)
	errs = append(errs, checkSources(&c.Root)...)
	errs = append(errs, checkOpen(&c.Streams)...)
	if given, ok := c.Place.Cell.(*cell.Cell); ok {
		_, err := s.engine.Cell(c) // this boots no cell
		errs = append(errs, err)
		if given.GuestRuntime() != nil {
			errs = append(errs, c.CheckGuest()...)
		}
	}
	return errors.Join(errs...)
}

// CheckAlone returns all wrong options of a sandbox that is started by a function, by, which
// returns no Process, if some of them need one.
func (s *Sandbox) CheckAlone(by string) error {
	if errs := s.Spec.CheckAlone(by); errs != nil {
		return errors.Join(append([]error{s.check()}, errs...)...)
	}
	return nil
}

// Explain returns the programs of a run as text.
func (s *Sandbox) Explain() (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	if given, ok := s.Spec.Place.Cell.(*cell.Cell); ok && given.GuestRuntime() != nil {
		return "", errNoPrograms
	}
	hostIDs := s.Spec.Namespaces.HostIDs
	private := s.Spec.Namespaces.Network == spec.NetworkPrivate
	p, err := s.plans.plan(s.engine.now(&s.Spec), s.Spec, compile.Shape{HostIDs: hostIDs, WideIDs: !hostIDs, InNetwork: private})
	if err != nil {
		return "", err
	}
	command, err := s.command.program(s.engine, &s.Spec)
	if err != nil {
		return "", err
	}
	text := p.Explain(command, hostIDs)
	if kept, why := keepsNetwork(&s.Spec); kept {
		text += "## if a network namespace of the cell is as it was when it was new: in that, without the calls for one\n"
	} else if why != "" {
		text += "## in a network namespace that no run was in before: " + why + "\n"
	}
	if private {
		text += "## in the network namespace of its place on the private network\n"
	}
	return text, nil
}

// Start makes a run, and returns once its command was executed. If the cell turns out to have died
// before that, another one is booted and the run started there.
func (s *Sandbox) Start(ctx context.Context) (*Run, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fault.NotStarted(ctx)
	}
	for attempt := 0; ; attempt++ {
		r, err := s.startOnce(ctx)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, cell.ErrLost) {
			var setup *fault.SetupError
			if errors.As(err, &setup) {
				// The host's files may have changed since the plan was compiled.
				s.plans.forget()
			}
			return nil, withOwnHint(err)
		}
		if s.Spec.Place.Cell != nil || attempt == 2 {
			return nil, fmt.Errorf("sandbox: %w (%w)", fault.ErrCellLost, err)
		}
	}
}

// withOwnHint returns the error with what to do about it if this process lacks something.
func withOwnHint(err error) error {
	if e, ok := err.(*fault.SetupError); ok && e.Hint == "" {
		return &fault.SetupError{Stage: e.Stage, Err: e.Err, Hint: hint.Own(err)}
	}
	return err
}

func (s *Sandbox) startOnce(ctx context.Context) (*Run, error) {
	c, err := s.engine.Cell(&s.Spec)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // ctx may have ended during a boot
		return nil, fault.NotStarted(ctx)
	}
	if c.GuestRuntime() != nil {
		return s.startGuest(ctx, c)
	}
	command, err := s.command.program(s.engine, &s.Spec)
	if err != nil {
		return nil, err
	}
	from, err := s.recipe(c)
	if err != nil {
		return nil, err
	}
	ready := s.prepared.take(from)
	if ready == nil {
		if ready, err = from.prepare(ctx, &s.Spec); err != nil {
			return nil, err
		}
	}
	return start(ctx, ready, &s.Spec, command)
}

// recipe returns what a run in the cell is prepared from.
func (s *Sandbox) recipe(in *cell.Cell) (from recipe, err error) {
	from.engine, from.cell = s.engine, in
	if from.limits, err = enforceable(&s.Spec.Limits, in); err != nil {
		return from, err
	}
	m, shape := s.engine.now(&s.Spec), shapeOf(&s.Spec, in, from.limits)
	shape.InNetwork = s.Spec.Namespaces.Network == spec.NetworkPrivate
	if from.plan, err = s.plans.plan(m, s.Spec, shape); err != nil {
		return from, err
	}
	if kept, _ := keepsNetwork(&s.Spec); kept {
		shape.InNetwork = true
		kept, err := s.plans.plan(m, s.Spec, shape)
		if err != nil {
			return from, err
		}
		from.inNetwork = kept.Run
	}
	from.sources, err = findSources(from.plan)
	return from, err
}

// keepsNetwork reports whether a run may begin in a network namespace that another was in before,
// and leave it to a later one: if nothing of it can have a right to the namespace, make another
// proc file system that shows it, or open a socket that is not counted. If a new one is made in its
// place, why names the option that is the reason.
func keepsNetwork(c *spec.Spec) (kept bool, why string) {
	s := &c.Security
	switch {
	case c.Namespaces.Network == spec.NetworkNew:
		return false, "WithNetwork(NetworkNew) asks for one"
	case c.Namespaces.Network != spec.NetworkNone:
		return false, ""
	case c.Namespaces.HostIDs:
		return false, "with WithoutUserNamespace the run's ids may have rights over it"
	case len(s.Capabilities) > 0:
		return false, "WithCapabilities may let the run change it"
	case s.Seccomp != nil:
		return false, "WithSeccomp may let the run use it in a way that is not noticed"
	case s.NoSeccomp:
		return false, "WithoutSeccomp lets the run use it in a way that is not noticed"
	}
	return true, ""
}

// Parts returns the parts of the root that keep changes of their own.
func (s *Sandbox) Parts() []compile.Part {
	c := &s.Spec
	return compile.Parts(c, s.engine.now(c), compile.Found{Found: spec.Found{Files: sourceFiles(&c.Root)}})
}
