//go:build linux

package run

import (
	"context"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// Shares reports what both have in common.
func (s *Sandbox) Shares(o *Sandbox) (plans, command, prepared bool) {
	return s.plans == o.plans, s.command == o.command, s.prepared == o.prepared
}

// Prepares reports whether runs are prepared.
func (s *Sandbox) Prepares() bool { return s.prepared != nil }

// Networks returns how many private networks the engine knows.
func (e *Engine) Networks() int { return len(e.networks.list()) }

// BeIdle makes the time of prepared runs run out.
func (s *Sandbox) BeIdle() { s.prepared.idle.Reset(0) }

// Check returns all that is wrong with the options.
func (s *Sandbox) Check() error { return s.check() }

// Command returns the compiled program of the command.
func (s *Sandbox) Command() (*program.Program, error) { return s.command.program(s.engine, &s.Spec) }

// Copying returns what copies files of the host's programs.
func (e *Engine) Copying() cell.Assembly { return *copying(e.HostFiles()) }

// Plan returns the plan of a run in the cell, and the shape that it is for.
func (s *Sandbox) Plan(c *cell.Cell) (*compile.Plan, compile.Shape, error) {
	from, err := s.recipe(c)
	return from.plan, shapeOf(&s.Spec, c, from.limits), err
}

// WithPlan returns a sandbox whose runs have the plan, and the command's program if that is not
// nil.
func (s *Sandbox) WithPlan(sh compile.Shape, p *compile.Plan, c *program.Program) *Sandbox {
	other := s.With(s.Spec)
	other.plans = &plans{all: map[compile.Shape]*compile.Plan{sh: p}, files: s.plans.files, resolv: s.plans.resolv}
	if c != nil {
		other.command = &command{made: c}
		other.command.once.Do(func() {})
	}
	return other
}

// ExecPrograms returns the plan and the program of a further command.
func (r *Run) ExecPrograms(set func(*spec.Spec)) (*compile.Plan, *program.Program, error) {
	conf, err := r.spec.Exec(set)
	if err != nil {
		return nil, nil, err
	}
	plan, err := r.plan.Join()
	if err != nil {
		return nil, nil, err
	}
	command, err := r.execs.program(r.engine, conf)
	return plan, command, err
}

// ExecWith executes a further command with other programs than its own.
func (r *Run) ExecWith(ctx context.Context, set func(*spec.Spec), plan *compile.Plan, command *program.Program) (*Run, error) {
	conf, err := r.spec.Exec(set)
	if err != nil {
		return nil, err
	}
	return r.execByPlan(ctx, conf, plan, command)
}
