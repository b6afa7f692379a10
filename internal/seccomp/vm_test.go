//go:build linux

package seccomp

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	auditAMD64 = unix.AUDIT_ARCH_X86_64
	auditARM64 = unix.AUDIT_ARCH_AARCH64
	auditI386  = unix.AUDIT_ARCH_I386
	auditARM   = unix.AUDIT_ARCH_ARM

	allow      = uint32(unix.SECCOMP_RET_ALLOW)
	errno      = uint32(unix.SECCOMP_RET_ERRNO)
	eperm      = errno | uint32(unix.EPERM)
	enosys     = errno | uint32(unix.ENOSYS)
	highestNow = 471 // rseq_slice_yield
)

// call is struct seccomp_data without the instruction pointer.
type call struct {
	nr    uint32
	audit uint32
	args  [6]uint64
}

// machine runs a filter the way the kernel does.
type machine struct {
	filter *Filter
	vm     *bpf.VM
}

func newMachine(t testing.TB, f *Filter) machine {
	t.Helper()
	raw := make([]bpf.RawInstruction, f.Len())
	for i, ins := range f.code {
		raw[i] = bpf.RawInstruction{Op: ins.Code, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	program, ok := bpf.Disassemble(raw)
	require.True(t, ok, "every instruction is known")
	vm, err := bpf.NewVM(program)
	require.NoError(t, err)
	return machine{f, vm}
}

// run returns the filter's verdict. The VM loads words in network order where seccomp uses the
// machine's own, so the words of the buffer are big-endian, in the order of the little-endian
// struct: the low half first.
func (m machine) run(t testing.TB, c call) uint32 {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, c.nr)
	b = binary.BigEndian.AppendUint32(b, c.audit)
	b = append(b, make([]byte, 8)...)
	for _, arg := range c.args {
		b = binary.BigEndian.AppendUint32(b, uint32(arg))
		b = binary.BigEndian.AppendUint32(b, uint32(arg>>32))
	}
	ret, err := m.vm.Run(b)
	require.NoError(t, err)
	if decided := m.filter.Decide(Call{Number: c.nr, Arch: c.audit, Args: c.args}); decided != uint32(ret) {
		t.Fatalf("a listener decides %#x, the filter returns %#x", decided, ret)
	}
	return uint32(ret)
}

func compile(t testing.TB, p *specs.LinuxSeccomp, goarch string) machine {
	t.Helper()
	f, err := Compile(p, goarch)
	require.NoError(t, err)
	return newMachine(t, f)
}

// on makes a call of a system call by name, with up to six arguments.
func on(t testing.TB, goarch, name string, args ...uint64) call {
	t.Helper()
	a, err := archFor(goarch)
	require.NoError(t, err)
	nr, ok := a.numbers[name]
	require.True(t, ok, "%s on %s", name, goarch)
	c := call{nr: nr, audit: a.audit}
	copy(c.args[:], args)
	return c
}

// evaluate is the meaning of a profile, written down a second time, for one architecture and
// independent of how a filter works.
func evaluate(t testing.TB, p *specs.LinuxSeccomp, goarch string, c call) uint32 {
	t.Helper()
	a, err := archFor(goarch)
	require.NoError(t, err)
	if c.audit != a.audit || goarch == "amd64" && c.nr >= x32Bit {
		return enosys
	}
	name, known := "", false
	for n, nr := range a.numbers {
		if nr == c.nr {
			name, known = n, true
		}
	}
	fallback := ret(p.DefaultAction, p.DefaultErrnoRet)
	if !known {
		switch p.DefaultAction {
		case specs.ActAllow, specs.ActLog, specs.ActTrace:
			return fallback
		}
		return enosys
	}
	strictness := []specs.LinuxSeccompAction{
		specs.ActKillProcess, specs.ActKill, specs.ActKillThread, specs.ActTrap,
		specs.ActErrno, specs.ActTrace, specs.ActLog, specs.ActAllow,
	}
	best, result := len(strictness), fallback
	for _, s := range p.Syscalls {
		level := slices.Index(strictness, s.Action)
		if level == 2 {
			level = 1 // two names for one action
		}
		if level < best && slices.Contains(s.Names, name) && matches(s.Args, c.args) {
			best, result = level, ret(s.Action, s.ErrnoRet)
		}
	}
	return result
}

func ret(act specs.LinuxSeccompAction, data *uint) uint32 {
	n := uint32(unix.EPERM)
	if data != nil {
		n = uint32(*data)
	}
	return map[specs.LinuxSeccompAction]uint32{
		specs.ActKillProcess: 0x80000000,
		specs.ActKill:        0,
		specs.ActKillThread:  0,
		specs.ActTrap:        0x30000,
		specs.ActErrno:       0x50000 | n,
		specs.ActTrace:       0x7ff00000 | n,
		specs.ActLog:         0x7ffc0000,
		specs.ActAllow:       0x7fff0000,
	}[act]
}

func matches(conditions []specs.LinuxSeccompArg, args [6]uint64) bool {
	var count [6]int
	held := 0
	for _, c := range conditions {
		count[c.Index]++
		if holds(c, args[c.Index]) {
			held++
		}
	}
	if slices.Max(count[:]) > 1 {
		return held > 0
	}
	return held == len(conditions)
}

func holds(c specs.LinuxSeccompArg, arg uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return arg == c.Value
	case specs.OpNotEqual:
		return arg != c.Value
	case specs.OpLessThan:
		return arg < c.Value
	case specs.OpLessEqual:
		return arg <= c.Value
	case specs.OpGreaterThan:
		return arg > c.Value
	case specs.OpGreaterEqual:
		return arg >= c.Value
	case specs.OpMaskedEqual:
		return arg&c.Value == c.ValueTwo&c.Value
	}
	panic("unknown operator")
}
