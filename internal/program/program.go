// Package program describes what turns a fresh clone into a run: a flat list of system calls, built
// in the host process, sent to the fork server as one block of memory, and executed between clone
// and exec.
//
// A program has three parts. Setup runs in the clone, which becomes the run's init. Command runs in
// a child of init and normally ends in execve. Init runs in init, once the command has been
// executed. A program with only a Setup part is a task: it makes its calls and exits.
package program

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// MaxSlots is the number of results and received descriptors that a program can hold at the same
// time. The kernel passes at most 253 descriptors in one message (SCM_MAX_FD).
const (
	MaxSlots = 512
	MaxFiles = 253
	// MaxPassed is the number of descriptors that a program can pass to the one that it
	// receives.
	MaxPassed = 64
	// MaxImage bounds an encoded program. Most of a large one is arguments and environment,
	// which the kernel limits to 6 MiB (execve(2)).
	MaxImage = 8 << 20
)

// Slot holds a received descriptor or the result of a call.
type Slot uint16

// Report is the slot of the socket that events are written to: the first descriptor that is sent
// with a program.
const Report Slot = 0

// NoSlot means that the result of a call is not kept.
const NoSlot Slot = 0xffff

// Part is one of the three parts of a program.
type Part uint8

const (
	Setup Part = iota
	Command
	Init
	numParts
)

func (p Part) String() string { return [...]string{"setup", "command", "init"}[p] }

// Calls beyond the kernel's own numbers.
const (
	callPoke    = 1<<31 + iota // store a slot (arg 1) as 32 bits into data (arg 0)
	callPeek                   // the 32 bits in the data (arg 0) are the result
	callTried                  // fail with the error of the calls that were tried
	callPass                   // pass the descriptor in a slot (arg 0) to the program to receive
	callReceive                // go on with another program, which comes over the socket to the host
	callFault                  // fail with an error (arg 0): tests only
)

const (
	kindInt = iota
	kindData
	kindSlot
)

const (
	flagIgnore   = 1 << iota // go on whatever the result
	flagTry                  // ENOENT, ENOTDIR and EACCES: remember and go on
	flagPositive             // zero is a failure: the peer is gone
	flagAll                  // less than it is asked for is a failure: no space is left
)

// op is one call as the executor reads it. Size and layout are part of the encoding: both ends are
// the same binary on the same machine.
type op struct {
	num   uint32
	out   Slot
	flags uint8
	_     uint8
	kinds [6]uint8
	_     [2]uint8
	args  [6]int32 // numbers are sign-extended
}

const opSize = 40

// Program is an immutable list of calls, ready to be sent.
type Program struct {
	image []byte
	files []string // for people: how the program gets each descriptor, and what it is
	lines []line
	first [numParts]int // index of each part's first call
}

// line is what is known about a call, beyond what the executor needs.
type line struct {
	stage, name string
	args        []Arg
	out         Slot
	purpose     Purpose
	number      uint32
}

// text is made when somebody asks for it, which mostly nobody does.
func (l *line) text() string {
	args := make([]string, len(l.args))
	for i, a := range l.args {
		args[i] = a.String()
	}
	text := l.name + "(" + strings.Join(args, ", ") + ")"
	if l.out != NoSlot {
		text = l.out.String() + " = " + text
	}
	return text
}

// Purpose is the purpose of a stage's calls, as far as it decides what to do if one fails.
type Purpose uint8

const (
	General   Purpose = iota
	Place             // puts something at a place in the root that an option names
	OwnPlace          // puts the run's own /proc or /dev into the root
	Clocks            // moves the clocks
	Groups            // sets the supplementary groups
	Directory         // goes to the working directory
	Exec              // executes the command
)

// Call describes a call of a program: number and purpose for code, stage and text for people.
type Call struct {
	Number      uintptr // of the system call
	Purpose     Purpose
	Stage, Text string
}

// Image returns the encoded form that Load reads.
func (p *Program) Image() []byte { return p.image }

// Files returns the number of descriptors that accompany the program, those that are passed on to
// it included.
func (p *Program) Files() int { return len(p.files) }

// Call describes call i.
func (p *Program) Call(i int) Call {
	if i < 0 || i >= len(p.lines) {
		return Call{Stage: "unknown stage", Text: fmt.Sprintf("call %d", i)}
	}
	l := &p.lines[i]
	return Call{uintptr(l.number), l.purpose, l.stage, l.text()}
}

// Len returns the number of calls.
func (p *Program) Len() int { return len(p.lines) }

// Failing returns the program with call i replaced by one that only fails, for tests of what
// happens then.
func (p *Program) Failing(i int, errno syscall.Errno) *Program {
	f := *p
	f.image = slices.Clone(p.image)
	at := f.image[headerSize+i*opSize:][:opSize]
	old := at[6] // the flags
	fault := op{num: callFault, out: NoSlot, flags: old, args: [6]int32{int32(errno)}}
	copy(at, fault.marshal(nil))
	return &f
}

// MayFail reports whether the program goes on without call i, or with the next place to try.
func (p *Program) MayFail(i int) bool {
	return p.image[headerSize+i*opSize+6]&(flagIgnore|flagTry) != 0
}

// Explain lists the program, one line per call, in the order of execution.
func (p *Program) Explain() string {
	var b strings.Builder
	for i, f := range p.files {
		fmt.Fprintf(&b, "%s = %s\n", Slot(i), f)
	}
	stage := ""
	for i, l := range p.lines {
		for part := Setup; part < numParts; part++ {
			if p.first[part] == i && p.partLen(part) > 0 {
				fmt.Fprintf(&b, "%s:\n", part)
				stage = ""
			}
		}
		if l.stage != stage {
			stage = l.stage
			fmt.Fprintf(&b, "  # %s\n", stage)
		}
		fmt.Fprintf(&b, "  %s\n", l.text())
	}
	return b.String()
}

func (p *Program) partLen(part Part) int {
	if part+1 < numParts {
		return p.first[part+1] - p.first[part]
	}
	return len(p.lines) - p.first[part]
}

func (s Slot) String() string { return fmt.Sprintf("$%d", uint16(s)) }

// The image: a header, the calls, the offsets of pointers inside the data (argv, envp, iovecs), the
// data.
const (
	magic      = 0x53425831 // "SBX1"
	headerSize = 4 * 8
)

var native = binary.NativeEndian

// imageError is what is wrong with an image. It is always a constant: the fork server, which loads
// images, must not allocate.
type imageError string

func (e imageError) Error() string { return "malformed program: " + string(e) }

// header is the beginning of an image in memory.
type header struct {
	magic, total        uint32
	calls               [numParts]uint32
	relocs, data, files uint32
}

func (h *header) marshal(b []byte) []byte {
	for _, v := range [...]uint32{h.magic, h.total, h.calls[0], h.calls[1], h.calls[2], h.relocs, h.data, h.files} {
		b = native.AppendUint32(b, v)
	}
	return b
}
