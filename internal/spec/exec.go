package spec

import (
	"errors"
	"slices"

	"github.com/cellkit/sandbox/internal/fault"
)

// Exec returns the description of a further command in a run of s: the command that set makes of
// the run's own, without that one's arguments and streams, and what watches over it. All else is
// the run's. The error joins what is wrong, which includes each option that belongs to the run.
func (s *Spec) Exec(set func(*Spec)) (*Spec, error) {
	have := s.Clone()
	have.Command.Argv, have.Command.Missing, have.Command.Hold, have.Command.Terminal = nil, nil, false, Terminal{}
	have.Streams = Streams{}
	have.Supervision = Supervision{WaitDelay: s.Supervision.WaitDelay, StopSignal: s.Supervision.StopSignal, StopGrace: s.Supervision.StopGrace}
	want, base, bare := have.Clone(), Defaults(), Defaults()
	set(&want)
	set(&bare) // an option may say what the run's said
	var errs []error
	belongs := func(a, b *Spec) changes { return append(runOptions(a, b), a.Limits.changed(&b.Limits)...) }
	for _, name := range both(belongs, &have, &want, &base, &bare) {
		errs = append(errs, fault.Option(name, "it belongs to the run, and can't differ for a command in it: give it to the run"))
	}
	errs = append(errs, want.Command.check()...)
	errs = append(errs, want.Supervision.check()...)
	errs = append(errs, want.Streams.check()...)
	errs = append(errs, want.Command.checkRlimits()...)
	want.Command.Hold = false // that is an error already
	errs = append(errs, want.checkStreams()...)
	want.Limits.CPUTime, want.Root = 0, Root{} // the one is watched, the other set up
	return &want, errors.Join(errs...)
}

// runOptions returns the options that changed what belongs to a run, limits apart.
func runOptions(a, b *Spec) (c changes) {
	c.add("WithHold", a.Command.Hold != b.Command.Hold)
	c.add("function.MessageLimit", a.Function != b.Function)
	c.add("WithPublish", !slices.Equal(a.Supervision.Publish, b.Supervision.Publish))
	c.add("WithPrepared", a.Place.Prepared != b.Place.Prepared)
	c.add("WithCell", a.Place.Cell != b.Place.Cell || a.Place.HasCell != b.Place.HasCell)
	return slices.Concat(c, a.Namespaces.changed(&b.Namespaces), a.Security.changed(&b.Security), a.Root.changed(&b.Root))
}

type changes []string

func (c *changes) add(name string, changed bool) {
	if changed {
		*c = append(*c, name)
	}
}

func (n *Namespaces) changed(o *Namespaces) (c changes) {
	c.add("WithHostname", n.Hostname != o.Hostname)
	c.add("WithUser", n.UID != o.UID || n.GID != o.GID || n.Image != o.Image)
	c.add("WithGroups", !slices.Equal(n.Groups, o.Groups))
	c.add("WithNetwork", n.Network != o.Network)
	c.add("WithoutUserNamespace", n.HostIDs != o.HostIDs)
	c.add("WithTimeOffset", n.Clocks != o.Clocks)
	return c
}

func (s *Security) changed(o *Security) (c changes) {
	c.add("WithCapabilities", !slices.Equal(s.Capabilities, o.Capabilities))
	c.add("WithSeccomp", s.Seccomp != o.Seccomp)
	c.add("WithoutSeccomp", s.NoSeccomp != o.NoSeccomp)
	c.add("WithSetID", s.SetID != o.SetID)
	c.add("WithRefusals", s.Notify != o.Notify)
	return c
}

func (l *Limits) changed(o *Limits) (c changes) {
	c.add("WithMemory", l.Memory != o.Memory)
	c.add("WithSwap", l.Swap != o.Swap)
	c.add("WithPIDs", l.PIDs != o.PIDs)
	c.add("WithCPUs", l.CPUs != o.CPUs)
	c.add("WithCPUWeight", l.CPUWeight != o.CPUWeight)
	c.add("WithCPUSet", (l.CPUSet == nil) != (o.CPUSet == nil) || l.CPUSet != nil && *l.CPUSet != *o.CPUSet)
	c.add("WithCPUTime", l.CPUTime != o.CPUTime)
	c.add("WithIO", !slices.Equal(l.IO, o.IO))
	c.add("WithCgroupParent", l.Parent != o.Parent)
	return c
}

func (r *Root) changed(o *Root) (c changes) {
	c.add("WithRootfs", !r.Rootfs.equal(&o.Rootfs) || r.Image != o.Image || !slices.Equal(r.Dirs, o.Dirs))
	c.add("WithWritableRoot", !o.HasUpper && (r.Writable != o.Writable || r.HasUpper))
	c.add("WithScratchRoot", o.HasUpper && (r.Writable != o.Writable || !r.HasUpper || r.Upper != o.Upper))
	for _, m := range o.Mounts {
		if !slices.Contains(r.Mounts, m) {
			c.add(m.Source.Option(), true)
		}
	}
	return c
}
