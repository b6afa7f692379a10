//go:build linux

package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var goarches = []string{"amd64", "arm64"}

func ptr(n uint) *uint { return &n }

// profile refuses everything that its rules don't allow.
func profile(rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules}
}

func when(act specs.LinuxSeccompAction, name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: act, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, values ...uint64) specs.LinuxSeccompArg {
	a := specs.LinuxSeccompArg{Index: index, Op: op, Value: values[0]}
	if len(values) > 1 {
		a.ValueTwo = values[1]
	}
	return a
}

func TestOperators(t *testing.T) {
	const v = 0x1_8000_0000
	tests := []struct {
		op       specs.LinuxSeccompOperator
		values   []uint64
		yes, not []uint64
	}{
		{specs.OpEqualTo, []uint64{v}, []uint64{v}, []uint64{0, v - 1, v + 1, 0x8000_0000, 1 << 32, 2<<32 | 0x8000_0000}},
		{specs.OpNotEqual, []uint64{v}, []uint64{0, v - 1, v + 1, 0x8000_0000, 1 << 32, 2<<32 | 0x8000_0000}, []uint64{v}},
		{specs.OpLessThan, []uint64{v}, []uint64{0, v - 1, 0xffff_ffff, 1 << 32}, []uint64{v, v + 1, 2 << 32, ^uint64(0)}},
		{specs.OpLessEqual, []uint64{v}, []uint64{0, v - 1, v, 0xffff_ffff}, []uint64{v + 1, 2 << 32, ^uint64(0)}},
		{specs.OpGreaterThan, []uint64{v}, []uint64{v + 1, 2 << 32, ^uint64(0)}, []uint64{0, v - 1, v, 0xffff_ffff}},
		{specs.OpGreaterEqual, []uint64{v}, []uint64{v, v + 1, 2 << 32, ^uint64(0)}, []uint64{0, v - 1, 0xffff_ffff}},
		{specs.OpMaskedEqual, []uint64{0xf_0000_000f, 0x5_0000_0003}, []uint64{0x5_0000_0003, 0x15_1234_5673}, []uint64{0, 3, 0x5_0000_0000, 0x5_0000_0007, 0x4_0000_0003}},
		{specs.OpMaskedEqual, []uint64{0xff, 0x112}, []uint64{0x12, 0xff12}, []uint64{0x112 + 1, 0x11}}, // stray bits
		{specs.OpMaskedEqual, []uint64{0xffff_ffff, 7}, []uint64{7, 1<<63 | 7}, []uint64{8, 7 << 32}},   // low half
		{specs.OpMaskedEqual, []uint64{0xffff_ffff << 32, 7 << 32}, []uint64{7 << 32, 7<<32 | 9}, []uint64{7, 6 << 32}},
		{specs.OpMaskedEqual, []uint64{0, 0}, []uint64{0, ^uint64(0)}, nil},
	}
	for _, goarch := range goarches {
		for _, test := range tests {
			for index := range uint(6) {
				m := compile(t, profile(when(specs.ActAllow, "read", arg(index, test.op, test.values...))), goarch)
				check := func(value uint64, want uint32) {
					c := on(t, goarch, "read")
					c.args[index] = value
					assert.Equal(t, want, m.run(t, c), "%s: argument %d: %#x %s %#x", goarch, index, value, test.op, test.values)
				}
				for _, value := range test.yes {
					check(value, allow)
				}
				for _, value := range test.not {
					check(value, eperm)
				}
			}
		}
	}
}

func TestActions(t *testing.T) {
	tests := []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActAllow, nil, allow},
		{specs.ActErrno, nil, eperm},
		{specs.ActErrno, ptr(uint(unix.EACCES)), errno | uint32(unix.EACCES)},
		{specs.ActErrno, ptr(0), errno},
		{specs.ActErrno, ptr(4095), errno | 4095},
		{specs.ActKill, nil, unix.SECCOMP_RET_KILL_THREAD},
		{specs.ActKillThread, nil, unix.SECCOMP_RET_KILL_THREAD},
		{specs.ActKillProcess, nil, unix.SECCOMP_RET_KILL_PROCESS},
		{specs.ActTrap, nil, unix.SECCOMP_RET_TRAP},
		{specs.ActLog, nil, unix.SECCOMP_RET_LOG},
		{specs.ActTrace, nil, unix.SECCOMP_RET_TRACE | uint32(unix.EPERM)},
		{specs.ActTrace, ptr(77), unix.SECCOMP_RET_TRACE | 77},
	}
	for _, goarch := range goarches {
		for _, test := range tests {
			rule := when(test.action, "read")
			rule.ErrnoRet = test.errno
			m := compile(t, profile(rule), goarch)
			assert.Equal(t, test.want, m.run(t, on(t, goarch, "read")), "rule %s", test.action)
			assert.Equal(t, eperm, m.run(t, on(t, goarch, "write")))

			m = compile(t, &specs.LinuxSeccomp{DefaultAction: test.action, DefaultErrnoRet: test.errno}, goarch)
			assert.Equal(t, test.want, m.run(t, on(t, goarch, "read")), "default %s", test.action)
		}
	}
}

func TestPrecedence(t *testing.T) {
	zero := arg(0, specs.OpEqualTo, 0)
	small := arg(0, specs.OpLessThan, 10)
	two := arg(1, specs.OpEqualTo, 2)
	eacces := when(specs.ActErrno, "read", small)
	eacces.ErrnoRet = ptr(uint(unix.EACCES))
	einval := when(specs.ActErrno, "read", zero)
	einval.ErrnoRet = ptr(uint(unix.EINVAL))
	tests := []struct {
		name  string
		rules []specs.LinuxSyscall
		args  []uint64
		want  uint32
	}{
		{"conditions of a rule all hold", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero, two)}, []uint64{0, 2}, allow},
		{"conditions of a rule hold in part", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero, two)}, []uint64{0, 3}, eperm},
		{"one of two rules", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero), when(specs.ActAllow, "read", two)}, []uint64{9, 2}, allow},
		{"none of two rules", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero), when(specs.ActAllow, "read", two)}, []uint64{9, 9}, eperm},
		{"same argument twice means either", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero, arg(0, specs.OpEqualTo, 5))}, []uint64{5}, allow},
		{"refusal beside an allowed call", []specs.LinuxSyscall{when(specs.ActAllow, "read"), eacces}, []uint64{3}, errno | uint32(unix.EACCES)},
		{"the rest of that call", []specs.LinuxSyscall{when(specs.ActAllow, "read"), eacces}, []uint64{10}, allow},
		{"in the other order", []specs.LinuxSyscall{eacces, when(specs.ActAllow, "read")}, []uint64{3}, errno | uint32(unix.EACCES)},
		{"refusal equal to the default", []specs.LinuxSyscall{when(specs.ActAllow, "read"), when(specs.ActErrno, "read", zero)}, []uint64{0}, eperm},
		{"refusal of the whole call", []specs.LinuxSyscall{when(specs.ActAllow, "read", zero), when(specs.ActKill, "read")}, []uint64{0}, unix.SECCOMP_RET_KILL_THREAD},
		{"kill before errno", []specs.LinuxSyscall{einval, when(specs.ActKillProcess, "read", small)}, []uint64{0}, unix.SECCOMP_RET_KILL_PROCESS},
		{"errno before log", []specs.LinuxSyscall{when(specs.ActLog, "read"), einval}, []uint64{0}, errno | uint32(unix.EINVAL)},
		{"first of two errnos", []specs.LinuxSyscall{eacces, einval}, []uint64{0}, errno | uint32(unix.EACCES)},
		{"first of two errnos, turned round", []specs.LinuxSyscall{einval, eacces}, []uint64{0}, errno | uint32(unix.EINVAL)},
	}
	for _, goarch := range goarches {
		for _, test := range tests {
			t.Run(goarch+"/"+test.name, func(t *testing.T) {
				m := compile(t, profile(test.rules...), goarch)
				assert.Equal(t, test.want, m.run(t, on(t, goarch, "read", test.args...)))
			})
		}
	}
}

func TestConventions(t *testing.T) {
	everything := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	amd64, arm64 := compile(t, everything, "amd64"), compile(t, everything, "arm64")
	assert.Equal(t, allow, amd64.run(t, call{nr: 0, audit: auditAMD64}))
	assert.Equal(t, allow, arm64.run(t, call{nr: 0, audit: auditARM64}))
	for _, audit := range []uint32{auditI386, auditARM, auditARM64, 0, ^uint32(0)} {
		assert.Equal(t, enosys, amd64.run(t, call{nr: 0, audit: audit}), "amd64 filter, convention %#x", audit)
	}
	for _, audit := range []uint32{auditI386, auditARM, auditAMD64, 0, ^uint32(0)} {
		assert.Equal(t, enosys, arm64.run(t, call{nr: 0, audit: audit}), "arm64 filter, convention %#x", audit)
	}
	for _, nr := range []uint32{x32Bit, x32Bit | 1, x32Bit | 520, ^uint32(0)} {
		assert.Equal(t, enosys, amd64.run(t, call{nr: nr, audit: auditAMD64}), "x32 call %#x", nr)
	}
}

func TestUnknownNumbers(t *testing.T) {
	for goarch, audit := range map[string]uint32{"amd64": auditAMD64, "arm64": auditARM64} {
		for _, nr := range []uint32{400, highestNow + 1, 9999, x32Bit - 1} {
			c := call{nr: nr, audit: audit}
			assert.Equal(t, enosys, compile(t, profile(), goarch).run(t, c), "%d", nr)
			assert.Equal(t, enosys, compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActKill}, goarch).run(t, c), "%d", nr)
			assert.Equal(t, allow, compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, goarch).run(t, c), "%d", nr)
		}
		assert.Equal(t, eperm, compile(t, profile(), goarch).run(t, call{nr: highestNow, audit: audit}))
	}
}

func TestNames(t *testing.T) {
	for _, goarch := range goarches {
		for _, name := range []string{"no_such_call", "arm_sync_file_range", "s390_runtime_instr", "waitpid", "umount"} {
			_, err := Compile(profile(when(specs.ActAllow, name)), goarch)
			assert.NoError(t, err, "allowing %s is void on %s", name, goarch)
		}
		for _, name := range []string{"arm_sync_file_range", "s390_runtime_instr", "waitpid", "umount"} {
			_, err := Compile(profile(when(specs.ActKill, name)), goarch)
			assert.NoError(t, err, "%s can't be called on %s", name, goarch)
		}
	}
}

func TestInexpressible(t *testing.T) {
	with := func(change func(*specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		p := profile(when(specs.ActAllow, "read"))
		change(p)
		return p
	}
	errnoOf := func(n uint, act specs.LinuxSeccompAction) specs.LinuxSyscall {
		rule := when(act, "read")
		rule.ErrnoRet = &n
		return rule
	}
	tests := []struct {
		name        string
		p           *specs.LinuxSeccomp
		want        string
		unsupported bool
	}{
		{"nil", nil, "is nil", false},
		{"no default", &specs.LinuxSeccomp{}, `defaultAction: unknown action ""`, false},
		{"foreign architectures", with(func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{specs.ArchS390X} }), "do not include SCMP_ARCH_X86_64", false},
		{"listener", with(func(p *specs.LinuxSeccomp) { p.ListenerPath = "/run/x" }), "listenerPath", true},
		{"notify rule", profile(when(specs.ActNotify, "read")), "SCMP_ACT_NOTIFY", true},
		{"notify default", &specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "SCMP_ACT_NOTIFY", true},
		{"flag of a listener", with(func(p *specs.LinuxSeccomp) {
			p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
		}), "needs a listener", true},
		{"unknown flag", with(func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{"X"} }), `unknown flag "X"`, false},
		{"unknown action", profile(when("SCMP_ACT_X", "read")), `rule 0 (SCMP_ACT_X of read): unknown action`, false},
		{"unknown operator", profile(when(specs.ActAllow, "read", arg(0, "SCMP_CMP_X", 0))), "unknown operator", false},
		{"seventh argument", profile(when(specs.ActAllow, "read", arg(6, specs.OpEqualTo, 0))), "argument index 6", false},
		{"no names", profile(specs.LinuxSyscall{Action: specs.ActAllow}), "no names", false},
		{"misspelt refusal", profile(when(specs.ActErrno, "raed")), `unknown system call "raed"`, false},
		{"misspelt log", profile(when(specs.ActLog, "raed")), `unknown system call "raed"`, false},
		{"errno too large", profile(errnoOf(4096, specs.ActErrno)), "above 4095", false},
		{"trace data too large", profile(errnoOf(65536, specs.ActTrace)), "above 65535", false},
		{"errno of an action without", profile(errnoOf(1, specs.ActKill)), "takes no errno", false},
		{"errno of allow", profile(errnoOf(1, specs.ActAllow)), "takes no errno", false},
		{"default errno of an action without", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: ptr(1)}, "takes no errno", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, err := Compile(test.p, "amd64")
			require.ErrorContains(t, err, test.want)
			assert.Nil(t, f)
			assert.Equal(t, test.unsupported, errors.Is(err, errors.ErrUnsupported))
		})
	}
	_, err := Compile(profile(), "riscv64")
	require.ErrorIs(t, err, errors.ErrUnsupported)
}

func TestFlags(t *testing.T) {
	p := profile()
	p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, flagTSync}
	f, err := Compile(p, "amd64")
	require.NoError(t, err)
	assert.EqualValues(t, 1|2|4, f.Flags)
}

// TestLongPrograms needs jumps over more than the 255 instructions that a conditional jump can
// skip.
func TestLongPrograms(t *testing.T) {
	build := func(n int) *specs.LinuxSeccomp {
		p := profile()
		for i := range n {
			// Different high halves, so that no two rules can share a load.
			p.Syscalls = append(p.Syscalls, when(specs.ActAllow, "read", arg(0, specs.OpEqualTo, uint64(i)<<32|7)))
		}
		rule := when(specs.ActErrno, "read", arg(1, specs.OpEqualTo, 1))
		rule.ErrnoRet = ptr(uint(unix.EIO))
		p.Syscalls = append(p.Syscalls, rule, when(specs.ActAllow, "write"))
		return p
	}
	m := compile(t, build(900), "amd64")
	assert.Equal(t, allow, m.run(t, on(t, "amd64", "read", 0<<32|7)))
	assert.Equal(t, allow, m.run(t, on(t, "amd64", "read", 450<<32|7)))
	assert.Equal(t, allow, m.run(t, on(t, "amd64", "read", 899<<32|7)))
	assert.Equal(t, eperm, m.run(t, on(t, "amd64", "read", 900<<32|7)))
	assert.Equal(t, errno|uint32(unix.EIO), m.run(t, on(t, "amd64", "read", 7, 1)))
	assert.Equal(t, allow, m.run(t, on(t, "amd64", "write")))
	assert.Equal(t, eperm, m.run(t, on(t, "amd64", "close")))

	_, err := Compile(build(1500), "amd64")
	require.ErrorContains(t, err, "the kernel takes 4096")
}

func TestBytes(t *testing.T) {
	f, err := Compile(profile(), "amd64")
	require.NoError(t, err)
	b := f.Bytes()
	require.Len(t, b, 8*f.Len())
	assert.Equal(t, []byte{0x20, 0, 0, 0, 4, 0, 0, 0}, b[:8], "ld [4]")
	ins := f.Instructions()
	ins[0].K = 99
	assert.EqualValues(t, 4, f.Instructions()[0].K, "the filter is not the caller's to change")
}

func TestDeterministic(t *testing.T) {
	p, err := Default(nil, false)
	require.NoError(t, err)
	want, err := Compile(p, runtime.GOARCH)
	require.NoError(t, err)
	for range 20 {
		got, err := Compile(p, runtime.GOARCH)
		require.NoError(t, err)
		require.Equal(t, want.Bytes(), got.Bytes())
	}
}

// TestTables checks numbers that other tables lack or have wrong.
func TestTables(t *testing.T) {
	common := map[string]uint32{
		"fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456,
		"statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
		"lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
		"removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
		"listns": 470, "rseq_slice_yield": highestNow,
	}
	for name, nr := range common {
		assert.Equal(t, nr, amd64().numbers[name], name)
		assert.Equal(t, nr, arm64().numbers[name], name)
	}
	assert.EqualValues(t, 262, amd64().numbers["newfstatat"])
	assert.EqualValues(t, 79, arm64().numbers["newfstatat"])
	for _, name := range []string{"clock_gettime64", "fstatat", "arch_specific_syscall"} {
		assert.NotContains(t, arm64().numbers, name)
	}
	assert.False(t, knownSomewhere("arch_specific_syscall"))
	for _, a := range []*architecture{amd64(), arm64()} {
		names := map[uint32]string{}
		for name, nr := range a.numbers {
			assert.Empty(t, names[nr], fmt.Sprintf("%d is also %s", nr, name))
			names[nr] = name
		}
	}
}
