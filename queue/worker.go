package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cellkit/sandbox"
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

	observer Observer
	// execute runs a command: the pool's Run, or, where the rest is measured, nothing.
	execute func(context.Context, ...sandbox.Option) (*sandbox.Result, error)

	fence      *fence
	build      string // of this program, if it has functions for tasks
	budget     *budget
	report     []Feature
	neighbours neighbours
	// The address at which services are published; invalid: the worker takes none.
	services netip.Addr
	// draining ends when no more tasks are to be taken, and over when what runs is to end: see
	// Drain.
	draining, over context.Context
	drain, end     context.CancelFunc

	mu      sync.Mutex
	running int
	live    map[string]*lease
	freed   chan struct{} // gets something when a slot is free again
	news    chan struct{} // gets something when there is something to announce
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
// 4,096 processes, 24 h of time and of CPU time, 1 GiB of output, and 256 MiB of files. More than
// the pool has for all tasks (pool.Memory, pool.CPUs) is an error. A task that asks for more is
// left to a worker of its class that gives as much, if there is one; else the attempt failed.
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
		live: map[string]*lease{}, freed: make(chan struct{}, 1), news: make(chan struct{}, 1)}
	w.draining, w.drain = context.WithCancel(context.Background())
	w.over, w.end = context.WithCancel(context.Background())
	for _, o := range opts {
		if o != nil {
			o(w)
		}
	}
	if q == nil {
		w.errs = append(w.errs, wrong("queue.NewWorker", "the queue is nil: open one by Open"))
	}
	if p == nil {
		w.errs = append(w.errs, wrong("queue.NewWorker", "the pool is nil: make one by pool.New"))
		return w
	}
	w.execute = p.Run
	w.budget = newBudget(p.Capacity(), w.slots)
	if has := w.budget.most(); has.Memory > 0 && w.max.Memory > has.Memory || has.CPUs > 0 && w.max.CPUs > has.CPUs {
		w.errs = append(w.errs, wrong("queue.MaxLimits", "%d bytes and %v CPUs for one task are more than the pool has for all, %d and %v (pool.Memory, pool.CPUs)", w.max.Memory, w.max.CPUs, has.Memory, has.CPUs))
	}
	w.max = w.max.or(w.budget.most()).or(Limits{Memory: 1 << 30, CPUs: float64(runtime.NumCPU()), PIDs: 4096, CPUTime: 24 * time.Hour, Timeout: 24 * time.Hour, Output: 1 << 30, Files: 256 << 20})
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

// Run takes tasks and runs them until ctx ends. It then kills what runs, which other workers try
// again, and returns nil. Drain lets what runs go on for a time. While no server answers, Run waits
// for one. When it is to end, it returns at most 5 s after its runs have ended, whether or not a
// server answers. The errors are wrong options, as *sandbox.OptionErrors, joined,
// errors.ErrUnsupported on other systems than Linux, and, of a queue that others use too, that this
// process is PID 1 of a container. It must be called once.
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
	if w.build, err = servedBuild(); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	runs, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(w.over, end)()
	takes, stop := context.WithCancel(runs)
	defer stop()
	defer context.AfterFunc(w.draining, stop)()
	var asking, announcing, attempts sync.WaitGroup
	puller := newPuller(w, &asking)
	var subs []*nats.Subscription
	defer func() {
		for _, s := range subs {
			_ = s.Unsubscribe() // fails if the connection is closed
		}
	}()
	heard := map[string]nats.MsgHandler{}
	for _, class := range w.classes {
		heard[w.q.subject("now", class+".>")] = w.changed
		heard[w.q.subject("new", class+".>")] = puller.announced
		heard[w.q.subject("held", class+"."+w.name)] = w.answerHeld
	}
	for subject, f := range heard {
		s, err := w.q.nc.Subscribe(subject, f)
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		subs = append(subs, s)
	}
	defer puller.close()
	announcing.Go(func() { w.announce(runs) })
	asking.Go(func() { w.collectInTurn(takes) })
	puller.run(takes, func(m pulled) {
		attempts.Go(func() {
			defer w.give()
			w.attempt(runs, m)
		})
	})
	asking.Wait() // which may still start an attempt
	attempts.Wait()
	end()
	announcing.Wait()
	return nil
}

// Drain stops the worker gently: it takes no more tasks, and Run returns when those that it runs
// have ended. They go on for up to d. What is left then is killed and tried again by other workers,
// as when Run's context ends, which does not count as one of the task's attempts. Replicas of
// services don't end by themselves, so they are moved to other workers at once. Drain does not
// wait. If it is called again, the earliest end counts: Drain(0) kills what runs at once.
//
//	context.AfterFunc(ctx, func() { w.Drain(30 * time.Second) }) // ctx ends at SIGTERM
//	err := w.Run(context.Background())
func (w *Worker) Drain(d time.Duration) {
	running, _ := w.runs()
	w.log.Info("the worker is drained: it takes no more tasks", "worker", w.name, "running", running, "up_to", max(d, 0))
	w.drain()
	w.changedHere()
	if d <= 0 {
		w.end()
		return
	}
	time.AfterFunc(d, w.end)
}

// changed is called for each change of a state of a task of the worker's classes: it ends what runs
// here and is somebody else's now, or nobody's.
func (w *Worker) changed(m *nats.Msg) {
	w.mu.Lock()
	l := w.live[w.q.idOf("now", m.Subject)]
	w.mu.Unlock()
	if l == nil || l.ends.Load() {
		return
	}
	if _, r, err := w.q.announced(m); err == nil {
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
