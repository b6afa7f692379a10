//go:build linux

package run

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
)

// refusals answers the calls that the filter of a run refuses, with what the filter says, and tells
// of them. All that comes from the run is hostile: it may make any call, with any arguments, as
// often as it can, and end at any time.
type refusals struct {
	security spec.Security
	filter   *seccomp.Filter

	mu        sync.Mutex
	listeners map[*os.File]struct{} // of the run's command, and of further ones
	closed    bool
	seen      map[refusal]bool
	untold    []told
	pace      pace
	tell      func(spec.Refusal) // nil until the command is known
	telling   chan struct{}      // closed when all has been told, nil while nothing is
}

// refusal is what is told of once.
type refusal struct {
	call  string
	errno unix.Errno
}

// told is a refusal with the first call that met it.
type told struct {
	refusal
	first seccomp.Call
	comm  string
	pid   int
}

const (
	maxRefusals  = 256  // are told of
	quickAnswers = 1000 // to a run, and as many per second
)

func newRefusals(s *spec.Security) (*refusals, error) {
	filter, err := compile.Filter(s)
	if err != nil {
		return nil, err
	}
	return &refusals{security: *s, filter: filter, listeners: map[*os.File]struct{}{}, seen: map[refusal]bool{}, pace: pace{credit: quickAnswers}}, nil
}

// adoptListener begins to answer a listener that came with an event.
func (r *clone) adoptListener(f *os.File) error {
	var name string
	raw, err := f.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	}
	if r.refused == nil || name != "anon_inode:seccomp notify" {
		f.Close()
		return fmt.Errorf("no listener came with an event %v, but %q (%w)", program.Listener, name, err)
	}
	r.refused.add(f)
	return nil
}

func (r *refusals) add(listener *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		listener.Close()
		return
	}
	r.listeners[listener] = struct{}{}
	go r.answer(listener)
}

// close ends all answers, once nothing of the run lives any more.
func (r *refusals) close() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.closed = true
	all := slices.Collect(maps.Keys(r.listeners))
	r.mu.Unlock()
	closeFiles(all) // which waits for who uses them, and maybe for the lock
}

// answer answers a listener until no process has its filter any more.
func (r *refusals) answer(listener *os.File) {
	defer func() {
		listener.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.listeners, listener)
	}()
	raw, err := listener.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n seccomp.Notification
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, failed = seccomp.Receive(int(fd))
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		switch {
		case err != nil, failed != nil && failed != unix.ENOENT:
			return
		case failed != nil: // its thread has gone on or ended
			r.slow()
			continue
		}
		errno := r.filter.Errno(n.Call)
		_ = raw.Control(func(fd uintptr) {
			r.note(int(fd), n, errno)
			r.slow()
			// Or its thread has gone on or ended.
			_ = seccomp.Refuse(int(fd), n.ID, errno)
		})
	}
}

// slow waits until the next answer may be given.
func (r *refusals) slow() {
	r.mu.Lock()
	wait := r.pace.next(time.Now())
	r.mu.Unlock()
	time.Sleep(wait)
}

// pace is how fast a run is answered.
type pace struct {
	credit float64
	at     time.Time
}

// next returns how long the next answer waits.
func (p *pace) next(now time.Time) time.Duration {
	p.credit = min(quickAnswers, p.credit+now.Sub(p.at).Seconds()*quickAnswers) - 1
	p.at = now
	if p.credit >= 0 {
		return 0
	}
	return time.Duration(-p.credit * float64(time.Second) / quickAnswers)
}

// note keeps what is to be told of a call that waits for its answer.
func (r *refusals) note(listener int, n seccomp.Notification, errno unix.Errno) {
	what := refusal{n.Call.Name(), errno}
	r.mu.Lock()
	known := r.seen[what] || len(r.seen) >= maxRefusals
	r.mu.Unlock()
	if known {
		return
	}
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.Thread))
	if !seccomp.Waits(listener, n.ID) {
		// A signal came first: the call is made again or was not refused, and comm may be
		// another's.
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.seen[what] {
		r.seen[what] = true
		r.untold = append(r.untold, told{what, n.Call, string(bytes.TrimSuffix(comm, []byte("\n"))), int(n.Thread)})
		r.beginTelling()
	}
}

// tellTo has f told of what was refused, and of what will be.
func (r *refusals) tellTo(f func(spec.Refusal)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = f
	r.beginTelling()
}

// beginTelling starts what tells, if it is needed. r.mu must be held.
func (r *refusals) beginTelling() {
	if r.tell != nil && r.telling == nil && len(r.untold) > 0 {
		r.telling = make(chan struct{})
		go r.tellAll()
	}
}

// tellAll tells until nothing is left. No lock is held while the caller is told.
func (r *refusals) tellAll() {
	for {
		r.mu.Lock()
		if len(r.untold) == 0 {
			close(r.telling)
			r.telling = nil
			r.mu.Unlock()
			return
		}
		next, tell := r.untold[0], r.tell
		r.untold = r.untold[1:]
		r.mu.Unlock()
		tell(r.explain(next))
	}
}

// finish waits until all has been told, as long as the delay allows: 0 is without a limit.
func (r *refusals) finish(delay time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	all := r.telling
	r.mu.Unlock()
	var late <-chan time.Time
	if delay != 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		late = timer.C
	}
	if all != nil {
		select {
		case <-all:
		case <-late:
		}
	}
}

// explain finds the option with which the filter would let a call pass.
func (r *refusals) explain(t told) spec.Refusal {
	s := &r.security
	e := spec.Refusal{Call: t.call, Errno: t.errno, Option: "WithSeccomp", Comm: t.comm, PID: t.pid}
	allows := func(capabilities []string, setID bool) bool {
		f, err := seccomp.CachedDefault(capabilities, setID)
		return err == nil && f.Allows(t.first)
	}
	if s.Seccomp != nil {
		return e
	}
	if !s.SetID && allows(s.Capabilities, true) {
		e.Option = "WithSetID"
		return e
	}
	for _, name := range spec.GivenCapabilities() {
		if !slices.Contains(s.Capabilities, name) && allows(append(slices.Clip(s.Capabilities), name), s.SetID) {
			e.Option, e.Capability = "WithCapabilities", name
			break
		}
	}
	return e
}
