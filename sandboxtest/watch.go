package sandboxtest

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// watcher knows the runs of one test's sandbox.
type watcher struct {
	t testing.TB

	mu   sync.Mutex
	over bool // the test is over
	live map[*sandbox.Process]bool
	wait sync.WaitGroup
}

func newWatcher(t testing.TB) *watcher {
	w := &watcher{t: t, live: map[*sandbox.Process]bool{}}
	t.Cleanup(w.end)
	return w
}

func (w *watcher) option() sandbox.Option {
	return func(c *spec.Spec) { c.Supervision.Start = w.start }
}

var errOver = errors.New("sandboxtest: the test is over")

// start starts a run that ends with the test, and logs its output if the run fails.
func (w *watcher) start(ctx context.Context, s *sandbox.Sandbox) (*sandbox.Process, error) {
	w.mu.Lock()
	if w.over {
		w.mu.Unlock()
		return nil, errOver
	}
	w.wait.Add(1)
	w.mu.Unlock()
	ctx, cancel := withDeadline(ctx, w.t)
	log := &tail{}
	p, err := s.With(log.listen(s)...).Start(ctx)
	if err != nil {
		cancel()
		w.wait.Done()
		return nil, err
	}
	w.mu.Lock()
	w.live[p] = true
	over := w.over
	w.mu.Unlock()
	if over {
		_ = p.Kill() // if this fails, the run has ended
	}
	go func() {
		defer w.wait.Done()
		_, err := p.Wait()
		cancel()
		w.mu.Lock()
		delete(w.live, p)
		w.mu.Unlock()
		if text := log.String(); err != nil && text != "" {
			w.t.Logf("sandboxtest: %v; its output:\n%s", err, text)
		}
	}()
	return p, nil
}

// end kills the runs that are alive and waits for them.
func (w *watcher) end() {
	w.mu.Lock()
	w.over = true
	for p := range w.live {
		_ = p.Kill()
	}
	w.mu.Unlock()
	w.wait.Wait()
}

// withDeadline returns a context that ends a moment before the test's deadline, if the test has
// one.
func withDeadline(ctx context.Context, t testing.TB) (context.Context, context.CancelFunc) {
	end, ok := deadline(t)
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end)
}

// deadline returns when runs that the test started should end.
func deadline(t testing.TB) (time.Time, bool) {
	d, ok := t.(interface{ Deadline() (time.Time, bool) }) // a benchmark has none
	if !ok {
		return time.Time{}, false
	}
	end, ok := d.Deadline()
	return end.Add(-min(5*time.Second, time.Until(end)/10)), ok
}

// maxTail is how much of a run's output is kept for the log.
const maxTail = 64 << 10

// tail keeps the end of both outputs of a run.
type tail struct {
	mu   sync.Mutex
	b    []byte
	lost bool
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if n := len(l.b) - maxTail; n > 0 {
		l.b, l.lost = append(l.b[:0], l.b[n:]...), true
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return "...\n" + string(l.b)
	}
	return string(l.b)
}

// listen returns options that send the sandbox's output to the log too.
func (l *tail) listen(s *sandbox.Sandbox) []sandbox.Option {
	var to spec.Streams
	s.With(func(c *spec.Spec) { to = c.Streams })
	out := l.beside(to.Stdout)
	if to.Stdout != nil && stdio.SameWriter(to.Stdout, to.Stderr) {
		return []sandbox.Option{sandbox.WithStdout(out), sandbox.WithStderr(out)}
	}
	return []sandbox.Option{sandbox.WithStdout(out), sandbox.WithStderr(l.beside(to.Stderr))}
}

func (l *tail) beside(w io.Writer) io.Writer {
	switch w.(type) {
	case nil:
		return l
	case *os.File: // passed to the run directly
		return w
	}
	return &both{w, l}
}

// both writes to w and l. Its result is that of w.
type both struct {
	w io.Writer
	l *tail
}

func (b *both) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	_, _ = b.l.Write(p[:max(0, min(n, len(p)))])
	return n, err
}
