package program

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Builder collects the calls of a program. It does no I/O. Program returns its first error.
type Builder struct {
	parts   [numParts][]op
	lines   [numParts][]line
	part    Part
	stage   string
	purpose Purpose
	data    []byte
	texts   map[string]uint64
	relocs  []uint64
	files   []string
	used    [MaxSlots]bool
	passes  int
	err     error
}

// Arg is an argument of a call: a number, a pointer into the program's data, or the content of a
// slot.
type Arg struct {
	kind uint8
	as   uint8 // what Explain shows
	val  uint64
	text string
}

// What Explain shows of an argument, which is only written out when it does.
const (
	asText = iota
	asQuoted
	asNumber
	asMode
)

// String returns what Explain shows.
func (a Arg) String() string {
	switch {
	case a.kind == kindSlot:
		return Slot(a.val).String()
	case a.as == asQuoted:
		return quote(a.text)
	case a.as == asNumber:
		return strconv.FormatInt(int64(a.val), 10)
	case a.as == asMode:
		return fmt.Sprintf("%#o", a.val)
	}
	return a.text
}

// Int returns a plain number. Explain shows the text, if given, instead of it.
func Int[T ~int | ~uint | ~int32 | ~uint32 | ~int64 | ~uint64 | ~uintptr](v T, text ...string) Arg {
	if len(text) > 0 {
		return Arg{val: uint64(v), text: text[0]}
	}
	return Arg{val: uint64(v), as: asNumber}
}

// Use returns the content of a slot.
func Use(s Slot) Arg { return Arg{kind: kindSlot, val: uint64(s)} }

// NewBuilder starts an empty program, in its Setup part.
func NewBuilder() *Builder {
	b := &Builder{texts: map[string]uint64{}}
	b.File("socket to the host") // Report
	return b
}

// In continues in the given part.
func (b *Builder) In(p Part) { b.part = p }

// Grow makes room for calls of the current part, and for bytes of data.
func (b *Builder) Grow(calls, data int) {
	b.parts[b.part] = slices.Grow(b.parts[b.part], calls)
	b.lines[b.part] = slices.Grow(b.lines[b.part], calls)
	b.data = slices.Grow(b.data, data)
	if len(b.texts) == 0 {
		b.texts = make(map[string]uint64, calls)
	}
}

// Stage names the purpose of the following calls.
func (b *Builder) Stage(name string) { b.StageFor(General, name) }

// StageFor does the same as Stage and sets a Purpose, for code that looks at calls.
func (b *Builder) StageFor(p Purpose, name string) { b.purpose, b.stage = p, name }

// For makes the calls that f adds belong to the current stage, but with a purpose of their own.
func (b *Builder) For(p Purpose, f func()) {
	stage := b.purpose
	b.purpose = p
	f()
	b.purpose = stage
}

// File declares the next descriptor that is sent with the program.
func (b *Builder) File(what string) Slot { return b.file("received: " + what) }

// Passed declares the next descriptor that the program gets from the one that receives it. These
// come before those that are sent with it.
func (b *Builder) Passed(what string) Slot { return b.file("passed: " + what) }

func (b *Builder) file(what string) Slot {
	if len(b.files) >= MaxFiles {
		b.fail(fmt.Errorf("more than %d descriptors", MaxFiles))
		return 0
	}
	if b.used[len(b.files)] {
		b.fail(errors.New("descriptors are declared before the first result"))
	}
	s := Slot(len(b.files))
	b.used[s] = true
	b.files = append(b.files, what)
	return s
}

func (b *Builder) newSlot() Slot {
	for i := MaxSlots - 1; i >= len(b.files); i-- {
		if !b.used[i] {
			b.used[i] = true
			return Slot(i)
		}
	}
	b.fail(fmt.Errorf("more than %d results in use", MaxSlots))
	return 0
}

// Free lets a later result use the slot again.
func (b *Builder) Free(s Slot) { b.used[s] = false }

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Str returns a pointer to s, terminated by a zero byte.
func (b *Builder) Str(s string) Arg {
	if strings.IndexByte(s, 0) >= 0 {
		b.fail(fmt.Errorf("%q contains a zero byte", s))
	}
	off, ok := b.texts[s]
	if !ok {
		off = put(b, s)
		b.texts[s] = off
	}
	return Arg{kind: kindData, as: asQuoted, val: off, text: s}
}

// quote quotes a string, of a long one the beginning.
func quote(s string) string {
	const most = 200
	if len(s) <= most {
		return strconv.Quote(s)
	}
	return fmt.Sprintf("%s... (%d bytes)", strconv.Quote(s[:most]), len(s))
}

// Bytes returns a pointer to a copy of p. Explain shows text instead.
func (b *Builder) Bytes(p []byte, text string) Arg {
	return Arg{kind: kindData, val: put(b, p), text: text}
}

// Inside returns a pointer that is n bytes behind another.
func (b *Builder) Inside(at Arg, n int) Arg {
	return Arg{kind: kindData, val: at.val + uint64(n), text: fmt.Sprintf("%v + %d", at, n)}
}

// Pointers returns a pointer to an array of pointers, with a null pointer at its end if null is set
// (argv, envp).
func (b *Builder) Pointers(to []Arg, null bool, text string) Arg {
	n := len(to)
	if null {
		n++
	}
	words := make([]byte, 8*n)
	for i, a := range to {
		native.PutUint64(words[8*i:], a.val)
	}
	off := put(b, words)
	for i := range to {
		b.relocs = append(b.relocs, off+8*uint64(i))
	}
	return Arg{kind: kindData, val: off, text: text}
}

// Strings returns a pointer to an array of strings, as execve(2) takes them.
func (b *Builder) Strings(list []string) Arg {
	to := make([]Arg, len(list))
	quoted := make([]string, len(list))
	for i, s := range list {
		to[i] = b.Str(s)
		quoted[i] = to[i].String()
	}
	return b.Pointers(to, true, "["+strings.Join(quoted, ", ")+"]")
}

// Struct returns a pointer to 64-bit words. Those that are pointers into the data are Args from
// Str, Bytes or Pointers.
func (b *Builder) Struct(text string, words ...Arg) Arg {
	raw := make([]byte, 8*len(words))
	for i, w := range words {
		native.PutUint64(raw[8*i:], w.val)
	}
	off := put(b, raw)
	for i, w := range words {
		if w.kind == kindData {
			b.relocs = append(b.relocs, off+8*uint64(i))
		}
	}
	return Arg{kind: kindData, val: off, text: text}
}

// put adds bytes to the data, and zeros up to the next word: at least one behind a string.
func put[T string | []byte](b *Builder, p T) uint64 {
	off := uint64(len(b.data))
	b.data = append(b.data, p...)
	if _, ok := any(p).(string); ok {
		b.data = append(b.data, 0)
	}
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
	if len(b.data) > MaxImage {
		b.fail(fmt.Errorf("arguments, environment and paths are larger than %d bytes together", MaxImage))
	}
	return off
}

// Call adds a system call whose failure ends the program.
func (b *Builder) Call(name string, num uintptr, args ...Arg) { b.add(name, num, NoSlot, 0, args) }

// CallTo adds a system call whose result is kept in a slot.
func (b *Builder) CallTo(name string, num uintptr, args ...Arg) Slot {
	s := b.newSlot()
	b.add(name, num, s, 0, args)
	return s
}

// CallInto adds a system call whose result replaces the content of a slot.
func (b *Builder) CallInto(s Slot, name string, num uintptr, args ...Arg) {
	b.add(name, num, s, 0, args)
}

// CallMaybe adds a system call that may fail.
func (b *Builder) CallMaybe(name string, num uintptr, args ...Arg) {
	b.add(name, num, NoSlot, flagIgnore, args)
}

// CallWait adds a system call that waits for a peer: a result of zero means that the peer is gone,
// and ends the program.
func (b *Builder) CallWait(name string, num uintptr, args ...Arg) {
	b.add(name, num, NoSlot, flagPositive, args)
}

// CallTry adds a system call that only returns if it failed, such as execve for one of several
// paths. If nothing is there, the program remembers that and goes on with the next one. FailTried
// ends the list.
func (b *Builder) CallTry(name string, num uintptr, args ...Arg) {
	b.add(name, num, NoSlot, flagTry, args)
}

// FailTried ends the program with the error of the calls that were tried: permission denied if one
// reported that, otherwise not found.
func (b *Builder) FailTried(name string) { b.add(name, callTried, NoSlot, 0, nil) }

// poke stores the slot's content as 32 bits into the data, n bytes behind at.
func (b *Builder) poke(at Arg, n int, s Slot) {
	// The executor adds the offset to the data's address itself.
	b.add("store", callPoke, NoSlot, 0, []Arg{Int(at.val+uint64(n), fmt.Sprintf("%v + %d", at, n)), Use(s)})
}

// peek reads 32 bits of the data, n bytes behind at, into a slot.
func (b *Builder) peek(at Arg, n int) Slot {
	return b.CallTo("load", callPeek, Int(at.val+uint64(n), fmt.Sprintf("%v + %d", at, n)))
}

// Pass gives a descriptor, which stays open, to the program to receive, which declares it with
// Passed.
func (b *Builder) Pass(s Slot) {
	if b.passes++; b.passes > MaxPassed {
		b.fail(fmt.Errorf("more than %d descriptors are passed on", MaxPassed))
	}
	b.add("pass", callPass, NoSlot, 0, []Arg{Use(s)})
}

// Receive ends the Command part, which goes on with that of another program that the host sends.
// The Init part goes on with that program's too.
func (b *Builder) Receive() { b.add("receive", callReceive, NoSlot, 0, nil) }

func (b *Builder) add(name string, num uintptr, out Slot, flags uint8, args []Arg) {
	if len(args) > 6 {
		b.fail(fmt.Errorf("%s: more than six arguments", name))
		return
	}
	o := op{num: uint32(num), out: out, flags: flags}
	for i, a := range args {
		// The kernel takes the lower half of what is extended for an argument of 32 bits.
		if v := int64(a.val); v != int64(int32(v)) && v != int64(uint32(v)) {
			b.fail(fmt.Errorf("%s: argument %v is larger than 32 bits", name, a))
		}
		o.args[i], o.kinds[i] = int32(a.val), a.kind
	}
	b.parts[b.part] = append(b.parts[b.part], o)
	b.lines[b.part] = append(b.lines[b.part], line{stage: b.stage, name: name, args: args, out: out, number: o.num, purpose: b.purpose})
}

// Program encodes the collected calls.
func (b *Builder) Program() (*Program, error) {
	if b.err != nil {
		return nil, b.err
	}
	p := &Program{files: b.files}
	h := header{magic: magic, relocs: uint32(len(b.relocs)), data: uint32(len(b.data)), files: uint32(len(b.files))}
	calls := 0
	for i := range b.parts {
		p.first[i] = calls
		calls += len(b.parts[i])
		p.lines = append(p.lines, b.lines[i]...)
		h.calls[i] = uint32(len(b.parts[i]))
	}
	total := headerSize + opSize*calls + 8*len(b.relocs) + len(b.data)
	if total > MaxImage {
		return nil, fmt.Errorf("program of %d bytes is larger than %d", total, MaxImage)
	}
	h.total = uint32(total)
	out := h.marshal(make([]byte, 0, total))
	for _, part := range b.parts {
		for i := range part {
			out = part[i].marshal(out)
		}
	}
	for _, r := range b.relocs {
		out = native.AppendUint64(out, r)
	}
	p.image = append(out, b.data...)
	return p, nil
}

func (o *op) marshal(b []byte) []byte {
	b = native.AppendUint32(b, o.num)
	b = native.AppendUint16(b, uint16(o.out))
	b = append(b, o.flags, 0)
	b = append(b, o.kinds[:]...)
	b = append(b, 0, 0)
	for _, a := range o.args {
		b = native.AppendUint32(b, uint32(a))
	}
	return b
}
