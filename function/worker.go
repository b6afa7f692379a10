package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
	"github.com/cellkit/sandbox/internal/wire"
)

// worker is a process that serves calls of a function.
type worker struct {
	f       *function
	process *sandbox.Process
	kill    func(why fault.Reason)
	conn    *wire.Conn
	log     *stdio.PrefixSuffix // its standard error, unless the caller takes that
	timeout time.Duration       // 0 for none
	limit   int64               // of messages, in bytes
	born    time.Time
	calls   int
	ended   chan struct{}
}

// start starts a worker and waits until it is ready. After that, the end of ctx has no effect on
// it.
func (f *function) start(ctx context.Context, s *sandbox.Sandbox) (_ *worker, err error) {
	as := described(s)
	w := &worker{f: f, timeout: as.Supervision.Timeout, limit: as.Function.Message(), born: time.Now(), ended: make(chan struct{})}
	conn, far, err := wire.Pair(w.limit)
	if err != nil {
		return nil, errors.Join(unsupportedHere(), err)
	}
	defer far.Close()
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	w.conn = conn
	s = s.With(func(c *spec.Spec) {
		c.Supervision.Timeout = 0
		streams := &c.Streams
		streams.Function = &spec.FunctionFiles{Conn: far}
		if streams.Stderr == nil {
			w.log = &stdio.PrefixSuffix{N: 32 << 10}
			streams.Stderr = w.log
		}
	})
	life, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	w.kill = func(why fault.Reason) { kill(fault.Stop{Reason: why}) }
	stop := context.AfterFunc(ctx, func() { kill(nil) })
	defer func() {
		if !stop() && err == nil {
			w.end()
			err = fault.NotStarted(ctx)
		}
	}()
	if w.process, err = s.Start(life); err != nil {
		kill(nil)
		if ctx.Err() != nil {
			err = fault.NotStarted(ctx)
		}
		return nil, err
	}
	far.Close() // now the end of the process is the end of the connection
	go func() {
		<-w.process.Ended()
		conn.HangUp() // another run may have the other end
		_, _ = w.process.Wait()
		kill(nil)
		close(w.ended)
	}()
	if _, err = conn.Receive(0, wire.Hello); err != nil {
		if err = w.whyEnded(err); ctx.Err() != nil {
			err = fault.NotStarted(ctx)
		}
		return nil, err
	}
	return w, nil
}

// end ends the worker and waits until nothing of it is left.
func (w *worker) end() {
	_ = w.process.Kill()
	<-w.ended
	w.conn.Close()
}

// lastWord is how long a process whose connection has ended may take to end too, before it is
// killed: its exit status says why.
const lastWord = time.Second

// whyEnded ends the worker, and returns why nothing, or nothing sensible, was received from it.
func (w *worker) whyEnded(received error) error {
	if errors.Is(received, io.EOF) || errors.Is(received, io.ErrUnexpectedEOF) || isReset(received) {
		select {
		case <-w.process.Ended():
		case <-time.After(lastWord):
		}
	}
	select {
	case <-w.process.Ended():
		<-w.ended
	default: // it lives, and what it says makes no sense
		w.end()
		return fmt.Errorf("sandbox: function %s: receiving its answer: %w", w.f.name, received)
	}
	w.conn.Close()
	_, err := w.process.Wait()
	var exit *sandbox.ExitError
	if errors.As(err, &exit) && w.log != nil {
		exit.Stderr = w.log.Bytes()
	}
	if err == nil {
		err = fmt.Errorf("sandbox: function %s: %w", w.f.name, ErrNoAnswer)
	}
	return err
}

// fresh reports whether a worker that is idle can serve another call.
func (w *worker) fresh(c *workersConfig) bool {
	return (c.maxCalls == 0 || w.calls < c.maxCalls) && (c.maxAge == 0 || time.Since(w.born) < c.maxAge) && w.conn.Quiet()
}
