package spec

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/fault"
)

// A run in a cell of gVisor refuses what it can't have by the option's name, and nothing else.
func TestCheckGuest(t *testing.T) {
	for _, test := range []struct {
		option string // "" for what it can have
		set    func(*Spec)
	}{
		{"", func(*Spec) {}},
		{"", func(s *Spec) { s.Limits = Limits{Memory: 1 << 30, CPUs: 1, CPUTime: time.Second} }},
		{"", func(s *Spec) { s.Root.Writable = 1 << 20; s.Root.Rootfs.Layers = []string{"/a", "/b"} }},
		{"", func(s *Spec) {
			s.Root.Mounts = []Mount{{"/a", Bind{Path: "/a"}}, {"/b", Tmpfs{1}}, {"/c", File{}}}
		}},
		{"", func(s *Spec) {
			s.Namespaces.UID = 0
			s.Root.Mounts = []Mount{{"/a", Bind{Path: "/a", ReadOnly: true}}}
		}},
		{"", func(s *Spec) { s.Namespaces.Network = NetworkNew }},
		{"", func(s *Spec) { s.Security.SetID = true }},
		{"", func(s *Spec) { s.Supervision.StopGrace = 1 }},
		{"WithBind", func(s *Spec) { s.Namespaces.UID = 0; s.Root.Mounts = []Mount{{"/a", Bind{Path: "/a"}}} }},
		{"WithBind", func(s *Spec) { s.Namespaces.Groups = []int{5, 0}; s.Root.Mounts = []Mount{{"/a", Bind{Path: "/a"}}} }},
		{"WithScratch", func(s *Spec) { s.Root.Mounts = []Mount{{"/a", Scratch{}}} }},
		{"WithFS", func(s *Spec) { s.Root.Mounts = []Mount{{"/a", FS{}}} }},
		{"WithScratchRoot", func(s *Spec) { s.Root.HasUpper = true }},
		{"WithCell", func(s *Spec) { s.Streams.Function = &FunctionFiles{} }},
		{"WithPIDs", func(s *Spec) { s.Limits.PIDs = 5 }},
		{"WithHold", func(s *Spec) { s.Command.Hold = true }},
		{"WithTerminal", func(s *Spec) { s.Command.Terminal.On = true }},
		{"WithRlimit", func(s *Spec) { s.Command.Rlimits = map[string]Rlimit{"core": {}} }},
		{"WithExtraFiles", func(s *Spec) { s.Streams.Extra = append(s.Streams.Extra, nil) }},
		{"WithPrepared", func(s *Spec) { s.Place.Prepared = 1 }},
		{"WithNetwork", func(s *Spec) { s.Namespaces.Network = NetworkPrivate }},
		{"WithTimeOffset", func(s *Spec) { s.Namespaces.Clocks = 1 }},
		{"WithCapabilities", func(s *Spec) { s.Security.Capabilities = []string{"CAP_KILL"} }},
		{"WithSeccomp", func(s *Spec) { s.Security.Seccomp = &specs.LinuxSeccomp{} }},
		{"WithRefusals", func(s *Spec) { s.Security.Notify = true }},
	} {
		s := Defaults()
		test.set(&s)
		errs := s.CheckGuest()
		if test.option == "" {
			require.Empty(t, errs)
			continue
		}
		require.Len(t, errs, 1, test.option)
		var wrong *fault.OptionError
		require.True(t, errors.As(errs[0], &wrong))
		require.Equal(t, test.option, wrong.Option)
		command := slices.Contains([]string{"WithTerminal", "WithRlimit", "WithExtraFiles"}, test.option)
		require.Equal(t, command, len(s.CheckGuestCommand()) == 1, test.option)
	}
}
