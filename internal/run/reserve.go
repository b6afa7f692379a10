//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// prepared is the handle on a reserve that sandboxes share. When none of them is left, it is
// garbage collected, and the runs end.
type prepared struct{ *reserve }

// reserve has the runs that wait for a command. Nothing that it refers to may refer to a prepared
// or a Sandbox: that would never be collected.
type reserve struct {
	engine *Engine
	config spec.Spec

	mu      sync.Mutex
	starts  int
	waiting []*clone // the oldest first
	idle    *time.Timer
	filling *filling // nil while no run is being prepared
	closed  bool
}

// filling is the work of one goroutine that prepares runs for a reserve.
type filling struct {
	from recipe
	now  chan struct{} // closed when a caller waits for it
	once sync.Once
	took time.Duration // how long the last run took
	done chan struct{} // closed at its end
	err  error         // why it stopped early
}

// hurry makes it go on without pauses.
func (f *filling) hurry() { f.once.Do(func() { close(f.now) }) }

// preparedIdle is how long an unused reserve is kept.
const preparedIdle = time.Minute

// preparePause is the shortest pause before a run is prepared: a run that was just started has
// ended by then, or is well on its way.
const preparePause = 5 * time.Millisecond

// newPrepared returns nil if nothing is to be prepared.
func newPrepared(s *Sandbox) *prepared {
	if s.Spec.Place.Prepared <= 0 {
		return nil
	}
	v := &reserve{engine: s.engine, config: s.Spec}
	v.config.Streams = spec.Streams{}
	p := &prepared{v}
	runtime.AddCleanup(p, (*reserve).close, v)
	return p
}

// take returns a waiting run that is the same as one prepared now would be, or nil. From the second
// call on it begins to prepare what is missing: for a sandbox that is derived for a single run this
// would be in vain.
func (p *prepared) take(from recipe) (found *clone) {
	if p == nil {
		return nil
	}
	v := p.reserve
	v.mu.Lock()
	defer v.mu.Unlock()
	for found == nil && len(v.waiting) > 0 {
		r := v.waiting[0]
		v.waiting = v.waiting[1:]
		if r.cell == from.cell && r.plan == from.plan && r.sources == from.sources && r.conn.Quiet() {
			found = r
		} else {
			go r.abandon()
		}
	}
	if v.starts++; v.starts > 1 {
		v.fill(from)
	}
	return found
}

// fill begins to prepare what is missing, unless that is under way. v.mu must be held.
func (v *reserve) fill(from recipe) *filling {
	if v.idle == nil {
		v.idle = time.AfterFunc(preparedIdle, func() { v.drop(nil) })
		v.register()
	}
	v.idle.Reset(preparedIdle)
	if v.filling == nil {
		v.discard(func(r *clone) bool { return r.cell != from.cell }) // it was lost
		v.filling = &filling{from: from, now: make(chan struct{}), done: make(chan struct{})}
		go v.work(v.filling)
	}
	return v.filling
}

// soon fills without pauses.
func (v *reserve) soon(from recipe) *filling {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.fill(from)
	f.hurry()
	return f
}

func (v *reserve) work(f *filling) {
	for v.goOn(f) {
		r, err := f.prepare(&v.config)
		v.mu.Lock()
		switch {
		case err != nil:
			f.err = err
		case v.closed:
			go r.abandon()
		default:
			v.waiting = append(v.waiting, r)
		}
		v.mu.Unlock()
	}
}

// goOn reports whether there is more to prepare. If not, f has ended.
func (v *reserve) goOn(f *filling) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed && f.err == nil && len(v.waiting) < v.config.Place.Prepared {
		return true
	}
	v.filling = nil
	close(f.done)
	return false
}

// prepare prepares the next run, after a pause that leaves the machine to others.
func (f *filling) prepare(c *spec.Spec) (*clone, error) {
	f.from.engine.preparing.Lock()
	defer f.from.engine.preparing.Unlock()
	select {
	case <-time.After(max(f.took, preparePause)):
	case <-f.now:
	}
	begun := time.Now()
	defer func() { f.took = time.Since(begun) }()
	src, err := findSources(f.from.plan)
	if err != nil {
		return nil, err
	}
	f.from.sources = src
	r, err := f.from.prepare(context.Background(), c)
	if err != nil {
		return nil, err
	}
	if err := r.follow(context.Background(), program.Waiting); err != nil {
		r.abandon()
		return nil, err
	}
	if r.group != nil {
		r.group.Keep()
	}
	return r, nil
}

// drop ends the runs that wait in the cell, or all if c is nil.
func (v *reserve) drop(c *cell.Cell) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.discard(func(r *clone) bool { return c == nil || r.cell == c })
}

// discard ends the waiting runs that useless is true of. v.mu must be held.
func (v *reserve) discard(useless func(*clone) bool) {
	v.waiting = slices.DeleteFunc(v.waiting, func(r *clone) bool {
		gone := useless(r)
		if gone {
			go r.abandon()
		}
		return gone
	})
}

// register adds the reserve to the engine's, whose runs are dropped when their cell ends, and to
// its pool's, which ends it, until close.
func (v *reserve) register() {
	v.engine.reserves.add(v)
	if p := v.config.Limits.Pool; p != nil {
		p.Made(spec.PreparedRuns, v, func() error { v.end(); return nil })
	}
}

// close ends the runs that wait and those that are still to come. It is called when no sandbox has
// the reserve any more.
func (v *reserve) close() {
	v.mu.Lock()
	v.closed = true
	if v.idle != nil {
		v.idle.Stop()
	}
	v.mu.Unlock()
	v.drop(nil)
	v.engine.reserves.remove(v)
	if p := v.config.Limits.Pool; p != nil {
		p.Gone(spec.PreparedRuns, v)
	}
}

// end closes the reserve and waits until nothing is prepared any more. Runs that waited may still
// be about to end.
func (v *reserve) end() {
	v.close()
	v.mu.Lock()
	f := v.filling
	v.mu.Unlock()
	if f != nil {
		f.hurry()
		<-f.done
	}
}

// Waiting returns the processes that wait for a command.
func (s *Sandbox) Waiting() (pids []int) {
	if s.prepared == nil {
		return nil
	}
	s.prepared.mu.Lock()
	defer s.prepared.mu.Unlock()
	for _, r := range s.prepared.waiting {
		pids = append(pids, r.pid)
	}
	return pids
}

// Prepare waits until all runs that WithPrepared asks for are prepared.
func (s *Sandbox) Prepare(ctx context.Context) error {
	if len(s.Spec.Command.Argv) == 0 {
		c := s.Spec.Clone()
		c.Command.Argv, c.Command.Missing = []string{"any"}, nil // a start has its own
		s = s.With(c)
	}
	if err := s.check(); err != nil {
		return err
	}
	if s.prepared == nil {
		return fault.Option("WithPrepared", "is missing: it says how many runs Prepare prepares")
	}
	c, err := s.engine.Cell(&s.Spec)
	if err != nil {
		return err
	}
	from, err := s.recipe(c)
	if err != nil {
		return err
	}
	f := s.prepared.soon(from)
	select {
	case <-ctx.Done():
		return fmt.Errorf("sandbox: Prepare: %w", fault.Ended(ctx))
	case <-f.done:
	}
	if f.from.cell != from.cell {
		return s.Prepare(ctx) // it was for a cell that has ended since
	}
	if errors.Is(f.err, cell.ErrLost) {
		return fmt.Errorf("sandbox: %w (%w)", fault.ErrCellLost, f.err)
	}
	runtime.KeepAlive(s)
	return f.err
}
