package queue

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// puller gets tasks for the free slots of a worker: those of a higher priority first, and of one
// priority and class each lane's in turn. Where none waits, a request for one stands at each lane
// that is in use, so that a new task goes to one idle worker, and at once. More may come than there
// are slots; those go back.
type puller struct {
	w       *Worker
	group   *sync.WaitGroup
	shelves []*shelf
	lanes   map[string]bool // that the worker may ask
	known   sync.Map        // class.route to *source, of lanes that were in use
	arrived chan pulled
	notes   chan note
}

// shelf is the tasks of a class and priority.
type shelf struct {
	class    string
	priority Priority
	lanes    []*source
	last     *source // that gave something
}

// source is a lane of a shelf.
type source struct {
	class, route string
	always       bool        // the lane without a name
	active       atomic.Bool // it may have tasks
	// The last standing request was answered: servers may forbid them.
	answers atomic.Bool
	stand   chan struct{} // asks for a standing request
	full    atomic.Int64  // by clockNow: not asked before, as its first task does not fit
}

// note says that a lane has a task.
type note struct{ class, route string }

// pulled is a message, when, by clockNow, it was asked for, as its lease can't have begun earlier,
// for how long it was given out, and from where.
type pulled struct {
	m     jetstream.Msg
	asked time.Duration
	lease time.Duration
	from  *source
}

const (
	// standing is about how long a request stands, in which a worker that is to end waits for
	// its end: what came for a request that was given up would be lost until its lease is.
	standing = 500 * time.Millisecond
	// A lane that had nothing for laneIdle is asked no more until it has a task. What says so
	// may get lost, so a worker looks at all lanes every laneScan.
	laneIdle = 10 * time.Second
	laneScan = time.Minute
)

func newPuller(w *Worker, group *sync.WaitGroup) *puller {
	p := &puller{w: w, group: group, lanes: map[string]bool{}, arrived: make(chan pulled), notes: make(chan note, 256)}
	for _, lane := range lanesFor(w.build, w.services.IsValid()) {
		p.lanes[lane] = true
	}
	for _, priority := range priorities {
		for _, class := range w.classes {
			base := &source{class: class, route: route(priority, ""), always: true, stand: make(chan struct{}, 1)}
			base.answers.Store(true)
			p.shelves = append(p.shelves, &shelf{class: class, priority: priority, lanes: []*source{base}})
		}
	}
	return p
}

// announced is called for each task that is stored, in a class of the worker.
func (p *puller) announced(m *nats.Msg) {
	class, route, _ := strings.Cut(p.w.q.idOf("new", m.Subject), ".")
	if _, lane, _ := strings.Cut(route, "-"); !p.lanes[lane] {
		return // the lane without a name, which is always asked, or one for others
	}
	if l, ok := p.known.Load(class + "." + route); ok && l.(*source).active.Load() {
		return
	}
	p.note(note{class, route})
}

// note has a lane looked at. If there are too many at once, look finds the lane later.
func (p *puller) note(n note) {
	select {
	case p.notes <- n:
	default:
	}
}

// look notes the lanes that are in use, now and then, and when the connection had been lost.
func (p *puller) look(ctx context.Context) {
	for ctx.Err() == nil {
		begun, connections := clockNow(), p.w.q.nc.Stats().Reconnects
		for _, class := range p.w.classes {
			for _, priority := range priorities {
				for lane := range p.lanes {
					if used, err := p.w.q.inUse(ctx, class, route(priority, lane)); err == nil && used {
						p.note(note{class, route(priority, lane)})
					}
				}
			}
		}
		for ctx.Err() == nil && clockNow() < begun+laneScan && p.w.q.nc.Stats().Reconnects == connections {
			pause(ctx, time.Second)
		}
	}
}

func (p *puller) run(ctx context.Context) {
	for _, s := range p.shelves {
		for _, l := range s.lanes {
			p.group.Go(func() { p.standAt(ctx, l) })
		}
	}
	p.group.Go(func() { p.look(ctx) })
	for ctx.Err() == nil {
		if p.w.free() > 0 {
			if p.pass(ctx) {
				continue
			}
			for _, s := range p.shelves {
				for _, l := range s.ready() {
					l.ask()
				}
			}
		}
		select {
		case m := <-p.arrived:
			p.start(ctx, m)
		case <-p.w.freed:
		case <-p.w.budget.room:
			for _, s := range p.shelves {
				for _, l := range s.lanes {
					l.full.Store(0)
				}
			}
		case n := <-p.notes:
			p.wake(ctx, n)
		case <-time.After(fullFor): // lanes that were full
		case <-ctx.Done():
		}
	}
}

// wake has a lane asked from now on.
func (p *puller) wake(ctx context.Context, n note) {
	key := n.class + "." + n.route
	if l, ok := p.known.Load(key); ok {
		l.(*source).active.Store(true)
		return
	}
	l := &source{class: n.class, route: n.route, stand: make(chan struct{}, 1)}
	l.active.Store(true)
	l.ask() // also if no slot is free: it must have answered before pass asks it
	name, _, _ := strings.Cut(n.route, "-")
	for _, s := range p.shelves {
		if s.class == n.class && s.priority.String() == name {
			s.lanes = append(s.lanes, l)
			p.known.Store(key, l)
			p.group.Go(func() { p.standAt(ctx, l) })
			return
		}
	}
}

// ready returns the lanes that are to be asked: first the one after that which gave something last.
func (s *shelf) ready() (lanes []*source) {
	first := 0
	for i, l := range s.lanes {
		if l == s.last {
			first = i + 1
		}
	}
	for i := range s.lanes {
		if l := s.lanes[(first+i)%len(s.lanes)]; l.ready() {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func (l *source) ready() bool {
	return (l.always || l.active.Load()) && clockNow() >= time.Duration(l.full.Load())
}

func (l *source) ask() {
	select {
	case l.stand <- struct{}{}:
	default:
	}
}

// pass asks for tasks that wait until there are none or no slot is free, and reports whether there
// were any. It waits for the answers, so it asks no lane that may give none.
func (p *puller) pass(ctx context.Context) (got bool) {
	for _, s := range p.shelves {
		silent := func(l *source) bool { return !l.answers.Load() }
		for lanes := slices.DeleteFunc(s.ready(), silent); len(lanes) > 0; {
			var more []*source
			for i, l := range lanes {
				n := p.w.free()
				if n == 0 {
					return true
				}
				share := (n + len(lanes) - i - 1) / (len(lanes) - i)
				given := p.fetch(ctx, l, share)
				if given > 0 {
					got, s.last = true, l
				}
				if given == share && l.ready() {
					more = append(more, l)
				}
			}
			lanes = more
		}
	}
	return got
}

// fetch asks a lane once for up to n tasks, and returns how many it had.
func (p *puller) fetch(ctx context.Context, l *source, n int) (given int) {
	asked := clockNow()
	c, err := p.w.q.consumer(ctx, l.class, l.route)
	if err != nil {
		return 0 // standAt says so
	}
	batch, err := c.FetchNoWait(n)
	if err != nil {
		return 0
	}
	for m := range batch.Messages() {
		given++
		p.start(ctx, pulled{m, asked, c.CachedInfo().Config.AckWait, l})
	}
	p.checkGone(l, batch)
	return given
}

// checkGone has a lane's consumer looked for anew if it does not answer.
func (p *puller) checkGone(l *source, batch jetstream.MessageBatch) {
	for _, gone := range []error{nats.ErrNoResponders, jetstream.ErrConsumerDeleted, jetstream.ErrConsumerNotFound} {
		if errors.Is(batch.Error(), gone) {
			p.w.q.forgetConsumer(l.class, l.route)
		}
	}
}

// standAt asks for one task and waits for it, whenever it is asked to.
func (p *puller) standAt(ctx context.Context, l *source) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.stand:
		}
		idle := clockNow()
		for got := false; !got && ctx.Err() == nil && (p.w.free() > 0 || !l.answers.Load()) && l.ready(); {
			asked, wait := clockNow(), about(standing)
			var batch jetstream.MessageBatch
			c, err := p.w.q.consumer(ctx, l.class, l.route)
			if err == nil {
				batch, err = c.Fetch(1, jetstream.FetchMaxWait(wait))
			}
			if err != nil {
				if ctx.Err() == nil {
					p.w.log.Warn("no tasks can be had", "class", l.class, "error", err)
				}
				pause(ctx, time.Second)
				continue
			}
			for m := range batch.Messages() {
				got = true
				select {
				case p.arrived <- pulled{m, asked, c.CachedInfo().Config.AckWait, l}:
				case <-ctx.Done():
					_ = m.Nak() // if it does not arrive, the lease ends
				}
			}
			l.answers.Store(got || clockNow()-asked < wait+standing/2)
			p.checkGone(l, batch)
			if batch.Error() != nil {
				pause(ctx, standing/5)
			}
			if !got && !l.always && clockNow() > idle+laneIdle {
				p.rest(ctx, l)
				idle = clockNow()
			}
		}
	}
}

// rest has a lane that has no task asked no more.
func (p *puller) rest(ctx context.Context, l *source) {
	l.active.Store(false) // before: what comes now is noted after, or found
	if used, err := p.w.q.inUse(ctx, l.class, l.route); used || err != nil {
		l.active.Store(true)
	}
}

func (p *puller) start(ctx context.Context, m pulled) {
	if ctx.Err() != nil || !p.w.take() {
		_ = m.m.Nak() // if it does not arrive, the lease ends
		return
	}
	p.group.Go(func() {
		defer p.w.give()
		p.w.attempt(ctx, m)
	})
}

// about returns d, half of it more or less. Of workers in step it would always be the same one that
// asks first, also for what only another one can run.
func about(d time.Duration) time.Duration { return d/2 + rand.N(d) }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
