package queue

import (
	"strings"

	"github.com/cellkit/sandbox"
)

// Offer is what a worker has besides slots for commands of its classes.
type Offer struct {
	// Build is the worker's build if it has functions for calls, and Functions are these, up to
	// 100.
	Build     string   `json:"build,omitempty" cbor:"1,keyasint,omitempty"`
	Functions []string `json:"functions,omitempty" cbor:"2,keyasint,omitempty"`
	// Services reports whether it takes replicas of services.
	Services bool `json:"services,omitempty" cbor:"3,keyasint,omitempty"`
	// Memory and CPUs are what its pool has for all tasks together. 0: not limited.
	Memory int64   `json:"memory,omitempty" cbor:"4,keyasint,omitempty"` // bytes
	CPUs   float64 `json:"cpus,omitempty" cbor:"5,keyasint,omitempty"`
	// Features is what its machine can do, if it was given a report (Checked).
	Features []Feature `json:"features,omitempty" cbor:"6,keyasint,omitempty"`
}

// Feature is a row of sandbox.Check.
type Feature struct {
	Name     string `json:"name" cbor:"1,keyasint"`
	Required bool   `json:"required,omitempty" cbor:"2,keyasint,omitempty"`
	// Missing is why it does not work there; empty if it works.
	Missing string `json:"missing,omitempty" cbor:"3,keyasint,omitempty"`
	Detail  string `json:"detail,omitempty" cbor:"4,keyasint,omitempty"`
}

const (
	maxFeatures    = 200
	maxFeatureText = 500 // bytes
	maxFunctions   = 100 // that are announced
)

// Checked has the worker say what its machine can do, as sandbox.Check reported it, which takes a
// moment: Workers then returns it. Default: it says nothing of it.
func Checked(r *sandbox.Report) WorkerOption {
	short := func(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxFeatureText)], "") }
	return func(w *Worker) {
		w.report = nil
		for _, f := range r.Features[:min(len(r.Features), maxFeatures)] {
			of := Feature{Name: short(f.Name), Required: f.Required, Detail: short(f.Detail)}
			if f.Err != nil {
				of.Missing = short(f.Err.Error())
			}
			w.report = append(w.report, of)
		}
	}
}

func (w *Worker) offer() Offer {
	return Offer{Build: w.build, Functions: remoteNames(), Services: w.services.IsValid(), Memory: w.budget.capacity.Memory, CPUs: w.budget.capacity.CPUs, Features: w.report}
}
