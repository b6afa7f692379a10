//go:build linux

package run

import (
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// watch is the limits of a run that no cgroup enforces.
type watch struct {
	mu      sync.Mutex
	ended   bool
	timeout *time.Timer   // nil for none
	cpu     chan struct{} // closed when the CPU time is watched no more, nil while it is not
}

// watchLimits watches the limits of the given description in place of those before. It reports
// false if the run has been ended by one of these, or its end has been seen.
func (r *Run) watchLimits(c *spec.Spec) bool {
	w := &r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended || w.timeout != nil && !w.timeout.Stop() {
		w.ended = true
		return false
	}
	w.timeout = nil
	if limit := c.Supervision.Timeout; limit != 0 {
		w.timeout = time.AfterFunc(limit-time.Since(r.started), func() { r.ask(fault.TimedOut) })
	}
	if w.cpu != nil {
		close(w.cpu)
		w.cpu = nil
	}
	if limit := c.Limits.CPUTime; limit > 0 {
		w.cpu = make(chan struct{})
		go r.watchCPU(limit, busyCPUs(&c.Limits), w.cpu)
	}
	return true
}

// unwatch ends that.
func (r *Run) unwatch() {
	w := &r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.timeout != nil {
		w.timeout.Stop()
	}
	if w.cpu != nil {
		close(w.cpu)
		w.cpu = nil
	}
}

// watchCPU kills the run when it has used its CPU time. It looks again at the earliest time at
// which that could happen, with as many CPUs busy as the run can have.
func (r *Run) watchCPU(limit time.Duration, cpus int, stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		used, err := r.group.CPU()
		switch {
		case err != nil: // out of descriptors, say; the limit holds all the same
			timer.Reset(10 * time.Millisecond)
		case used >= limit:
			r.killUnless(stop)
			return
		default:
			timer.Reset(max((limit-used)/time.Duration(cpus), time.Millisecond))
		}
	}
}

// killUnless kills the run for its CPU time, unless that has another limit by now.
func (r *Run) killUnless(stop <-chan struct{}) {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	select {
	case <-stop:
	default:
		r.kill(fault.CPUTimedOut)
	}
}
