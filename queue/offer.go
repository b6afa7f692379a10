package queue

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

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
	// Max is what a task may ask for (MaxLimits).
	Max Limits `json:"max" cbor:"7,keyasint"`
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
	return Offer{Build: w.build, Functions: remoteNames(), Services: w.services.IsValid(), Memory: w.budget.capacity.Memory, CPUs: w.budget.capacity.CPUs, Max: w.max, Features: w.report}
}

// neighbours are the live workers, looked for at most every neighboursFor.
type neighbours struct {
	mu   sync.Mutex
	at   time.Duration // by clockNow; 0: never
	list []WorkerStatus
}

const neighboursFor = 5 * time.Second

func (w *Worker) others(ctx context.Context) []WorkerStatus {
	n := &w.neighbours
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.at != 0 && clockNow() < n.at+neighboursFor {
		return n.list
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // it keeps a slot
	defer cancel()
	var list []WorkerStatus
	for s, err := range w.q.Workers(ctx) {
		switch {
		case err != nil && n.at != 0 && clockNow() < n.at+workerAge:
			return n.list // not known now: as it was
		case err == nil && s.Name != w.name && !s.Draining:
			s.Functions, s.Features, s.Tasks = nil, nil, nil // large, and not needed
			list = append(list, s)
		}
	}
	n.list, n.at = list, clockNow()
	return n.list
}

// takes reports whether a worker of such an offer asks for the task.
func (o *Offer) takes(t *taskRecord) bool {
	return (t.Call == nil || t.Call.Build == o.Build) && (t.Replica == nil || o.Services)
}

// othersGive reports whether there is another worker that takes the task and gives what it asks
// for. What a worker says of itself may be a lie, but servers can keep it from answering for a
// class that is not its own, and in its own it could take the task anyway.
func (a *attempt) othersGive() bool {
	class, _, _ := strings.Cut(a.id, ".")
	ctx, cancel := context.WithTimeout(a.l.ctx, askTime)
	defer cancel()
	answers := make(chan bool, maxAsked)
	asked := 0
	for _, s := range a.w.others(a.l.ctx) {
		if _, err := a.task.Limits.within(s.Max); err == nil && slices.Contains(s.Classes, class) && s.takes(a.task) && asked < maxAsked {
			asked++
			go func() { answers <- len(a.w.q.ask(ctx, class, s.Name, a.id)) > 0 }()
		}
	}
	for range asked {
		if <-answers {
			return true
		}
	}
	return false
}

// maxAsked is how many workers are asked at once.
const maxAsked = 64
