// Package pool runs commands of a sandbox, at most a given number at a time, and queues the rest.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// ErrFull is the error of a run that found the pool's queue full, or, with TryRun, the pool itself.
var ErrFull = errors.New("the pool is full")

// ErrClosed is the error of runs of a pool that was closed.
var ErrClosed = errors.New("the pool is closed")

// Pool runs at most a given number of commands at a time and queues the rest. It is safe for
// concurrent use.
type Pool struct {
	s      *sandbox.Sandbox
	conf   config
	err    error // of the options
	size   int
	shared *spec.Pool // the limits that its runs share
	slots  *semaphore.Weighted
	ended  chan struct{} // closed when Close has begun

	mu     sync.Mutex
	active sync.WaitGroup // runs, waiting ones too
	inside int            // the number of runs in active
	last   uint64         // the id of the last run
	closed bool
	live   map[uint64]context.CancelCauseFunc
	stats  Stats
	waits  window
	runs   window
}

var poolCount atomic.Uint64

// New makes a pool that runs what s describes, size runs at a time. It keeps as many prepared,
// unless s asks for another number: see sandbox.WithPrepared. It never fails: Run reports wrong
// options, each as an *sandbox.OptionError. The caller should call Close.
func New(s *sandbox.Sandbox, size int, opts ...Option) *Pool {
	p := &Pool{conf: config{queue: defaultQueue}, size: size, ended: make(chan struct{}),
		slots: semaphore.NewWeighted(int64(max(size, 1))), live: map[uint64]context.CancelCauseFunc{}}
	for _, opt := range opts {
		if opt != nil {
			opt(&p.conf)
		}
	}
	p.err = p.conf.check(size)
	if s == nil {
		p.err = errors.Join(p.err, fault.Option("pool.New", "the sandbox is nil: make one by sandbox.New"))
		s = sandbox.New()
	}
	p.shared = &spec.Pool{Name: fmt.Sprintf("pool-%d", poolCount.Add(1)), Memory: p.conf.memory, CPUs: p.conf.cpus}
	p.s = s.With(func(c *spec.Spec) {
		c.Limits.Pool = p.shared
		if c.Place.Prepared > 0 && !p.shared.IsLimited() {
			c.Limits.Pool = nil // to use the runs that s keeps prepared
		}
		c.Place.Prepared = cmp.Or(c.Place.Prepared, min(max(size, 0), spec.MaxPrepared))
	})
	p.stats.Failed = map[sandbox.Reason]uint64{}
	return p
}

// Run waits for its turn, runs the sandbox with the options added, and waits for the end. Runs
// start in the order in which they were asked for. The errors are those of Sandbox.Run, ErrFull and
// ErrClosed.
func (p *Pool) Run(ctx context.Context, opts ...sandbox.Option) (*sandbox.Result, error) {
	return p.run(ctx, true, opts)
}

// TryRun does what Run does, but fails with ErrFull if Run would have to wait for its turn.
func (p *Pool) TryRun(ctx context.Context, opts ...sandbox.Option) (*sandbox.Result, error) {
	return p.run(ctx, false, opts)
}

func (p *Pool) run(ctx context.Context, wait bool, opts []sandbox.Option) (*sandbox.Result, error) {
	process, left, err := p.start(ctx, wait, true, opts)
	if err != nil {
		return nil, err
	}
	<-left
	return process.Wait()
}

// Start waits for its turn and starts a run. The next run's turn comes when this one has ended,
// whether or not Wait was called.
func (p *Pool) Start(ctx context.Context, opts ...sandbox.Option) (*sandbox.Process, error) {
	process, _, err := p.start(ctx, true, false, opts)
	return process, err
}

// start also returns a channel that is closed when the run has left its place to another. If alone
// is set, the caller does not get the process.
func (p *Pool) start(ctx context.Context, wait, alone bool, opts []sandbox.Option) (*sandbox.Process, <-chan struct{}, error) {
	if p.err != nil {
		return nil, nil, p.err
	}
	begun := time.Now()
	run, cancel := context.WithCancelCause(ctx)
	id, err := p.enter(wait, cancel)
	if err != nil {
		cancel(err)
		return nil, nil, fmt.Errorf("sandbox: %w", err)
	}
	record := Record{ID: id}
	var wrong []error
	look := func(c *spec.Spec) {
		record.Command = slices.Clone(c.Command.Argv)
		if alone {
			wrong = c.CheckAlone("Run")
		}
	}
	s := p.s.With(append(slices.Clip(opts), look)...)
	err = p.await(run)
	turn := time.Now()
	record.Waited = turn.Sub(begun)
	if err != nil {
		record.Err = err
		p.leave(record, false)
		return nil, nil, err
	}
	p.began()
	process, err := (*sandbox.Process)(nil), errors.Join(wrong...)
	if err == nil {
		process, err = s.Start(run)
	}
	if err != nil {
		record.Took, record.Err = time.Since(turn), err
		p.leave(record, true)
		return nil, nil, err
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		record.Result, record.Err = process.Wait()
		record.Took = time.Since(turn)
		p.leave(record, true)
	}()
	return process, left, nil
}

// enter counts a run in and returns its id.
func (p *Pool) enter(wait bool, cancel context.CancelCauseFunc) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := p.size
	if wait {
		most += p.conf.queue
	}
	switch {
	case p.closed:
		return 0, ErrClosed
	case p.inside >= most:
		p.stats.Refused++
		return 0, ErrFull
	}
	p.inside++
	p.stats.Waiting++
	p.active.Add(1)
	p.last++
	p.live[p.last] = cancel
	return p.last, nil
}

// await waits for the run's turn.
func (p *Pool) await(run context.Context) error {
	turn, stop := context.WithCancelCause(run)
	defer stop(nil)
	go func() { // Close ends the wait, but no run
		select {
		case <-p.ended:
			stop(ErrClosed)
		case <-turn.Done():
		}
	}()
	if p.slots.Acquire(turn, 1) != nil {
		if run.Err() == nil {
			return fmt.Errorf("sandbox: not started: %w", ErrClosed)
		}
		return fault.NotStarted(run)
	}
	return nil
}

func (p *Pool) began() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Waiting--
	p.stats.Running++
}

// leave counts a run out. turn is false if it never had its turn.
func (p *Pool) leave(r Record, turn bool) {
	p.mu.Lock()
	p.inside--
	if turn {
		p.stats.Running--
	} else {
		p.stats.Waiting--
	}
	switch {
	case r.Result == nil:
		p.stats.Unstarted++
	case r.Result.Reason == sandbox.Exited && r.Result.ExitCode == 0:
		p.stats.Served++
	default:
		p.stats.Failed[r.Result.Reason]++
	}
	if r.Result != nil {
		p.waits.add(r.Waited)
		p.runs.add(r.Took)
	}
	p.live[r.ID](nil)
	delete(p.live, r.ID)
	p.mu.Unlock()
	if turn {
		p.slots.Release(1)
	}
	p.report(r)
	p.active.Done()
}

// Stats returns what the pool has done so far.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Failed = maps.Clone(s.Failed)
	s.Wait, s.Run = p.waits.latency(), p.runs.latency()
	return s
}

// Close lets no further run in, gives up those that wait for their turn (ErrClosed), and waits for
// those that were started. If ctx ends first, it kills them: errors.Is(err, ErrClosed) then holds
// for their errors, and Close returns that of ctx. When Close returns, nothing of the pool is left.
// It may be called again.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.ended)
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.active.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("sandbox: closing the pool: %w", fault.Ended(ctx))
		p.mu.Lock()
		for _, cancel := range p.live {
			cancel(ErrClosed)
		}
		p.mu.Unlock()
		<-done
	}
	return errors.Join(err, p.shared.Close())
}
