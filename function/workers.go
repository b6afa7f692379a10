package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// Workers is a pool of processes that serve calls of a Func, each one call at a time. It is safe
// for concurrent use.
type Workers[In, Out any] struct {
	f *Func[In, Out]
	*workers
}

// workers is the part of Workers that does not depend on the function's types.
type workers struct {
	f    *function
	s    *sandbox.Sandbox
	conf workersConfig
	err  error          // of the options
	idle chan *worker   // one for each worker, nil if it must be started
	busy sync.WaitGroup // calls and starts

	mu     sync.Mutex
	closed chan struct{}
}

// Workers starts n processes that serve calls of the function, one after the other: a call then
// costs two messages instead of a process. The options of the function say what the processes are
// given and may use: With adds some for these workers only.
//
// A call may leave something behind for the next one in the same process, in variables or files;
// one that took over the process may answer the next ones as it likes. MaxCalls(1) gives each call
// a process of its own nevertheless, started before it is needed. A process that did not end its
// call with an answer, or an error that the function returned, is never used again: one that
// panicked, crashed, reached a limit, or was canceled. It is replaced in the background.
// WithTimeout limits each call; other limits, such as WithMemory and WithCPUTime, are those of a
// process, for all of its calls together.
//
// Workers never fails: Call reports wrong options, and processes that can't be started. It panics
// if n is less than 1. The caller should call Close.
func (f *Func[In, Out]) Workers(n int, opts ...WorkersOption) *Workers[In, Out] {
	if n < 1 {
		panic(fmt.Sprintf("function: Workers: %d is not a positive number", n))
	}
	p := &workers{f: f.function, idle: make(chan *worker, n), closed: make(chan struct{})}
	for _, opt := range opts {
		if opt != nil {
			opt(&p.conf)
		}
	}
	p.s, p.err = p.sandbox()
	for range n {
		p.replace(nil)
	}
	return &Workers[In, Out]{f, p}
}

// sandbox returns the sandbox of the workers, or all that is wrong with the options.
func (p *workers) sandbox() (*sandbox.Sandbox, error) {
	wrong := p.conf.check()
	s, err := p.f.own()
	switch {
	case err != nil:
		wrong = append(wrong, err)
	case wrong != nil:
		as := described(s)
		wrong = append(wrong, as.Check()...)
	}
	if wrong != nil {
		return nil, errors.Join(wrong...)
	}
	return s.With(func(c *spec.Spec) { c.Streams.Stdout, c.Streams.Stderr = shared(c.Streams.Stdout, c.Streams.Stderr) }), nil
}

// Call waits for a worker that is idle, in the order of the calls, and calls the function in it.
// The errors are those of Func.Call, and ErrClosed. If a field of Out is an io.Reader, the worker
// is busy until all such fields are read to the end or closed.
func (p *Workers[In, Out]) Call(ctx context.Context, in In) (out Out, err error) {
	w, err := p.take(ctx)
	if err != nil {
		return out, err
	}
	return invoke(ctx, p.f, w, in, func(healthy bool) { p.give(w, healthy) })
}

// Close waits for the calls in progress, and then ends the workers. Further calls fail with
// ErrClosed.
func (p *workers) Close() {
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	p.mu.Unlock()
	p.busy.Wait()
	for range cap(p.idle) {
		w := <-p.idle
		if w != nil {
			w.end()
		}
		p.idle <- nil // for another Close
	}
}

// enter begins a call, for which Close waits. It returns false if the workers are closed.
func (p *workers) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return false
	default:
		p.busy.Add(1)
		return true
	}
}

// take returns a worker that nobody else uses.
func (p *workers) take(ctx context.Context) (*worker, error) {
	if p.err != nil {
		return nil, p.err
	}
	if ctx.Err() != nil {
		return nil, fault.NotStarted(ctx)
	}
	if !p.enter() {
		return nil, fmt.Errorf("sandbox: function %s: %w", p.f.name, ErrClosed)
	}
	select {
	case w := <-p.idle:
		if w != nil && w.fresh(&p.conf) {
			return w, nil
		}
		if w != nil {
			go w.end()
		}
		w, err := p.f.start(ctx, p.s)
		if err != nil {
			p.idle <- nil
			p.busy.Done()
		}
		return w, err
	case <-ctx.Done():
		p.busy.Done()
		return nil, fault.NotStarted(ctx)
	}
}

// give takes a worker back that has served a call.
func (p *workers) give(w *worker, healthy bool) {
	defer p.busy.Done()
	if healthy && w.fresh(&p.conf) {
		p.idle <- w
		return
	}
	p.replace(w)
}

// replace starts a worker in the background, in the place of one that is no use any more.
func (p *workers) replace(old *worker) {
	// Close can't be waiting for busy to become 0: it waits for the caller, or nobody else has
	// the pool yet.
	p.busy.Add(1)
	go func() {
		defer p.busy.Done()
		if old != nil {
			old.end()
		}
		var w *worker
		if p.err == nil && !p.isClosed() {
			// A call that finds no worker starts one, and reports why it can't.
			w, _ = p.f.start(context.Background(), p.s)
		}
		p.idle <- w
	}()
}

func (p *workers) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// shared returns the writers with a lock each, as several processes write to them at once. A file
// needs none: the processes write to it themselves.
func shared(stdout, stderr io.Writer) (io.Writer, io.Writer) {
	if stdio.SameWriter(stdout, stderr) {
		stdout = lock(stdout)
		return stdout, stdout
	}
	return lock(stdout), lock(stderr)
}

func lock(w io.Writer) io.Writer {
	if _, isFile := w.(*os.File); w == nil || isFile {
		return w
	}
	return stdio.Locked(w)
}
