package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cellkit/sandbox/pool"
)

// Worker runs tasks of a queue in a pool.
type Worker struct {
	q       *Queue
	pool    *pool.Pool
	slots   int
	classes []string
	name    string
	max     Limits
	log     *slog.Logger
	errs    []error

	fence *fence

	mu      sync.Mutex
	running int
	live    map[string]*lease
	freed   chan struct{} // gets something when a slot is free again
}

// WorkerOption changes one thing of a worker.
type WorkerOption func(*Worker)

// Slots sets how many tasks the worker runs at a time; the pool should have as many. Default: the
// number of CPUs.
func Slots(n int) WorkerOption {
	return func(w *Worker) {
		if w.slots = n; n < 1 {
			w.errs = append(w.errs, wrong("queue.Slots", "%d: must be positive", n))
		}
	}
}

// Classes sets which classes of tasks the worker takes. Default: "default".
func Classes(names ...string) WorkerOption {
	return func(w *Worker) {
		w.classes = names
		for _, name := range names {
			if !tokenPattern.MatchString(name) {
				w.errs = append(w.errs, wrong("queue.Classes", "%q: a class is 1 to 32 of a-z, 0-9 and -", name))
			}
		}
		if len(names) == 0 {
			w.errs = append(w.errs, wrong("queue.Classes", "there is none"))
		}
	}
}

// WorkerName sets by which name results and Workers name the worker: 1 to 63 of a-z, 0-9 and -. No
// two live ones may have the same. Default: made of the host's name and something random.
func WorkerName(name string) WorkerOption {
	return func(w *Worker) {
		if w.name = name; !namePattern(name) {
			w.errs = append(w.errs, wrong("queue.WorkerName", "%q: a name is 1 to 63 of a-z, 0-9 and -", name))
		}
	}
}

// MaxLimits sets how much a task may ask for: what its Limits say takes the place of what the
// pool's sandbox says, up to these. What is 0 here has its default: 1 GiB of memory, all CPUs,
// 4,096 processes, 24 h of time and of CPU time, 1 GiB of output, and 256 MiB of files. A task that
// asks for more is refused, and tried again elsewhere.
func MaxLimits(l Limits) WorkerOption {
	return func(w *Worker) { w.max = l }
}

// WorkerLog logs each attempt that has ended, with the task's id, at level Info, or Warn if it is
// to be tried again or the task was given up; and what goes wrong with the queue. Default: none.
func WorkerLog(l *slog.Logger) WorkerOption { return func(w *Worker) { w.log = l } }

// NewWorker makes a worker that runs tasks with the sandbox of a pool: its root, binds, networks
// and other options are what tasks have, and no task can change them. It never fails: Run reports
// wrong options.
func NewWorker(q *Queue, p *pool.Pool, opts ...WorkerOption) *Worker {
	w := &Worker{q: q, pool: p, slots: runtime.NumCPU(), classes: []string{"default"}, name: workerName(), log: slog.New(slog.DiscardHandler),
		live: map[string]*lease{}, freed: make(chan struct{}, 1)}
	for _, o := range opts {
		o(w)
	}
	w.max = w.max.or(Limits{Memory: 1 << 30, CPUs: float64(runtime.NumCPU()), PIDs: 4096, CPUTime: 24 * time.Hour, Timeout: 24 * time.Hour, Output: 1 << 30, Files: 256 << 20})
	return w
}

func workerName() string {
	host, _ := os.Hostname() // without one the name is random alone
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := fmt.Sprintf("%.40s-%d-%08x", host, os.Getpid(), rand.Uint32())
	if !namePattern(name) {
		name = fmt.Sprintf("worker-%d-%08x", os.Getpid(), rand.Uint32())
	}
	return name
}

func namePattern(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Run takes tasks and runs them until ctx ends; it then kills what runs, which is tried again by
// others, and returns nil. While no server answers it waits for one. The errors are wrong options,
// as *sandbox.OptionErrors, joined, and errors.ErrUnsupported on other systems than Linux. It must
// be called once.
//
// A worker of a queue that others use too holds a lease of each of its tasks. If this process can't
// renew one and does not even end the run in time, as it is stopped, traced or starved, or its
// machine was suspended, then the kernel kills this process, and with it all its runs: see Lease.
func (w *Worker) Run(ctx context.Context) (err error) {
	if err := errors.Join(w.errs...); err != nil {
		return err
	}
	if w.fence, err = newFence(w.q.shared()); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	defer w.fence.close()
	var subs []*nats.Subscription
	defer func() {
		for _, s := range subs {
			_ = s.Unsubscribe() // fails if the connection is closed
		}
	}()
	for _, class := range w.classes {
		s, err := w.q.nc.Subscribe(w.q.subject("now", class+".>"), w.changed)
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		subs = append(subs, s)
	}
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { w.announce(ctx) })
	group.Go(func() { w.collectInTurn(ctx) })
	newPuller(w, &group).run(ctx)
	return nil
}

// changed is called for each change of a state of a task of the worker's classes: it ends what runs
// here and is somebody else's now, or nobody's.
func (w *Worker) changed(m *nats.Msg) {
	w.mu.Lock()
	l := w.live[w.q.idOf("now", m.Subject)]
	w.mu.Unlock()
	if l == nil {
		return
	}
	if r, err := decode[stateRecord](m.Data); err == nil {
		l.see(r)
	}
}

// free returns how many slots are.
func (w *Worker) free() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slots - w.running
}

// take takes a slot, if one is free.
func (w *Worker) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running == w.slots {
		return false
	}
	w.running++
	return true
}

func (w *Worker) give() {
	w.mu.Lock()
	w.running--
	w.mu.Unlock()
	select {
	case w.freed <- struct{}{}:
	default:
	}
}

// puller gets tasks for the free slots of a worker: those of a higher priority first. Where none
// waits, a request for one stands at each consumer, so that a new task goes to one idle worker, and
// at once. More may come than there are slots; those go back.
type puller struct {
	w       *Worker
	group   *sync.WaitGroup
	sources []*source
	arrived chan pulled
}

// source is a class and priority.
type source struct {
	class    string
	priority Priority
	stand    chan struct{} // asks for a standing request
}

// pulled is a message, when, by clockNow, it was asked for, as its lease can't have begun earlier,
// and for how long it was given out.
type pulled struct {
	m     jetstream.Msg
	asked time.Duration
	lease time.Duration
}

// standing is how long a request stands, in which a worker that is to end waits for its end: what
// came for a request that was given up would be lost until its lease is.
const standing = 500 * time.Millisecond

func newPuller(w *Worker, group *sync.WaitGroup) *puller {
	p := &puller{w: w, group: group, arrived: make(chan pulled)}
	for _, priority := range priorities {
		for _, class := range w.classes {
			p.sources = append(p.sources, &source{class: class, priority: priority, stand: make(chan struct{}, 1)})
		}
	}
	return p
}

func (p *puller) run(ctx context.Context) {
	for _, s := range p.sources {
		p.group.Go(func() { p.standAt(ctx, s) })
	}
	for ctx.Err() == nil {
		if p.w.free() > 0 {
			if p.pass(ctx) {
				continue
			}
			for _, s := range p.sources {
				select {
				case s.stand <- struct{}{}:
				default:
				}
			}
		}
		select {
		case m := <-p.arrived:
			p.start(ctx, m)
		case <-p.w.freed:
		case <-ctx.Done():
		}
	}
}

// pass asks once for tasks that wait, and reports whether there were any.
func (p *puller) pass(ctx context.Context) (got bool) {
	for _, s := range p.sources {
		n := p.w.free()
		if n == 0 {
			return true
		}
		asked := clockNow()
		c, err := p.w.q.consumer(ctx, s.class, s.priority)
		if err != nil {
			continue // standAt says so
		}
		batch, err := c.FetchNoWait(n)
		if err != nil {
			continue
		}
		for m := range batch.Messages() {
			got = true
			p.start(ctx, pulled{m, asked, c.CachedInfo().Config.AckWait})
		}
	}
	return got
}

// standAt asks for one task and waits for it, whenever it is asked to.
func (p *puller) standAt(ctx context.Context, s *source) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.stand:
		}
		for got := false; !got && ctx.Err() == nil && p.w.free() > 0; {
			asked := clockNow()
			var batch jetstream.MessageBatch
			c, err := p.w.q.consumer(ctx, s.class, s.priority)
			if err == nil {
				batch, err = c.Fetch(1, jetstream.FetchMaxWait(standing))
			}
			if err != nil {
				if ctx.Err() == nil {
					p.w.log.Warn("no tasks can be had", "class", s.class, "error", err)
				}
				pause(ctx, time.Second)
				continue
			}
			for m := range batch.Messages() {
				got = true
				select {
				case p.arrived <- pulled{m, asked, c.CachedInfo().Config.AckWait}:
				case <-ctx.Done():
					_ = m.Nak() // if it does not arrive, the lease ends
				}
			}
			if batch.Error() != nil {
				pause(ctx, standing/5)
			}
		}
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

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
