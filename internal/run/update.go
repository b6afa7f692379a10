//go:build linux

package run

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/spec"
)

// updates is what Update has changed of a run.
type updates struct {
	mu     sync.Mutex                // held while limits change
	now    atomic.Pointer[spec.Spec] // nil while nothing has changed
	limits limits.Spec               // of the cgroup, then
}

// Update changes limits of the run, or the timeout of a further command. set applies the options.
func (r *Run) Update(set func(*spec.Spec)) error {
	u := &r.updates
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now.Load() == nil {
		u.limits = r.clone.limits
	}
	want, err := r.current().Update(set, r.in != nil)
	if err == nil && r.guest != nil && r.in == nil {
		err = errors.Join(want.CheckGuest()...)
	}
	if err != nil {
		return err
	}
	if r.ends() {
		return os.ErrProcessDone
	}
	group := u.limits
	if r.in == nil {
		if group, err = r.updateGroup(want); err != nil {
			return err
		}
	}
	// Nothing was wrong with it: only the end of the run can come first.
	if !r.watchLimits(want) {
		return os.ErrProcessDone
	}
	u.limits = group
	u.now.Store(want)
	return nil
}

// current returns the run's description with the limits of now.
func (r *Run) current() *spec.Spec {
	if now := r.updates.now.Load(); now != nil {
		return now
	}
	return r.spec
}

// ends reports whether the run has ended, or is made to.
func (r *Run) ends() bool {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.ending || r.state.killed || r.state.asked || r.state.over
}

// updateGroup changes what the cgroup enforces, and returns it.
func (r *Run) updateGroup(want *spec.Spec) (limits.Spec, error) {
	u := &r.updates
	added := want.Limits
	added.IO = added.IO[len(r.current().Limits.IO):] // what was there may have lost its path
	group, err := enforceable(&added, r.cell)
	if err == nil {
		group.IO = merge(u.limits.IO, group.IO)
		if r.group != nil {
			err = r.cell.Limits.Update(r.group, u.limits, group)
		}
	}
	var setup *fault.SetupError
	if errors.As(err, &setup) {
		err = setup.Err
	}
	switch {
	case err == nil:
		return group, nil
	case r.ends():
		return group, os.ErrProcessDone
	}
	var option *fault.OptionError
	if errors.As(err, &option) {
		return group, err
	}
	return group, &fault.SetupError{Stage: "Update", Err: err}
}

// merge returns the limits with others added, which replace those of the same devices.
func merge(have, others []limits.IO) []limits.IO {
	all := slices.Clone(have)
	for _, io := range others {
		all = slices.DeleteFunc(all, func(o limits.IO) bool { return o.Major == io.Major && o.Minor == io.Minor })
		all = append(all, io)
	}
	return all
}
