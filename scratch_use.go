package sandbox

import (
	"errors"
	"sync"
)

// scratchUse is what a scratch is for. What takes the changes of a root must not be within reach of another run, which could put links into it.
type scratchUse struct {
	mu    sync.Mutex
	kind  scratchKind
	live  bool          // a run has it for its root
	clear chan struct{} // closed when the last such run's mounts are gone
}

type scratchKind int

const (
	unused scratchKind = iota
	forFiles
	forRoot
)

// as makes the scratch one for files or for a root, unless it is the other.
func (u *scratchUse) as(root bool) error {
	kind := forFiles
	if root {
		kind = forRoot
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.kind == unused:
		u.kind = kind
	case u.kind != kind && root:
		return errors.New("the scratch has files: it can't take the changes of a root")
	case u.kind != kind:
		return errors.New("the scratch takes the changes of a root: it can't be mounted")
	}
	return nil
}

// beginRun gives the scratch to a run as its root, once the mounts of the one before are gone.
func (u *scratchUse) beginRun() error {
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

// endRun takes it back. What it returns is called when the run's mounts are gone.
func (u *scratchUse) endRun() (gone func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.live = false
	clear := u.clear
	return func() { close(clear) }
}
