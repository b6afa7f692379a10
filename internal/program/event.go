package program

import (
	"fmt"
	"time"
)

// Kind is the kind of an Event.
type Kind uint32

const (
	Cloned   Kind = iota + 1 // by the fork server: the clone exists; a pidfd comes along
	Refused                  // by the fork server: no clone; Errno says why
	Ready                    // by the command's process: set up, waiting for its cgroup
	Waiting                  // by the command's process: only the program to receive is missing
	Started                  // by init: the command has been executed
	Failed                   // by init or the command's process: call Index failed with Errno
	Exited                   // by init: the command ended with Status
	Finished                 // by a task: all of its calls are done
	Terminal                 // by the command's process: the other end of its terminal comes along
	Listener                 // by the command's process: the listener of its filter comes along
	NumKinds
)

func (k Kind) String() string {
	names := [...]string{"?", "cloned", "refused", "ready", "waiting", "started", "failed", "exited", "finished", "terminal", "listener"}
	if k >= NumKinds {
		k = 0
	}
	return names[k]
}

// Event is a message over a run's socket to the host, of EventSize bytes.
type Event struct {
	Kind   Kind
	Index  uint32 // of the call, or alone
	Errno  uint32
	Status uint32 // as wait4(2) gives it
	// The usage of the command and of the children that it waited for (getrusage(2)).
	UserCPU, SystemCPU time.Duration
	MaxRSS             uint64 // bytes
}

// alone is the Index of an Exited event after which no process is left in the run.
const alone = 1

// Alone reports whether, at an Exited event, the command was the run's last process except for
// init.
func (e *Event) Alone() bool { return e.Kind == Exited && e.Index == alone }

// EventSize is the size of an encoded Event.
const EventSize = 40

// event is the form in which the executor writes an Event.
type event struct {
	kind, index, errno, status uint32
	user, system, maxrss       int64 // microseconds, microseconds, KiB
}

// maxFigure is more than any usage in microseconds or KiB, and small enough for all arithmetic.
const maxFigure = 1 << 50

// ParseEvent decodes a message. It accepts only a complete event.
func ParseEvent(b []byte) (Event, error) {
	if len(b) != EventSize {
		return Event{}, fmt.Errorf("event of %d bytes, want %d", len(b), EventSize)
	}
	e := Event{
		Kind:      Kind(native.Uint32(b)),
		Index:     native.Uint32(b[4:]),
		Errno:     native.Uint32(b[8:]),
		Status:    native.Uint32(b[12:]),
		UserCPU:   time.Duration(native.Uint64(b[16:])) * time.Microsecond,
		SystemCPU: time.Duration(native.Uint64(b[24:])) * time.Microsecond,
		MaxRSS:    native.Uint64(b[32:]) * 1024,
	}
	if e.Kind == 0 || e.Kind >= NumKinds {
		return Event{}, fmt.Errorf("event of unknown kind %d", e.Kind)
	}
	for at := 16; at < EventSize; at += 8 {
		if n := native.Uint64(b[at:]); n > maxFigure {
			return Event{}, fmt.Errorf("event %v with a figure out of range: %d", e.Kind, n)
		}
	}
	return e, nil
}

// PutEvent encodes an event of the fork server itself into b, of EventSize bytes.
//
//go:norace
func PutEvent[E ~uintptr](b []byte, k Kind, errno E) {
	native.PutUint32(b, uint32(k))
	native.PutUint32(b[8:], uint32(errno))
}

// Marshal encodes an event.
func (e Event) Marshal() []byte {
	b := make([]byte, 0, EventSize)
	for _, v := range [...]uint32{uint32(e.Kind), e.Index, e.Errno, e.Status} {
		b = native.AppendUint32(b, v)
	}
	for _, v := range [...]uint64{uint64(e.UserCPU.Microseconds()), uint64(e.SystemCPU.Microseconds()), e.MaxRSS / 1024} {
		b = native.AppendUint64(b, v)
	}
	return b
}
