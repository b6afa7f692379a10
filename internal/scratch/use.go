//go:build linux

package scratch

import (
	"errors"
	"sync"
)

// purpose is what a scratch is for. One that takes the changes of a root must not be within reach
// of another run, which could put links into it.
type purpose struct {
	mu    sync.Mutex
	kind  kind
	live  bool          // a run has it for its root
	clear chan struct{} // closed when the last such run's mounts are gone
}

type kind int

const (
	unused kind = iota
	forFiles
	forRoot
)

// Use decides that the scratch is for files or for a root, and fails if it is for the other
// already.
func (s *Scratch) Use(root bool) error {
	want := forFiles
	if root {
		want = forRoot
	}
	u := &s.purpose
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.kind == unused:
		u.kind = want
	case u.kind != want && root:
		return errors.New("the scratch has files: it can't take the changes of a root")
	case u.kind != want:
		return errors.New("the scratch takes the changes of a root: it can't be mounted")
	}
	return nil
}

// BeginRun gives the scratch to a run as its root, once the mounts of the one before are gone. It
// fails if that one has not ended.
func (s *Scratch) BeginRun() error {
	u := &s.purpose
	u.mu.Lock()
	if u.live {
		u.mu.Unlock()
		return errors.New("the scratch is the root of another run, which has not ended")
	}
	u.live = true
	before := u.clear
	u.clear = make(chan struct{})
	u.mu.Unlock()
	if before != nil {
		<-before
	}
	return nil
}

// EndRun takes the scratch back from the run. The function that it returns must be called when the
// run's mounts are gone.
func (s *Scratch) EndRun() (gone func()) {
	u := &s.purpose
	u.mu.Lock()
	defer u.mu.Unlock()
	u.live = false
	clear := u.clear
	return func() { close(clear) }
}
