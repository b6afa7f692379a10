//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
)

// Pausing can take long, and a run may be killed, time out or end meanwhile. So Pause and Resume
// exclude each other by a lock of their own, and what ends a run only thaws it, which makes a
// freeze that is under way give up.

// pausing is what Pause and Resume work on.
type pausing struct {
	mu      sync.Mutex
	unguard func() // of a paused run; see guard
}

// freezeTimeout is for processes that the kernel can't stop at once, because they wait for a
// device.
const freezeTimeout = 10 * time.Second

// Pause freezes the run until Resume.
func (r *Run) Pause() error {
	if r.in != nil {
		return r.in.Pause()
	}
	if err := r.noGuest("Pause"); err != nil {
		return err
	}
	r.pausing.mu.Lock()
	defer r.pausing.mu.Unlock()
	missing := r.cell.LimitsErr
	if r.group != nil {
		missing = r.cell.Tree.MissingFreeze()
	}
	if missing != nil {
		if !r.setPaused(false) {
			return os.ErrProcessDone
		}
		return &fault.SetupError{Stage: "Pause", Err: missing}
	}
	if !r.setPaused(true) {
		return os.ErrProcessDone
	}
	err := r.freeze()
	alive := r.setPaused(err == nil)
	if alive && err == nil {
		return nil
	}
	thawErr := r.group.Thaw()
	r.dropGuard()
	if !alive { // it was killed or ended meanwhile, maybe before there was anything to thaw
		return os.ErrProcessDone
	}
	return errors.Join(err, thawErr)
}

// setPaused records paused and reports whether the run is still alive.
func (r *Run) setPaused(paused bool) bool {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	ending := r.state.ending || r.state.killed || r.state.over
	r.state.paused = paused && !ending
	return !ending
}

func (r *Run) freeze() error {
	if err := r.guard(); err != nil {
		return &fault.SetupError{Stage: "Pause", Err: err}
	}
	ctx, cancel := context.WithTimeout(context.Background(), freezeTimeout)
	defer cancel()
	if err := r.group.Freeze(ctx); err != nil {
		return fmt.Errorf("sandbox: pause: %w", err)
	}
	return nil
}

// guard makes sure that the run can die if this process does while the run is paused: on cgroup v1
// another process must thaw it first.
func (r *Run) guard() error {
	if r.pausing.unguard != nil {
		return nil
	}
	f, err := r.group.ThawFile()
	if f == nil || err != nil {
		return err
	}
	defer f.Close()
	r.pausing.unguard, err = r.cell.AtEnd(f, limits.Thawed)
	return err
}

// Resume lets a paused run go on.
func (r *Run) Resume() error {
	if r.in != nil {
		return r.in.Resume()
	}
	r.pausing.mu.Lock()
	defer r.pausing.mu.Unlock()
	if r.isOver() {
		return os.ErrProcessDone
	}
	if !r.isPaused() {
		return nil
	}
	if err := r.group.Thaw(); err != nil {
		return fmt.Errorf("sandbox: resume: %w", err)
	}
	r.dropGuard()
	r.setPaused(false)
	return nil
}

func (r *Run) isPaused() bool {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.paused
}

// letEnd lets a paused run die, because its command has ended or its cell ends, and keeps it from
// being paused again.
func (r *Run) letEnd() {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.state.ending = true
	if r.state.paused {
		_ = r.group.Thaw()
		r.state.paused = false
	}
}

// dropGuard ends the guard, if there is one.
func (r *Run) dropGuard() {
	if r.pausing.unguard != nil {
		r.pausing.unguard()
		r.pausing.unguard = nil
	}
}

// dropLastGuard is for a run of which nothing lives any more. It does not wait for a Pause that is
// under way.
func (r *Run) dropLastGuard() {
	if r.pausing.mu.TryLock() {
		defer r.pausing.mu.Unlock()
		r.dropGuard()
		return
	}
	go func() {
		r.pausing.mu.Lock()
		defer r.pausing.mu.Unlock()
		r.dropGuard()
	}()
}
