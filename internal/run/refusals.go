//go:build linux

package run

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
)

// refusals answers the calls that the filter of a run asks about, with what the filter says, and
// reports those that are refused, and what will be missing or denied at the paths of the others.
// All that comes from the run is hostile: it may make any call, with any arguments, as often as it
// can, and end at any time.
type refusals struct {
	security spec.Security
	root     spec.Root
	filter   *seccomp.Filter

	mu        sync.Mutex
	listeners map[*os.File]struct{} // of the run's command, and of further ones
	closed    bool
	seen      map[refusal]bool
	paths     int // of those seen
	pending   []reported
	refused   pace
	passed    pace
	report    func(spec.Refusal) // nil until the command is known
	reporting chan struct{}      // closed when all has been reported, nil while nothing is
	reported  int                // paths
}

// refusal is what is reported once.
type refusal struct {
	call    string // "" for a path
	outcome        // without a path for a call that the filter refuses
}

// reported is a refusal with the first call that met it.
type reported struct {
	refusal
	first seccomp.Call
	comm  string
	pid   int
}

const (
	maxRefusals = 256  // are reported, and as many paths
	maxPaths    = 2048 // are looked for on this machine, of up to PATH_MAX bytes

	quickRefusals = 1000 // to a run, and as many per second

	// Looks at paths are measured in how long they keep a CPU busy, as the run decides how
	// much there is to look at: for so long at once, and for so much of each second.
	quickLooks = time.Second
	lookShare  = 0.25
	lookAtom   = 50 * time.Microsecond // and at least so long each, with the answer
)

func newRefusals(c *spec.Spec) (*refusals, error) {
	filter, err := compile.Filter(&c.Security)
	if err != nil {
		return nil, err
	}
	return &refusals{security: c.Security, root: c.Root, filter: filter, listeners: map[*os.File]struct{}{}, seen: map[refusal]bool{},
		refused: pace{most: quickRefusals, rate: quickRefusals}, passed: pace{most: quickLooks.Seconds(), rate: lookShare}}, nil
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
			return failed != unix.EAGAIN
		})
		switch {
		case err != nil || failed == unix.ENOTCONN:
			return
		case failed != nil: // its thread has gone on or ended, or there is no memory for it
			r.slow(&r.refused, 1)
			continue
		}
		r.decide(raw, n)
	}
}

// decide answers a call by what the filter returns for it, and nothing else: what is looked up for
// the report the process may change before the call is made.
func (r *refusals) decide(raw syscall.RawConn, n seccomp.Notification) {
	pass := r.filter.Decide(n.Call) == unix.SECCOMP_RET_ALLOW
	pace, cost, met := &r.refused, 1.0, reported{first: n.Call, pid: int(n.Thread)}
	if pass {
		took := busy(func() { met.outcome = r.foresee(n) })
		pace, cost = &r.passed, max(took, lookAtom).Seconds()
	} else {
		met.call, met.errno = n.Call.Name(), r.filter.Errno(n.Call)
	}
	isNew := met.errno != 0 && r.isNew(met.refusal)
	if isNew {
		comm, _ := os.ReadFile(procFile(n.Thread, "comm"))
		met.comm = string(bytes.TrimSuffix(comm, []byte("\n")))
	}
	r.slow(pace, cost)
	_ = raw.Control(func(fd uintptr) {
		// If the call does not wait any more, a signal came first: it is made again, or was
		// of another thread with that number.
		if isNew && seccomp.Waits(int(fd), n.ID) {
			r.note(met)
		}
		// Or its thread has gone on or ended.
		if pass {
			_ = seccomp.Continue(int(fd), n.ID)
		} else {
			_ = seccomp.Refuse(int(fd), n.ID, met.errno)
		}
	})
}

// foresee returns what a call will end with at its path, if there may be more to report. Whether it
// looks, which the run can find out from how long that takes, does not depend on what has been
// reported, and thus not on what this machine has.
func (r *refusals) foresee(n seccomp.Notification) (o outcome) {
	r.mu.Lock()
	enough := r.paths >= maxPaths
	r.mu.Unlock()
	if n.Thread == 0 || enough {
		return o
	}
	return foresee(n.Thread, n.Call)
}

// busy returns how long a function keeps a CPU busy.
func busy(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var from, to unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &from)
	f()
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &to)
	return time.Duration(to.Nano() - from.Nano())
}

// slow waits until the next answer may be given, which costs so much.
func (r *refusals) slow(p *pace, cost float64) {
	r.mu.Lock()
	wait := p.next(time.Now(), cost)
	r.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
}

// pace is how fast a run is answered: for so much at once, and so much per second.
type pace struct {
	most, rate, credit float64
	at                 time.Time
}

// next returns how long the next answer waits.
func (p *pace) next(now time.Time, cost float64) time.Duration {
	p.credit = min(p.most, p.credit+now.Sub(p.at).Seconds()*p.rate) - cost
	p.at = now
	if p.credit >= 0 {
		return 0
	}
	return time.Duration(-p.credit * float64(time.Second) / p.rate)
}

// isNew reports whether a refusal has not been met, and is still to be reported.
func (r *refusals) isNew(met refusal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.seen[met] && (met.call == "" || len(r.seen)-r.paths < maxRefusals)
}

// note keeps what is to be reported.
func (r *refusals) note(met reported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[met.refusal] {
		return
	}
	r.seen[met.refusal] = true
	if met.call == "" {
		r.paths++
	}
	r.pending = append(r.pending, met)
	r.beginReports()
}

// reportTo has f called for what was refused, and for what will be.
func (r *refusals) reportTo(f func(spec.Refusal)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report = f
	r.beginReports()
}

// beginReports starts reportAll, if it is needed. r.mu must be held.
func (r *refusals) beginReports() {
	if r.report != nil && r.reporting == nil && len(r.pending) > 0 {
		r.reporting = make(chan struct{})
		go r.reportAll()
	}
}

// reportAll reports until nothing is left. No lock is held while the caller's function runs. What
// takes a look at this machine is done here, and not before a call is answered, so that the run
// can't find out from how long that takes what this machine has.
func (r *refusals) reportAll() {
	for {
		r.mu.Lock()
		if len(r.pending) == 0 {
			close(r.reporting)
			r.reporting = nil
			r.mu.Unlock()
			return
		}
		next, report := r.pending[0], r.report
		r.pending = r.pending[1:]
		isPath := next.call == ""
		enough := isPath && r.reported >= maxRefusals
		r.mu.Unlock()
		if enough {
			continue
		}
		if e, worth := r.explain(next); worth {
			if isPath {
				r.mu.Lock()
				r.reported++
				r.mu.Unlock()
			}
			report(e)
		}
	}
}

// finish waits until all has been reported, as long as the delay allows: 0 is without a limit.
func (r *refusals) finish(delay time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	all := r.reporting
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

// explain finds the option with which a call would not be refused, or end otherwise, and whether
// that is worth reporting.
func (r *refusals) explain(met reported) (e spec.Refusal, worth bool) {
	e = spec.Refusal{Call: met.first.Name(), Path: met.path, Errno: met.errno, Comm: met.comm, PID: met.pid}
	if met.call == "" {
		e.Option, worth = optionFor(&r.root, met.outcome)
		return e, worth
	}
	e.Option, e.Capability = r.optionForCall(met.first)
	return e, true
}

// optionForCall finds the option with which the filter would let a call pass, and the capability
// that is its value.
func (r *refusals) optionForCall(c seccomp.Call) (option, capability string) {
	s := &r.security
	allows := func(capabilities []string, setID bool) bool {
		f, err := seccomp.CachedDefault(capabilities, setID)
		return err == nil && f.Allows(c)
	}
	if s.Seccomp != nil {
		return "WithSeccomp", ""
	}
	if !s.SetID && allows(s.Capabilities, true) {
		return "WithSetID", ""
	}
	for _, name := range spec.GivenCapabilities() {
		if !slices.Contains(s.Capabilities, name) && allows(append(slices.Clip(s.Capabilities), name), s.SetID) {
			return "WithCapabilities", name
		}
	}
	return "WithSeccomp", ""
}
