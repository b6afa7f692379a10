package queue

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
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
	more    chan struct{}   // gets something when a lane has more than the one that came
	noted   chan struct{}   // gets something when there is a note
	ctx     context.Context // of run
	attempt func(pulled)    // starts what is done with a message, which holds a slot

	mu    sync.Mutex
	notes map[note]bool // lanes that may have tasks, until run has them asked
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
	// Requests that stand, of standAt, and others, of run.
	waits, fetches *requests
	// A standing request is there, or about to be: what the lane gets comes by itself.
	stands atomic.Bool
	// By clockNow: not asked before, as a task of it does not fit.
	fullUntil atomic.Int64
	turn      atomic.Pointer[turn] // nil: no task has it
	// A request of it was answered: it is none that servers forbid.
	answered atomic.Bool
	looks    atomic.Int32 // how often tasks that did not arrive are still looked for
}

// note says that a lane has a task.
type note struct{ class, route string }

// pulled is a message, when, by clockNow, it was asked for, as its lease can't have begun earlier,
// for how long it was given out, from where, and when the consumer that did was made.
type pulled struct {
	m     *nats.Msg
	asked time.Duration
	lease time.Duration
	from  *source
	made  time.Time
}

// back sends the message back, to be delivered again after a time, unless its lease may be over:
// servers accept that from everybody who once had the message, and would end the lease of the
// worker that has it now. If it does not arrive, the message is delivered again after the lease.
func (p pulled) back(after time.Duration) {
	if clockNow() < p.asked+(p.lease-restartLoss)*3/4 {
		_ = p.m.NakWithDelay(after)
	}
}

const (
	// standing is about how long a request stands, in which a worker that is to end waits for
	// its end: what came for a request that was given up would be lost until its lease is.
	standing = 500 * time.Millisecond
	// A lane that had nothing for laneIdle is asked no more until it has a task. What says so
	// may get lost, so a worker looks at all lanes every laneScan, which takes a request for
	// each, and when another server leads the stream of tasks, for which it looks every
	// leaderLook: only the leader announces tasks.
	laneIdle   = 10 * time.Second
	laneScan   = time.Minute
	leaderLook = 2 * time.Second
	// maxGather is how long a free slot waits for others at most.
	maxGather = 5 * time.Millisecond
)

func newPuller(w *Worker, group *sync.WaitGroup) *puller {
	p := &puller{w: w, group: group, lanes: map[string]bool{}, more: make(chan struct{}, 1), noted: make(chan struct{}, 1), notes: map[note]bool{}}
	for _, lane := range lanesFor(w.build, w.services.IsValid()) {
		p.lanes[lane] = true
	}
	for _, priority := range priorities {
		for _, class := range w.classes {
			base := p.newSource(class, route(priority, ""))
			base.always = true
			base.answers.Store(true)
			base.answered.Store(true)
			p.shelves = append(p.shelves, &shelf{class: class, priority: priority, lanes: []*source{base}})
		}
	}
	return p
}

func (p *puller) newSource(class, route string) *source {
	l := &source{class: class, route: route, stand: make(chan struct{}, 1)}
	l.waits, l.fetches = &requests{w: p.w, from: l, got: p.got}, &requests{w: p.w, from: l, got: p.got}
	return l
}

// close ends what comes for requests, of which there are none any more.
func (p *puller) close() {
	for _, s := range p.shelves {
		for _, l := range s.lanes {
			l.waits.close()
			l.fetches.close()
		}
	}
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
	if routePattern.MatchString(route) { // so there are no more notes than lanes, whoever writes
		p.note(note{class, route})
	}
}

// note records that a lane may have tasks, and wakes run.
func (p *puller) note(n note) {
	p.mu.Lock()
	p.notes[n] = true
	p.mu.Unlock()
	select {
	case p.noted <- struct{}{}:
	default:
	}
}

// look notes the lanes that are in use, now and then, and when the connection had been lost or
// another server leads.
func (p *puller) look(ctx context.Context) {
	for ctx.Err() == nil {
		begun, connections, leader := clockNow(), p.w.q.nc.Stats().Reconnects, p.w.q.leader(ctx)
		p.w.changedHere() // servers that were started anew know of no worker
		for _, class := range p.w.classes {
			for _, priority := range priorities {
				for lane := range p.lanes {
					if used, err := p.w.q.inUse(ctx, class, route(priority, lane)); err == nil && used {
						p.note(note{class, route(priority, lane)})
					}
				}
			}
		}
		asked := clockNow()
		for ctx.Err() == nil && clockNow() < begun+laneScan && p.w.q.nc.Stats().Reconnects == connections {
			pause(ctx, time.Second)
			if clockNow() < asked+leaderLook {
				continue
			}
			if now := p.w.q.leader(ctx); now != "" && now != leader {
				break
			}
			asked = clockNow()
		}
	}
}

// run gets tasks until ctx ends.
func (p *puller) run(ctx context.Context, attempt func(pulled)) {
	p.ctx, p.attempt = ctx, attempt
	for _, s := range p.shelves {
		for _, l := range s.lanes {
			p.group.Go(func() { p.standAt(ctx, l) })
		}
	}
	p.group.Go(func() { p.look(ctx) })
	var took time.Duration // by a pass after which no slot was free, as more tasks may wait
	for ctx.Err() == nil {
		p.wakeNoted(ctx)
		if p.w.free() > 0 {
			begun := clockNow()
			if p.pass(ctx) {
				took = clockNow() - begun
				continue
			}
			took = 0
			for _, s := range p.shelves {
				for _, l := range s.ready() {
					l.ask()
				}
			}
		}
		select {
		case <-p.more:
		case <-p.w.freed:
			p.gather(ctx, min(took, maxGather))
		case <-p.w.budget.room:
			for _, s := range p.shelves {
				for _, l := range s.lanes {
					l.fullUntil.Store(0)
				}
			}
		case <-p.noted:
		case <-time.After(p.untilReady()):
		case <-ctx.Done():
		}
	}
}

// untilReady returns how long it is until the first lane that is full may be asked again, at most
// fullFor.
func (p *puller) untilReady() time.Duration {
	wait := fullFor
	for _, s := range p.shelves {
		for _, l := range s.lanes {
			if left := time.Duration(l.fullUntil.Load()) - clockNow(); left > 0 {
				wait = min(wait, left)
			}
		}
	}
	return wait
}

// gather waits until a quarter of the slots is free, or as long as the last requests took: servers,
// above all several, do less for a few requests for many tasks than for each one's.
func (p *puller) gather(ctx context.Context, wait time.Duration) {
	end := time.NewTimer(wait)
	defer end.Stop()
	for p.w.free() < p.w.slots/4 {
		select {
		case <-p.w.freed:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// wakeNoted wakes all lanes that were noted. run calls it before each pass, as passes follow each
// other as long as known lanes have tasks.
func (p *puller) wakeNoted(ctx context.Context) {
	p.mu.Lock()
	notes := p.notes
	p.notes = map[note]bool{}
	p.mu.Unlock()
	for n := range notes {
		p.wake(ctx, n)
	}
}

// wake has a lane asked from now on.
func (p *puller) wake(ctx context.Context, n note) {
	key := n.class + "." + n.route
	if l, ok := p.known.Load(key); ok {
		l.(*source).active.Store(true)
		return
	}
	l := p.newSource(n.class, n.route)
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
	return (l.always || l.active.Load()) && clockNow() >= time.Duration(l.fullUntil.Load())
}

func (l *source) ask() {
	l.stands.Store(true)
	select {
	case l.stand <- struct{}{}:
	default:
	}
}

// pass asks for tasks that wait until there are none or no slot is free, and reports whether there
// were any. It waits for the answers, so it asks no lane that may give none, nor one at which a
// request stands.
func (p *puller) pass(ctx context.Context) (got bool) {
	for _, s := range p.shelves {
		silent := func(l *source) bool { return !l.answers.Load() || l.stands.Load() }
		for lanes := slices.DeleteFunc(s.ready(), silent); len(lanes) > 0; {
			var more []*source
			for i, l := range lanes {
				n := p.w.free()
				if n == 0 || ctx.Err() != nil {
					return true
				}
				share := (n + len(lanes) - i - 1) / (len(lanes) - i)
				if l.othersTurn("") != "" {
					share = 1 // what was sent back comes first
				}
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
	r, err := l.fetches.ask(ctx, n, 0)
	if err != nil {
		return 0 // standAt says so
	}
	p.check(r)
	return r.given
}

// got is called for each message that was asked for.
func (p *puller) got(r *request, m *nats.Msg) {
	if r.waits {
		r.from.stands.Store(false)
	}
	p.start(p.ctx, pulled{m, r.asked, r.lease, r.from, r.made})
	if !r.waits {
		return
	}
	if meta, err := m.Metadata(); err == nil && meta.NumPending == 0 && p.w.free() > 0 {
		r.from.ask() // the lane has no more, so a request can stand there at once
		return
	}
	select {
	case p.more <- struct{}{}:
	default:
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
		l.stands.Store(true)
		idle, got := clockNow(), false
		for !got && ctx.Err() == nil && (p.w.free() > 0 || !l.answers.Load()) && l.ready() {
			if got = p.stand(ctx, l); !got && !l.always && clockNow() > idle+laneIdle {
				p.rest(ctx, l)
				idle = clockNow()
			}
		}
		if !got { // else it may be asked for another one already
			l.stands.Store(false)
		}
	}
}

// stand has a request stand once, and reports whether a task came for it.
func (p *puller) stand(ctx context.Context, l *source) (got bool) {
	wait := about(standing)
	r, err := l.waits.ask(ctx, 1, wait)
	if err != nil {
		if ctx.Err() == nil {
			p.w.log.Warn("no tasks can be had", "class", l.class, "error", err)
		}
		pause(ctx, time.Second)
		return false
	}
	got = r.given > 0
	l.answers.Store(got || clockNow()-r.asked < wait+standing/2)
	p.check(r)
	if r.err != nil {
		pause(ctx, standing/5)
	}
	return got
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
		m.back(time.Millisecond)
		return
	}
	p.attempt(m)
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
