// Package spec is what the options of a sandbox set: plain data, in groups by the stage of a run
// that reads it, and what can be wrong with it. It looks at nothing of the machine but the number
// of its CPUs, and belongs to all systems.
package spec

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Spec is what the options have set. Every field is a group, which either has a method Equal, by
// which what was made from it is shared, or is read anew by each run.
type Spec struct {
	// Compiled into the programs of a run, except for its command's.
	Root       Root
	Namespaces Namespaces
	Security   Security // into that of the command too

	// Compiled into the program of the command.
	Command Command

	// Needed besides to prepare a run.
	Limits Limits
	Place  Place

	// Read by each run for itself.
	Supervision Supervision
	Streams     Streams
	Function    Function
}

// Place is where a run is prepared, and how many are ahead of their use.
type Place struct {
	Cell     any  // the *cell.Cell that was given, if it is one of NewCell's
	HasCell  bool // one was given, if only a wrong one
	Prepared int  // runs that are kept prepared
	Member   Member
}

// Member is a run's place on a private network.
type Member struct {
	// Of is the *gateway.Network, or the *gateway.Config of one for each run alone; nil if the
	// network was not made by NewNetwork.
	Of   any
	Name string // among the network's runs
	// Limited means that it may reach no other runs but those that Reaches names, each with a
	// comma behind it.
	Limited bool
	Reaches string
	Aliases string // further names, each with a comma behind it
}

// Names returns the names by which others find it.
func (m *Member) Names() []string {
	names := strings.Split(m.Name+","+m.Aliases, ",")
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}

// Limits returns the names of the only runs that it may reach, if there is such a limit.
func (m *Member) Limits() (names []string, limited bool) {
	for name := range strings.SplitSeq(m.Reaches, ",") {
		names = append(names, name)
	}
	return names[:len(names)-1], m.Limited
}

// Supervision is what watches over a run.
type Supervision struct {
	Timeout     time.Duration // 0 for none
	WaitDelay   time.Duration // how long writers may take at the end, 0 for as long as they do
	OutputLimit int64         // bytes, 0 for none
	Publish     []Published
	// Until it is set, others of the run's name are preferred; nil for at once.
	Ready      *atomic.Bool
	StopSignal int           // that the command gets first
	StopGrace  time.Duration // before it is killed, 0 for no signal
	Refused    func(Refusal) // is told what the filter refuses
	// Before, if not nil, is called when all is there but the command, which its error keeps
	// from being started. It may wait until the start's context ends, and may be called again
	// if the cell was lost.
	Before func(context.Context) error
	// Start, if not nil, is called in place of the method Start, with a sandbox that lacks it.
	// It is a func(context.Context, *sandbox.Sandbox) (*sandbox.Process, error).
	Start any
}

// Published is an address of this machine: what comes there, a port of the run gets.
type Published struct {
	Address  string
	Protocol string // "tcp" or "udp"
	Port     int
	Shared   bool // with other runs of the name, which get the connections in turn; TCP alone
}

func (p *Published) check() error {
	host, port, err := net.SplitHostPort(p.Address)
	if err == nil && host != "" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	switch {
	case err != nil:
		return fault.Option("WithPublish", `%q is no address like "127.0.0.1:8080", "[::1]:8080" or ":8080"`, p.Address)
	case p.Protocol != "tcp" && p.Protocol != "udp":
		return fault.Option("WithPublish", `%q: only "/tcp" and "/udp" are known`, p.Address+"/"+p.Protocol)
	case p.Port < 1 || p.Port > 65535:
		return fault.Option("WithPublish", "%d: ports go from 1 to 65535", p.Port)
	}
	return nil
}

// Defaults is what no option has changed.
func Defaults() Spec {
	return Spec{
		Namespaces:  Namespaces{Hostname: "sandbox", UID: 1000, GID: 1000},
		Supervision: Supervision{WaitDelay: 10 * time.Second},
	}
}

// Clone copies what a later option may append to.
func (s Spec) Clone() Spec {
	s.Command.Env = slices.Clip(s.Command.Env)
	s.Command.Rlimits = maps.Clone(s.Command.Rlimits)
	s.Streams.Extra = slices.Clip(s.Streams.Extra)
	s.Supervision.Publish = slices.Clip(s.Supervision.Publish)
	s.Root.Mounts = slices.Clip(s.Root.Mounts)
	s.Security.Capabilities = slices.Clip(s.Security.Capabilities)
	return s
}

// SamePlans reports whether both prepare runs with the same programs.
func (s *Spec) SamePlans(o *Spec) bool {
	return s.Root.samePrepared(&o.Root) && s.Namespaces.Equal(&o.Namespaces) && s.Security.Equal(&o.Security)
}

// SameCommand reports whether both execute their commands with the same program. Of the streams it
// knows nothing but their number, and of the root the files that are made by it.
func (s *Spec) SameCommand(o *Spec) bool {
	return s.Root.sameWithCommand(&o.Root) && s.Command.Equal(&o.Command) && len(s.Streams.Extra) == len(o.Streams.Extra) && (s.Streams.Function == nil) == (o.Streams.Function == nil) && s.Security.Equal(&o.Security)
}

// SamePrepared reports whether the runs prepared for one can serve the other, if they have the same
// plans.
func (s *Spec) SamePrepared(o *Spec) bool {
	return s.Limits.Equal(&o.Limits) && s.Place.Equal(&o.Place)
}

// Equal reports whether runs are prepared in the same place, and as many.
func (p *Place) Equal(o *Place) bool { return *p == *o }

// MaxPrepared is how many runs can be kept prepared.
const MaxPrepared = 1000

// Check returns everything that is wrong, each an error in which errors.As finds one
// *fault.OptionError.
func (s *Spec) Check() []error {
	return slices.Concat(s.Command.check(), s.Supervision.check(), s.checkPrepared(), s.Streams.check(), s.Place.check(), s.checkMember(),
		s.Limits.check(), s.Command.checkRlimits(), s.Namespaces.check(), s.Root.check(), s.Security.Check(), s.checkHostIDs(), s.checkStreams(), s.Function.check())
}

// checkStreams refuses streams where there is no command, or where its terminal takes their place.
func (s *Spec) checkStreams() (errs []error) {
	hold, terminal := s.Command.Hold, s.Command.Terminal.On
	for _, o := range []struct {
		name            string
		given, terminal bool
	}{{"WithStdin", s.Streams.Stdin != nil, true}, {"WithStdout", s.Streams.Stdout != nil, true}, {"WithStderr", s.Streams.Stderr != nil, true},
		{"WithOutputLimit", s.Supervision.OutputLimit != 0, true}, {"WithExtraFiles", len(s.Streams.Extra) > 0, false}, {"WithTerminal", terminal, false}} {
		switch {
		case o.given && hold:
			errs = append(errs, fault.Option(o.name, "with WithHold there is no command that has it: give it to Exec"))
		case o.given && terminal && o.terminal:
			errs = append(errs, fault.Option(o.name, "with WithTerminal all is read from and written to that: leave one of the two out"))
		}
	}
	return errs
}

// CheckAlone refuses, of a run of which nobody gets the Process, what only that can use. by is the
// function that starts it, such as "Run".
func (s *Spec) CheckAlone(by string) (errs []error) {
	for _, o := range []struct {
		name  string
		given bool
		use   string
	}{{"WithHold", s.Command.Hold, "Exec"}, {"WithTerminal", s.Command.Terminal.On, "Terminal"}, {"WithStdinPipe", ofProcess(s.Streams.Stdin), "StdinPipe"},
		{"WithStdoutPipe", ofProcess(s.Streams.Stdout), "StdoutPipe"}, {"WithStderrPipe", ofProcess(s.Streams.Stderr), "StderrPipe"}} {
		if o.given {
			errs = append(errs, fault.Option(o.name, "%s returns no Process that has %s: use Start", by, o.use))
		}
	}
	return errs
}

// ofProcess reports whether the other end of a stream is the Process's.
func ofProcess(stream any) bool {
	_, is := stream.(interface{ OfProcess() })
	return is
}

const maxSignal = 64 // _NSIG of asm-generic/signal.h

func (s *Supervision) check() (errs []error) {
	if s.Timeout < 0 {
		errs = append(errs, fault.Option("WithTimeout", "%v is not a positive duration", s.Timeout))
	}
	if s.WaitDelay < 0 {
		errs = append(errs, fault.Option("WithWaitDelay", "%v is negative: 0 waits without a limit", s.WaitDelay))
	}
	if s.StopGrace < 0 {
		errs = append(errs, fault.Option("WithStopSignal", "%v is negative: 0 kills at once", s.StopGrace))
	}
	if s.StopGrace > 0 && (s.StopSignal < 1 || s.StopSignal > maxSignal) {
		errs = append(errs, fault.Option("WithStopSignal", "signal %d is not between 1 and %d", s.StopSignal, maxSignal))
	}
	if s.OutputLimit < 0 {
		errs = append(errs, fault.Option("WithOutputLimit", "%d is not a positive number of bytes", s.OutputLimit))
	}
	return errs
}

func (s *Spec) checkPrepared() (errs []error) {
	n := s.Place.Prepared
	if n < 0 || n > MaxPrepared {
		errs = append(errs, fault.Option("WithPrepared", "%d is not between 0 and %d", n, MaxPrepared))
	}
	if n > 0 && s.Root.HasUpper {
		errs = append(errs, fault.Option("WithPrepared", "with WithScratchRoot, which one run at a time can have: leave one of the two out"))
	}
	return errs
}

func (p *Place) check() (errs []error) {
	if p.HasCell && p.Cell == nil {
		errs = append(errs, fault.Option("WithCell", "the cell was not made by NewCell: look at the error of that"))
	}
	return errs
}

// checkMember refuses what is no place on a private network, and what takes one.
func (s *Spec) checkMember() (errs []error) {
	m := &s.Place.Member
	for _, p := range s.Supervision.Publish {
		if err := p.check(); err != nil {
			errs = append(errs, err)
		}
	}
	if s.Namespaces.Network != NetworkPrivate {
		if s.Supervision.Publish != nil {
			errs = append(errs, fault.Option("WithPublish", "the run is on no private network: use NewNetwork, and WithNetwork with what its As returns"))
		}
		return errs
	}
	if m.Of == nil {
		errs = append(errs, fault.Option("WithNetwork", "the network was not made by NewNetwork: look at the error of that"))
	}
	if c, ok := m.Of.(interface{ Check() error }); ok {
		if err := c.Check(); err != nil {
			errs = append(errs, err)
		}
	}
	if !IsLabel(m.Name) {
		errs = append(errs, fault.Option("WithNetwork", "%q is no name on a network: 1 to 63 of a-z, 0-9, - and _, the first and last no -", m.Name))
	}
	names, _ := m.Limits()
	for _, name := range names {
		if !IsLabel(name) {
			errs = append(errs, fault.Option("Reaches", "%q is no name on a network", name))
		}
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(m.Aliases, ","), ",") {
		if m.Aliases != "" && !IsName(name) {
			errs = append(errs, fault.Option("Aliases", "%q is no name: 1 to 253 of a-z, 0-9, -, _ and dots between them", name))
		}
	}
	return errs
}

// IsLabel reports whether s can be a name of one label in DNS: RFC 1035, section 2.3.1, RFC 1123,
// and with underscores, which names of services have elsewhere.
func IsLabel(s string) bool {
	return IsName(s) && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && !strings.Contains(s, ".")
}

// IsName reports whether s can be a name in DNS, in lower case.
func IsName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}

// checkHostIDs refuses what only the missing user namespace makes harmless.
func (s *Spec) checkHostIDs() (errs []error) {
	n := &s.Namespaces
	if !n.HostIDs {
		return nil
	}
	bad := func(option, text string) {
		errs = append(errs, fault.Option(option, "%s", text))
	}
	if n.UID == 0 || n.GID == 0 {
		errs = append(errs, n.subject().Wrong("%d:%d: with WithoutUserNamespace that is the host's root, who owns its files: use %s", n.UID, n.GID, n.Image.remedy()))
	}
	if !n.Image.Groups && slices.Contains(n.Groups, 0) {
		bad("WithGroups", "0: with WithoutUserNamespace that is the host's group of root, which may use what is root's: leave it out")
	}
	if len(s.Security.Capabilities) > 0 {
		bad("WithCapabilities", "with WithoutUserNamespace capabilities are the host's, and give power over all of it: leave one of the two out")
	}
	if slices.ContainsFunc(s.Root.Mounts, func(m Mount) bool { scratch, ok := m.Source.(Scratch); return ok && !scratch.ReadOnly }) {
		bad("WithScratch", "with WithoutUserNamespace owners can't be mapped: leave one of the two out, or bind a directory that the run's user owns")
	}
	if s.Root.HasUpper {
		bad("WithScratchRoot", "with WithoutUserNamespace owners can't be mapped: leave one of the two out, or use WithWritableRoot")
	}
	if n.Clocks != 0 {
		bad("WithTimeOffset", "with WithoutUserNamespace that takes CAP_SYS_TIME, with which what sets up a run could set the host's clock: leave one of the two out")
	}
	if s.Security.NoSeccomp {
		bad("WithoutSeccomp", "with WithoutUserNamespace seccomp is what keeps a run from the host's keyrings and the kernel's rarer interfaces: leave one of the two out, or use WithSeccomp")
	}
	return errs
}
