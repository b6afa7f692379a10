//go:build linux

package seccomp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// policy is a validated profile: what to do about each system call number of one architecture.
type policy struct {
	verdicts map[uint32]verdict // calls with rules
	other    uint32             // calls in the table without a rule
	unknown  uint32             // calls that are not in the table
}

// verdict is the decision about one system call: the action of the first rule that matches, or
// otherwise. Actions are return values of the filter, such as SECCOMP_RET_ERRNO|EPERM.
type verdict struct {
	rules     []rule
	otherwise uint32
}

// rule takes its action if all conditions hold.
type rule struct {
	conditions []specs.LinuxSeccompArg
	action     uint32
}

func newPolicy(p *specs.LinuxSeccomp, a *architecture) (*policy, error) {
	if p == nil {
		return nil, errors.New("is nil")
	}
	if p.ListenerPath != "" {
		return nil, fmt.Errorf("listenerPath %q: %w", p.ListenerPath, errNotify())
	}
	if len(p.Architectures) > 0 && !slices.Contains(p.Architectures, a.oci) {
		return nil, fmt.Errorf("architectures %v do not include %s: add it", p.Architectures, a.oci)
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	byCall := map[uint32][]rule{}
	for i := range p.Syscalls {
		if err := addRule(byCall, &p.Syscalls[i], a); err != nil {
			return nil, fmt.Errorf("rule %d (%s of %s): %w", i, p.Syscalls[i].Action, abbreviate(p.Syscalls[i].Names), err)
		}
	}
	pol := &policy{verdicts: make(map[uint32]verdict, len(byCall)), other: fallback, unknown: retENOSYS}
	if letsThrough(fallback) {
		pol.unknown = fallback
	}
	for nr, rules := range byCall {
		pol.verdicts[nr] = newVerdict(rules, fallback)
	}
	return pol, nil
}

// addRule validates one rule of a profile and adds it to the numbers of its system calls.
func addRule(byCall map[uint32][]rule, s *specs.LinuxSyscall, a *architecture) error {
	if len(s.Names) == 0 {
		return errors.New("has no names")
	}
	act, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return err
	}
	for _, arg := range s.Args {
		if err := checkArg(arg); err != nil {
			return err
		}
	}
	alternatives := split(s.Args)
	for _, name := range s.Names {
		nr, ok := a.numbers[name]
		if !ok {
			if s.Action != specs.ActAllow && !knownSomewhere(name) {
				return fmt.Errorf("unknown system call %q: correct or remove it", name)
			}
			continue
		}
		for _, conditions := range alternatives {
			byCall[nr] = append(byCall[nr], rule{conditions, act})
		}
	}
	return nil
}

// split returns the conjunctions that a rule's conditions stand for: one, or, if an argument occurs
// more than once, one for each condition. runc and crun read profiles in the same way, because
// libseccomp takes an argument only once.
func split(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	var seen [maxArgs]bool
	for _, arg := range args {
		if seen[arg.Index] {
			single := make([][]specs.LinuxSeccompArg, len(args))
			for i := range args {
				single[i] = args[i : i+1]
			}
			return single
		}
		seen[arg.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}

// newVerdict sorts the rules of one system call by strictness and drops those that can't change the
// result.
func newVerdict(rules []rule, fallback uint32) verdict {
	slices.SortStableFunc(rules, func(x, y rule) int { return cmp.Compare(rank(x.action), rank(y.action)) })
	v := verdict{rules: rules, otherwise: fallback}
	if i := slices.IndexFunc(rules, func(r rule) bool { return len(r.conditions) == 0 }); i >= 0 {
		v = verdict{rules: rules[:i], otherwise: rules[i].action}
	}
	for n := len(v.rules); n > 0 && v.rules[n-1].action == v.otherwise; n-- {
		v.rules = v.rules[:n-1]
	}
	return v
}

// maxArgs is the number of arguments in struct seccomp_data.
const maxArgs = 6

func checkArg(arg specs.LinuxSeccompArg) error {
	if arg.Index >= maxArgs {
		return fmt.Errorf("argument index %d: a system call has %d", arg.Index, maxArgs)
	}
	switch arg.Op {
	case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual:
		return nil
	}
	return fmt.Errorf("argument %d: unknown operator %q", arg.Index, arg.Op)
}

const retENOSYS = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// action returns the filter's return value for an action of a profile.
func action(act specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch act {
	case specs.ActErrno:
		// The kernel silently lowers anything above MAX_ERRNO, 4095 (kernel/seccomp.c).
		return withData(unix.SECCOMP_RET_ERRNO, errno, 4095)
	case specs.ActTrace:
		return withData(unix.SECCOMP_RET_TRACE, errno, unix.SECCOMP_RET_DATA)
	case specs.ActNotify:
		return 0, errNotify()
	}
	ret, ok := map[specs.LinuxSeccompAction]uint32{
		specs.ActKill:        unix.SECCOMP_RET_KILL_THREAD,
		specs.ActKillThread:  unix.SECCOMP_RET_KILL_THREAD,
		specs.ActKillProcess: unix.SECCOMP_RET_KILL_PROCESS,
		specs.ActTrap:        unix.SECCOMP_RET_TRAP,
		specs.ActLog:         unix.SECCOMP_RET_LOG,
		specs.ActAllow:       unix.SECCOMP_RET_ALLOW,
	}[act]
	if !ok {
		return 0, fmt.Errorf("unknown action %q", act)
	}
	if errno != nil {
		// The specification asks for this error.
		return 0, fmt.Errorf("action %s takes no errno, but has %d", act, *errno)
	}
	return ret, nil
}

// withData adds the errno of a profile to an action, EPERM if it has none, as the specification
// says.
func withData(ret uint32, errno *uint, limit uint) (uint32, error) {
	if errno == nil {
		return ret | uint32(unix.EPERM), nil
	}
	if *errno > limit {
		return 0, fmt.Errorf("errno %d is above %d", *errno, limit)
	}
	return ret | uint32(*errno), nil
}

// rank orders actions from strict to lax exactly as the kernel does: as signed numbers, without the
// data (ACTION_ONLY in kernel/seccomp.c). Only KILL_PROCESS is negative.
func rank(ret uint32) int32 { return int32(ret & unix.SECCOMP_RET_ACTION_FULL) }

// letsThrough reports whether an action by itself runs the call. A tracer decides for itself, also
// about calls that are unknown here.
func letsThrough(ret uint32) bool { return rank(ret) >= unix.SECCOMP_RET_TRACE }

func abbreviate(names []string) string {
	switch len(names) {
	case 0:
		return "nothing"
	case 1:
		return names[0]
	}
	return fmt.Sprintf("%s and %d more", names[0], len(names)-1)
}
