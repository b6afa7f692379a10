// Package wire carries the calls of functions between this process and its workers: messages with
// descriptors over a socket, and values as CBOR. The process at the other end may have been taken
// over, so what it sends is bounded and nothing in it is trusted.
package wire

import (
	"errors"
	"os"
)

// Kind is the kind of a message.
type Kind uint8

const (
	Hello    Kind = iota + 1 // by the worker: ready for calls
	Call                     // to the worker
	Cancel                   // to the worker: the caller no longer wants the answer
	Answer                   // by the worker: what the function returned
	Failure                  // by the worker: the error that it returned
	Panicked                 // by the worker
	Streamed                 // by the worker: the streams of its answer have been copied, or an error
	Pipes                    // to the worker: the writing ends for the streams of its answer
	numKinds
)

func (k Kind) String() string {
	names := [...]string{"?", "hello", "call", "cancel", "answer", "failure", "panicked", "streamed", "pipes"}
	if k >= numKinds {
		k = 0
	}
	return names[k]
}

// Message is one message. Its files belong to whoever has the message.
type Message struct {
	Kind  Kind
	Body  []byte
	Files []*os.File
}

// Close closes the files.
func (m *Message) Close() {
	for _, f := range m.Files {
		f.Close()
	}
	m.Files = nil
}

// Discard closes the files without waiting, whatever they are: they come from a process that may
// have been taken over.
func (m *Message) Discard() {
	for _, f := range m.Files {
		discard(f)
	}
	m.Files = nil
}

// MaxFiles is how many files a message may carry.
const MaxFiles = 64

// ErrTooLarge reports that a message is larger than its limit.
var ErrTooLarge = errors.New("message too large")
