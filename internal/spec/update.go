package spec

import (
	"errors"
	"maps"
	"slices"

	"github.com/cellkit/sandbox/internal/fault"
)

// Update returns what s becomes by set, which may change the limits of a live run and its timeout,
// or, for a further command, the timeout alone. What set adds to IO follows what was there. The
// error joins what is wrong, which includes each option that is none of these.
func (s *Spec) Update(set func(*Spec), further bool) (*Spec, error) {
	want, base, bare := s.Clone(), Defaults(), Defaults()
	set(&want)
	set(&bare) // an option may say what the run's said
	var errs []error
	for _, name := range both(fixedOptions, s, &want, &base, &bare) {
		errs = append(errs, fault.Option(name, "it is no limit that can change while a run lives: give it to New or With"))
	}
	if further {
		for _, name := range both(limitOptions, s, &want, &base, &bare) {
			errs = append(errs, fault.Option(name, "it belongs to the run, of which this is a command: call Update of that"))
		}
		return &want, errors.Join(append(errs, want.Supervision.check()...)...)
	}
	errs = append(errs, want.Limits.check()...)
	errs = append(errs, want.Supervision.check()...)
	if p := want.Limits.Pool; p != nil && p.Memory != 0 && want.Limits.Memory > p.Memory && want.Limits.Memory != s.Limits.Memory {
		errs = append(errs, fault.Option("WithMemory", "%d is more than the %d that pool.Memory gives to all runs together", want.Limits.Memory, p.Memory))
	}
	return &want, errors.Join(errs...)
}

// both returns the options by which b differs from a, or bare from base, each once.
func both(differ func(a, b *Spec) changes, a, b, base, bare *Spec) []string {
	return slices.Compact(slices.Sorted(slices.Values(append(differ(a, b), differ(base, bare)...))))
}

func limitOptions(a, b *Spec) changes { return a.Limits.changed(&b.Limits) }

// fixedOptions returns the options that changed what a live run keeps.
func fixedOptions(a, b *Spec) (c changes) {
	x, y := &a.Command, &b.Command
	c.add("WithCommand", !slices.Equal(x.Argv, y.Argv) || x.Missing != y.Missing)
	c.add("WithEnv", !slices.Equal(x.Env, y.Env))
	c.add("WithDir", x.Dir != y.Dir || x.DirOf != y.DirOf)
	c.add("WithRlimit", !maps.Equal(x.Rlimits, y.Rlimits))
	c.add("WithTerminal", x.Terminal != y.Terminal)
	c.add("WithCgroupParent", a.Limits.Parent != b.Limits.Parent)
	// Streams may have values that can't be compared. The defaults have none.
	s, t := &a.Streams, &b.Streams
	c.add("WithStdin", s.Stdin == nil && t.Stdin != nil)
	c.add("WithStdout", s.Stdout == nil && t.Stdout != nil)
	c.add("WithStderr", s.Stderr == nil && t.Stderr != nil)
	c.add("WithExtraFiles", len(s.Extra) != len(t.Extra))
	v, w := &a.Supervision, &b.Supervision
	c.add("WithWaitDelay", v.WaitDelay != w.WaitDelay)
	c.add("WithOutputLimit", v.OutputLimit != w.OutputLimit)
	c.add("WithStopSignal", v.StopSignal != w.StopSignal || v.StopGrace != w.StopGrace)
	return append(c, runOptions(a, b)...)
}
