package queue

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/cellkit/sandbox"
)

// What is stored is CBOR (RFC 8949), maps with small numbers for keys. Key 0 is the version of a
// record. New fields get new keys, and are ignored by programs that don't know them; a record that
// can't be understood without one gets another version, and programs leave it to newer ones.

const version = 1

var (
	errNewer   = errors.New("written by a newer version of this package")
	errForeign = errors.New("not a record: it was not written by this package")
)

// maxBundle bounds what is decoded: the list of the files of a bundle, which is a blob.
const maxBundle = 8 << 20

// maxElements bounds arrays; a bundle with inline files has most.
const maxElements = 1 << 15

func encoder() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return m
}

func decoder() cbor.DecMode {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 8, MaxArrayElements: maxElements, MaxMapPairs: 128, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, UTF8: cbor.UTF8RejectInvalid}.DecMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return m
}

var (
	enc = encoder()
	dec = decoder()
)

// versioned are the records that are decoded.
type versioned interface {
	taskRecord | stateRecord | logRecord | blobRecord | bundleRecord | workerRecord | serviceRecord | healthRecord
}

// decode decodes a record that anybody may have written.
func decode[T versioned](b []byte) (*T, error) {
	if len(b) == 0 {
		return nil, errForeign
	}
	if len(b) > maxBundle {
		return nil, fmt.Errorf("a record of %d bytes, more than %d", len(b), maxBundle)
	}
	var v struct {
		Version int `cbor:"0,keyasint"`
	}
	if err := dec.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("not a record: %w", err)
	}
	if v.Version != version {
		if v.Version > version {
			return nil, fmt.Errorf("version %d: %w", v.Version, errNewer)
		}
		return nil, fmt.Errorf("not a record: version %d", v.Version)
	}
	r := new(T)
	if err := dec.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("not a record: %w", err)
	}
	return r, nil
}

func encode[T versioned](r *T) ([]byte, error) {
	b, err := enc.Marshal(r)
	return b, err
}

// runRecord is the sandbox.Result of an attempt, and its output.
type runRecord struct {
	ExitCode int         `cbor:"1,keyasint"`
	Signal   int         `cbor:"2,keyasint,omitempty"`
	Reason   string      `cbor:"3,keyasint"` // by name: the numbers are not for all versions
	Usage    usageRecord `cbor:"4,keyasint"`
	Stdout   []byte      `cbor:"5,keyasint,omitempty"`
	Stderr   []byte      `cbor:"6,keyasint,omitempty"`
	Outputs  *bundle     `cbor:"7,keyasint,omitempty"`
	Missing  []string    `cbor:"8,keyasint,omitempty"`
	Cut      int64       `cbor:"9,keyasint,omitempty"`
	Started  int64       `cbor:"10,keyasint"` // ns since 1970

	Call *answerRecord `cbor:"11,keyasint,omitempty"` // of a function that has no result
	Lost string        `cbor:"12,keyasint,omitempty"` // why there are no Outputs
	Func string        `cbor:"13,keyasint,omitempty"` // that was called
}

type usageRecord struct {
	Wall        time.Duration `cbor:"1,keyasint"`
	UserCPU     time.Duration `cbor:"2,keyasint,omitempty"`
	SystemCPU   time.Duration `cbor:"3,keyasint,omitempty"`
	Throttled   time.Duration `cbor:"4,keyasint,omitempty"`
	MemoryPeak  uint64        `cbor:"5,keyasint,omitempty"`
	ReadBytes   uint64        `cbor:"6,keyasint,omitempty"`
	WriteBytes  uint64        `cbor:"7,keyasint,omitempty"`
	PIDsPeak    uint64        `cbor:"8,keyasint,omitempty"`
	OOMKills    uint64        `cbor:"9,keyasint,omitempty"`
	PIDsRefused uint64        `cbor:"10,keyasint,omitempty"`
	Uncounted   []string      `cbor:"11,keyasint,omitempty"`
}

// reasons are those that a run may end for.
var reasons = [...]sandbox.Reason{sandbox.Exited, sandbox.Signaled, sandbox.TimedOut, sandbox.CPUTimedOut, sandbox.OutOfMemory, sandbox.OutputExceeded, sandbox.Canceled,
	sandbox.PIDsExceeded, sandbox.RunEnded}

func runOf(r *sandbox.Result) *runRecord {
	return &runRecord{ExitCode: r.ExitCode, Signal: int(r.Signal), Reason: r.Reason.String(), Usage: usageRecord(r.Usage)}
}

func (r *runRecord) result() (sandbox.Result, error) {
	for _, reason := range reasons {
		if reason.String() == r.Reason {
			return sandbox.Result{ExitCode: r.ExitCode, Signal: syscall.Signal(r.Signal), Reason: reason, Usage: sandbox.Usage(r.Usage)}, nil
		}
	}
	return sandbox.Result{}, fmt.Errorf("a result with the reason %q, which this version does not know", r.Reason)
}
