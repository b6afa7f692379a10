//go:build linux

package seccomp

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var (
	someNames = []string{"read", "write", "close", "ioctl", "socket", "clone", "personality", "openat", "mseal", "waitpid", "rseq_slice_yield"}
	allOps    = []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual,
	}
	allActions = []specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess,
		specs.ActKillThread, specs.ActTrap, specs.ActLog, specs.ActTrace,
	}
)

// TestAgainstEvaluator compares filters of random profiles with what the profiles mean.
func TestAgainstEvaluator(t *testing.T) {
	profiles := 1500
	if testing.Short() {
		profiles = 100
	}
	for seed := range uint64(profiles) {
		r := rand.New(rand.NewPCG(seed, 0))
		p := randomProfile(r)
		for _, goarch := range goarches {
			compare(t, r, p, goarch, compile(t, p, goarch))
		}
	}
}

func compare(t testing.TB, r *rand.Rand, p *specs.LinuxSeccomp, goarch string, m machine) {
	t.Helper()
	for range 60 {
		c := randomCall(t, r, p, goarch)
		if got, want := m.run(t, c), evaluate(t, p, goarch, c); got != want {
			text, _ := json.Marshal(p)
			require.Failf(t, "the filter differs from the profile", "%s\n%s: %+v: got %#x, want %#x", text, goarch, c, got, want)
		}
	}
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{}
	p.DefaultAction, p.DefaultErrnoRet = randomAction(r)
	for range r.IntN(12) {
		s := specs.LinuxSyscall{Names: []string{pick(r, someNames)}}
		s.Action, s.ErrnoRet = randomAction(r)
		if r.IntN(3) == 0 {
			s.Names = append(s.Names, pick(r, someNames))
		}
		for range r.IntN(4) {
			s.Args = append(s.Args, specs.LinuxSeccompArg{
				Index: uint(r.IntN(6)), Op: pick(r, allOps), Value: randomValue(r), ValueTwo: randomValue(r),
			})
		}
		p.Syscalls = append(p.Syscalls, s)
		// Several equalities in a row, which the assembler writes in another way.
		for n := r.IntN(4) * r.IntN(100); n > 0 && r.IntN(4) == 0; n-- {
			s.Args = []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: randomValue(r)}}
			p.Syscalls = append(p.Syscalls, s)
		}
	}
	return p
}

func randomAction(r *rand.Rand) (specs.LinuxSeccompAction, *uint) {
	act := pick(r, allActions)
	if (act == specs.ActErrno || act == specs.ActTrace) && r.IntN(2) == 0 {
		return act, ptr(uint(r.IntN(100)))
	}
	return act, nil
}

// randomValue prefers values at which one of the two 32-bit comparisons changes its result.
func randomValue(r *rand.Rand) uint64 {
	half := func() uint64 {
		return uint64(pick(r, []uint32{0, 1, 2, 7, 0x7fffffff, 0x80000000, 0xffffffff, r.Uint32()}))
	}
	if r.IntN(2) == 0 {
		return half()
	}
	return half()<<32 | half()
}

// randomCall mostly makes calls that the profile has rules for.
func randomCall(t testing.TB, r *rand.Rand, p *specs.LinuxSeccomp, goarch string) call {
	a, err := archFor(goarch)
	require.NoError(t, err)
	c := call{nr: r.Uint32N(600), audit: a.audit}
	if nr, ok := a.numbers[pick(r, someNames)]; ok && r.IntN(8) > 0 {
		c.nr = nr
	}
	var rule specs.LinuxSyscall
	if len(p.Syscalls) > 0 && r.IntN(4) > 0 {
		rule = pick(r, p.Syscalls)
		if nr, ok := a.numbers[rule.Names[0]]; ok {
			c.nr = nr
		}
	}
	for i := range c.args {
		c.args[i] = randomValue(r)
	}
	for _, arg := range rule.Args {
		value := arg.Value
		if arg.Op == specs.OpMaskedEqual {
			value = arg.ValueTwo&arg.Value | r.Uint64()&^arg.Value
		}
		c.args[arg.Index] = value + uint64(pick(r, []int64{0, 0, 0, 1, -1, 1 << 32}))
	}
	switch r.IntN(40) {
	case 0:
		c.audit = pick(r, []uint32{auditI386, auditARM, auditAMD64, auditARM64})
	case 1:
		c.nr |= x32Bit
	case 2:
		c.nr = r.Uint32()
	}
	return c
}

// FuzzCompile takes profiles as users write them, in JSON: whatever compiles must fit the kernel
// and mean what the profile says.
func FuzzCompile(f *testing.F) {
	def, err := Default([]string{"CAP_SYS_ADMIN"}, false)
	require.NoError(f, err)
	def.Architectures = nil
	for seed := range uint64(8) {
		text, err := json.Marshal(randomProfile(rand.New(rand.NewPCG(seed, 1))))
		require.NoError(f, err)
		f.Add(text, seed)
	}
	text, err := json.Marshal(def)
	require.NoError(f, err)
	f.Add(text, uint64(1))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`), uint64(0))
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(text, &p) != nil {
			return
		}
		for _, goarch := range goarches {
			filter, err := Compile(&p, goarch)
			if err != nil {
				continue
			}
			require.LessOrEqual(t, filter.Len(), unix.BPF_MAXINSNS)
			compare(t, rand.New(rand.NewPCG(seed, 2)), &p, goarch, newMachine(t, filter))
		}
	})
}
