package spec

import (
	"slices"

	"github.com/cellkit/sandbox/internal/fault"
)

// CheckGuest returns what of the options a run in a cell of gVisor can't have: what takes the
// host's kernel, or a descriptor that its own kernel does not take.
func (s *Spec) CheckGuest() []error {
	errs := append(s.CheckGuestCommand(), noneInGuest(
		maybe{"WithHold", s.Command.Hold}, maybe{"WithPrepared", s.Place.Prepared > 0},
		maybe{"WithNetwork", s.Namespaces.Network != NetworkNone && s.Namespaces.Network != NetworkNew}, maybe{"WithTimeOffset", s.Namespaces.Clocks != 0},
		maybe{"WithCapabilities", len(s.Security.Capabilities) > 0}, maybe{"WithSeccomp", s.Security.Seccomp != nil},
		maybe{"WithRefusals", s.Security.Notify}, maybe{"WithScratchRoot", s.Root.HasUpper},
	)...)
	if s.Limits.PIDs != 0 {
		errs = append(errs, fault.Option("WithPIDs", "in a cell of runsc the host sees gVisor's threads, not the run's processes: leave it out; WithMemory limits those"))
	}
	if s.Streams.Function != nil || s.Root.Rootfs.Parts == OwnProgram && s.Root.Rootfs.Layers == nil {
		errs = append(errs, fault.Option("WithCell", "functions can't be called in a cell of runsc: use another cell"))
	}
	for _, m := range s.Root.Mounts {
		switch source := m.Source.(type) {
		case Scratch, FS:
			errs = append(errs, fault.Option(m.Source.Option(), noInGuest))
		case Bind:
			if !source.ReadOnly && (s.Namespaces.UID == 0 || s.Namespaces.GID == 0 || slices.Contains(s.Namespaces.Groups, 0)) {
				errs = append(errs, fault.Option("WithBind", "%s: in a cell of runsc, the files that a run of user or group 0 makes there are the host's root's: use WithUser, or WithReadOnlyBind", m.Dst))
			}
		}
	}
	return errs
}

// CheckGuestCommand returns what of the options a further command in such a run can't have.
func (s *Spec) CheckGuestCommand() []error {
	return noneInGuest(
		maybe{"WithTerminal", s.Command.Terminal.On}, maybe{"WithRlimit", len(s.Command.Rlimits) > 0}, maybe{"WithExtraFiles", len(s.Streams.Extra) > 0},
	)
}

// noInGuest is why.
const noInGuest = "a run in a cell of runsc, which has a kernel of its own, can't have it: leave it out, or use another cell"

// maybe is an option, and whether it was given.
type maybe struct {
	option string
	given  bool
}

func noneInGuest(options ...maybe) (errs []error) {
	for _, o := range options {
		if o.given {
			errs = append(errs, fault.Option(o.option, noInGuest))
		}
	}
	return errs
}
