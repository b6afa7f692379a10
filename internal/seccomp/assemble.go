//go:build linux

package seccomp

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits wide and native-endian,
// here always little-endian, and BPF loads 32 bits at a time.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

func offsetLow(arg uint) uint32  { return offsetArgs + 8*uint32(arg) }
func offsetHigh(arg uint) uint32 { return offsetLow(arg) + 4 }

// x32Bit marks the calls of the x32 convention, which shares amd64's audit architecture
// (asm/unistd.h). No call of amd64 itself has a number as large, so all numbers from here on are
// refused. The kernel takes half of them as negative.
const x32Bit = 0x40000000

// assemble writes the program: check the architecture, find the system call's number in a balanced
// tree, then return, or check the arguments.
//
// Everything that does not depend on arguments is decided without loading one: the kernel (5.11 and
// newer) keeps a bitmap of the calls that a filter always allows, and does not run the filter for
// them at all (seccomp_is_const_allow in kernel/seccomp.c).
//
// BPF only jumps forwards, and the program is written from its end, so that every target exists
// when a jump to it is written. Read the code bottom up.
func assemble(p *policy, a *architecture) []unix.SockFilter {
	asm := &assembler{returns: map[uint32]label{}}
	leaves := asm.leaves(p, a)
	entry := asm.tree(leaves)
	if a.x32 {
		entry = asm.jump(unix.BPF_JGE, x32Bit, asm.ret(retENOSYS), entry)
	}
	entry = asm.before(entry, load(offsetNumber))
	entry = asm.jump(unix.BPF_JEQ, a.audit, entry, asm.ret(retENOSYS))
	asm.before(entry, load(offsetArch))
	slices.Reverse(asm.code)
	return asm.code
}

// assembler holds a program, with the last instruction first.
type assembler struct {
	code    []unix.SockFilter
	returns map[uint32]label // the latest return of each value
}

// label is an instruction's distance from the end of the program, 1 for the last instruction.
type label int

// leaf says what happens to the system calls from start up to the next leaf.
type leaf struct {
	start uint32
	ret   uint32 // if there is no chain
	chain label  // the checks of the arguments
}

// leaves divides the range of system call numbers into stretches with the same result, after
// emitting the checks of arguments that some of them need.
func (asm *assembler) leaves(p *policy, a *architecture) []leaf {
	numbers := slices.Sorted(maps.Values(a.numbers))
	chains := map[uint32]label{}
	for _, nr := range numbers {
		if v := p.verdicts[nr]; len(v.rules) > 0 {
			chains[nr] = asm.chain(v)
		}
	}
	var leaves []leaf
	add := func(l leaf) {
		if n := len(leaves); n == 0 || leaves[n-1].ret != l.ret || leaves[n-1].chain != l.chain {
			leaves = append(leaves, l)
		}
	}
	next := uint32(0)
	for _, nr := range numbers {
		if nr > next {
			add(leaf{start: next, ret: p.unknown})
		}
		if chain, ok := chains[nr]; ok {
			add(leaf{start: nr, chain: chain})
		} else if v, ok := p.verdicts[nr]; ok {
			add(leaf{start: nr, ret: v.otherwise})
		} else {
			add(leaf{start: nr, ret: p.other})
		}
		next = nr + 1
	}
	add(leaf{start: next, ret: p.unknown})
	return leaves
}

// tree emits a binary search for the leaf of the number in the accumulator.
func (asm *assembler) tree(leaves []leaf) label {
	if len(leaves) == 1 {
		if leaves[0].chain != 0 {
			return leaves[0].chain
		}
		return asm.ret(leaves[0].ret)
	}
	mid := len(leaves) / 2
	above := asm.tree(leaves[mid:])
	below := asm.tree(leaves[:mid])
	return asm.jump(unix.BPF_JGE, leaves[mid].start, above, below)
}

// chain emits the rules of one system call.
func (asm *assembler) chain(v verdict) label {
	next := asm.ret(v.otherwise)
	for end := len(v.rules); end > 0; {
		var start int
		if run := equalities(v.rules[:end]); run > 1 {
			start = end - run
			next = asm.anyOf(v.rules[start:end], next)
		} else {
			start = end - siblings(v.rules[:end])
			next = asm.allOf(v.rules[start:end], next)
		}
		end = start
	}
	return next
}

// equalities counts the rules at the end that ask for values of one argument and differ only in the
// low 32 bits of the value, such as Docker's list of socket families.
func equalities(rules []rule) int {
	last := rules[len(rules)-1]
	same := func(r rule) bool {
		return r.action == last.action && len(r.conditions) == 1 &&
			r.conditions[0].Op == specs.OpEqualTo &&
			r.conditions[0].Index == last.conditions[0].Index &&
			r.conditions[0].Value>>32 == last.conditions[0].Value>>32
	}
	n := 0
	for n < len(rules) && same(rules[len(rules)-1-n]) {
		n++
	}
	return n
}

// anyOf emits a run of equalities, which load their argument once.
func (asm *assembler) anyOf(rules []rule, next label) label {
	arg := rules[0].conditions[0]
	entry := next
	for _, r := range slices.Backward(rules) {
		entry = asm.jump(unix.BPF_JEQ, uint32(r.conditions[0].Value), asm.ret(r.action), entry)
	}
	entry = asm.before(entry, load(offsetLow(arg.Index)))
	entry = asm.jump(unix.BPF_JEQ, uint32(arg.Value>>32), entry, next)
	return asm.before(entry, load(offsetHigh(arg.Index)))
}

// siblings counts the rules at the end that differ only in their last condition.
func siblings(rules []rule) int {
	last := rules[len(rules)-1]
	first := len(last.conditions) - 1
	same := func(r rule) bool {
		return r.action == last.action && len(r.conditions) == first+1 && slices.Equal(r.conditions[:first], last.conditions[:first])
	}
	n := 1
	for n < len(rules) && same(rules[len(rules)-1-n]) {
		n++
	}
	return n
}

// allOf emits siblings: their action if all conditions of one hold, otherwise the next rule. The
// conditions they share are checked once.
func (asm *assembler) allOf(rules []rule, next label) label {
	common := len(rules[0].conditions) - 1
	entry := next
	for _, r := range slices.Backward(rules) {
		entry = asm.condition(r.conditions[common], asm.ret(r.action), entry)
	}
	for _, arg := range slices.Backward(rules[0].conditions[:common]) {
		entry = asm.condition(arg, entry, next)
	}
	return entry
}

// condition emits a comparison of a 64-bit argument that continues at yes or no.
func (asm *assembler) condition(arg specs.LinuxSeccompArg, yes, no label) label {
	switch arg.Op {
	case specs.OpEqualTo:
		return asm.masked(arg.Index, ^uint64(0), arg.Value, yes, no)
	case specs.OpNotEqual:
		return asm.masked(arg.Index, ^uint64(0), arg.Value, no, yes)
	case specs.OpMaskedEqual:
		return asm.masked(arg.Index, arg.Value, arg.ValueTwo&arg.Value, yes, no)
	case specs.OpGreaterThan:
		return asm.greater(arg.Index, unix.BPF_JGT, arg.Value, yes, no)
	case specs.OpGreaterEqual:
		return asm.greater(arg.Index, unix.BPF_JGE, arg.Value, yes, no)
	case specs.OpLessThan:
		return asm.greater(arg.Index, unix.BPF_JGE, arg.Value, no, yes)
	case specs.OpLessEqual:
		return asm.greater(arg.Index, unix.BPF_JGT, arg.Value, no, yes)
	}
	panic("seccomp: operator passed validation: " + string(arg.Op))
}

// greater emits a comparison whose low half is done by op: the high half decides unless it is
// equal.
func (asm *assembler) greater(arg uint, op uint16, value uint64, yes, no label) label {
	if yes == no {
		return yes
	}
	high := uint32(value >> 32)
	low := asm.before(asm.jump(op, uint32(value), yes, no), load(offsetLow(arg)))
	equal := asm.jump(unix.BPF_JEQ, high, low, no)
	return asm.before(asm.jump(unix.BPF_JGT, high, yes, equal), load(offsetHigh(arg)))
}

// masked emits arg & mask == value. A half without mask bits always holds.
func (asm *assembler) masked(arg uint, mask, value uint64, yes, no label) label {
	if yes == no {
		return yes
	}
	yes = asm.maskedHalf(offsetLow(arg), uint32(mask), uint32(value), yes, no)
	return asm.maskedHalf(offsetHigh(arg), uint32(mask>>32), uint32(value>>32), yes, no)
}

func (asm *assembler) maskedHalf(offset, mask, value uint32, yes, no label) label {
	if mask == 0 {
		return yes
	}
	entry := asm.jump(unix.BPF_JEQ, value, yes, no)
	if mask != ^uint32(0) {
		entry = asm.before(entry, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	return asm.before(entry, load(offset))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// before emits an instruction that falls through to next, which must be the one emitted last.
func (asm *assembler) before(next label, ins unix.SockFilter) label {
	if int(next) != len(asm.code) {
		panic("seccomp: instruction does not precede its successor")
	}
	return asm.emit(ins)
}

// ret returns a return of the value that the next jump can reach.
func (asm *assembler) ret(value uint32) label {
	if l, ok := asm.returns[value]; ok && asm.reaches(l) {
		return l
	}
	asm.returns[value] = asm.emit(unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value})
	return asm.returns[value]
}

// jump emits a conditional jump on the accumulator.
func (asm *assembler) jump(op uint16, value uint32, yes, no label) label {
	yes = asm.near(yes)
	no = asm.near(no)
	if asm.distance(yes) > 255 || asm.distance(no) > 255 {
		panic("seccomp: jump out of reach")
	}
	return asm.emit(unix.SockFilter{
		Code: unix.BPF_JMP | op | unix.BPF_K,
		Jt:   uint8(asm.distance(yes)),
		Jf:   uint8(asm.distance(no)),
		K:    value,
	})
}

// near returns a label that a conditional jump emitted next can reach and that leads to the target:
// another return if the target is one, otherwise an unconditional jump, which has 32 bits for the
// distance.
func (asm *assembler) near(target label) label {
	if asm.reaches(target) {
		return target
	}
	if ins := asm.code[target-1]; ins.Code == unix.BPF_RET|unix.BPF_K {
		return asm.ret(ins.K)
	}
	return asm.emit(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(asm.distance(target))})
}

// reaches leaves room for two instructions between the jump and its target. One of them is the
// other branch's unconditional jump.
func (asm *assembler) reaches(target label) bool { return asm.distance(target) <= 255-2 }

// distance returns how many instructions an instruction emitted next must skip to get to a target.
func (asm *assembler) distance(target label) int { return len(asm.code) - int(target) }

func (asm *assembler) emit(ins unix.SockFilter) label {
	asm.code = append(asm.code, ins)
	return label(len(asm.code))
}
