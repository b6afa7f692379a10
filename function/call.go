package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/wire"
)

// cancelGrace is how long a function may take to return once its context has ended.
const cancelGrace = 100 * time.Millisecond

// call is this process's side of a call that a worker serves.
type call struct {
	w      *worker
	ctx    context.Context
	left   []io.Closer     // ends of streams, to be closed with the call
	far    []*os.File      // the worker's ends of the answer's streams
	alive  context.Context // until ctx, the timeout or the call ends
	cancel context.CancelFunc
	stops  []func() bool
	done   func(healthy bool)
	once   sync.Once

	mu       sync.Mutex
	inErr    error           // of reading a stream that the caller passed
	streams  []*answerStream // of the answer, once it has arrived
	open     int             // how many of streams are not read to the end
	broken   bool
	timedOut bool
	over     bool
	finished chan struct{} // closed when over
}

// begin watches over the call: its context and its timeout.
func (c *call) begin() {
	c.stops = append(c.stops, context.AfterFunc(c.ctx, func() {
		// Before Send, which blocks if the process does not read.
		time.AfterFunc(cancelGrace, func() { c.w.kill(fault.Canceled) })
		_ = c.w.conn.Send(wire.Message{Kind: wire.Cancel})
	}))
	if c.w.timeout != 0 {
		c.stops = append(c.stops, time.AfterFunc(c.w.timeout, func() {
			c.mu.Lock()
			c.timedOut = true
			c.mu.Unlock()
			c.w.kill(fault.TimedOut)
			c.cancel()
		}).Stop)
	}
	c.w.calls++
}

// finish gives the worker back. The worker is used again only if healthy is true and nothing has
// begun to end the call.
func (c *call) finish(healthy bool) {
	c.once.Do(func() {
		c.mu.Lock()
		healthy = healthy && !c.broken
		c.over = true
		close(c.finished)
		c.mu.Unlock()
		c.cancel()
		for _, stop := range c.stops {
			healthy = stop() && healthy
		}
		for _, f := range c.left {
			f.Close()
		}
		c.done(healthy)
	})
}

// abandon ends the worker, unless it serves another call already.
func (c *call) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.broken = true
		c.w.kill(fault.Signaled)
	}
}

// feed copies the streams of the argument to the worker. If one can't be read, the call fails: the
// function must not take what it has received for the whole stream.
func (c *call) feed(streams []wire.Stream) {
	for _, s := range streams {
		go func() {
			from := &source{Reader: s.From}
			_ = copyStream(s.To, from) // the function need not read all of it
			if from.err != nil {
				c.mu.Lock()
				c.inErr = errors.Join(c.inErr, from.err)
				c.mu.Unlock()
				c.w.kill(fault.Signaled)
				return // the pipe stays open until the process has ended
			}
			s.To.Close()
		}()
	}
}

// source keeps the error of its reader, which copyStream does not tell from an error of writing.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// fail returns why a call has no answer, given the error of Receive.
func (c *call) fail(received error) error {
	err := c.w.whyEnded(received)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ctx.Err() != nil:
		return c.canceled()
	case c.inErr != nil:
		return fmt.Errorf("sandbox: function %s: reading a stream of its argument: %w", c.w.f.name, c.inErr)
	// The process had ended before the timeout, with an answer that took too long to decode.
	case c.timedOut && !errors.Is(err, sandbox.ErrTimeout):
		return fmt.Errorf("sandbox: function %s: %w", c.w.f.name, sandbox.ErrTimeout)
	case errors.Is(received, wire.ErrTooLarge):
		return c.w.f.tooLarge("result", received)
	}
	return err
}

func (f *function) tooLarge(what string, err error) error {
	return fmt.Errorf("sandbox: function %s: its %s: %w (raise function.MessageLimit, or pass an io.Reader)", f.name, what, err)
}

func (c *call) canceled() error {
	return fmt.Errorf("sandbox: function %s: %w", c.w.f.name, fault.Ended(c.ctx))
}

// trouble returns the error that the worker reports.
func (c *call) trouble(m wire.Message) error {
	var t wire.Trouble
	if err := wire.Unmarshal(m.Body, &t); err != nil {
		return fmt.Errorf("sandbox: function %s: decoding its error: %w", c.w.f.name, err)
	}
	if deadline, ok := c.ctx.Deadline(); ok && t.Late && time.Until(deadline) < cancelGrace {
		<-c.ctx.Done() // the deadline has passed in the other process already
	}
	t.Text, t.Stack = t.Text[:min(len(t.Text), wire.MaxText)], t.Stack[:min(len(t.Stack), wire.MaxText)]
	switch {
	case c.ctx.Err() != nil && t.Text == c.ctx.Err().Error():
		return c.canceled()
	case c.ctx.Err() != nil:
		return fmt.Errorf("%w (%s)", c.canceled(), t.Text)
	case t.TooLarge:
		return c.w.f.tooLarge("result", wire.ErrTooLarge)
	case m.Kind == wire.Panicked:
		return &PanicError{Func: c.w.f.name, Value: t.Text, Stack: t.Stack}
	}
	return &Error{Func: c.w.f.name, Text: t.Text}
}

// invoke makes a worker serve a call. It calls done once, when the worker is not needed any more.
func invoke[In, Out any](ctx context.Context, f *Func[In, Out], w *worker, in In, done func(healthy bool)) (out Out, err error) {
	c := &call{w: w, ctx: ctx, done: done, finished: make(chan struct{})}
	c.alive, c.cancel = context.WithCancel(ctx)
	var e wire.Envelope
	if deadline, ok := ctx.Deadline(); ok {
		e.Until = max(deadline.UnixNano(), 1)
	}
	body, files, streams, ends, err := wire.Pack(f.in, in, e)
	if err != nil {
		err = fmt.Errorf("sandbox: function %s: its argument: %w", f.name, err)
	}
	for _, s := range streams {
		c.left = append(c.left, s.To)
	}
	if err == nil {
		c.begin()
		err = w.conn.Send(wire.Message{Kind: wire.Call, Body: body, Files: files})
	}
	for _, f := range ends {
		f.Close()
	}
	if errors.Is(err, wire.ErrTooLarge) {
		err = f.tooLarge("argument", err)
	}
	if err != nil && !isReset(err) { // after a reset, Receive tells why
		c.finish(true)
		return out, err
	}
	c.feed(streams)
	m, err := w.conn.Receive(f.out.Files()-f.out.Streams(), wire.Answer, wire.Failure, wire.Panicked)
	switch {
	case err != nil:
		err = c.fail(err)
		c.finish(false)
	case m.Kind != wire.Answer:
		m.Discard()
		err = c.trouble(m)
		c.finish(m.Kind == wire.Failure && ctx.Err() == nil)
	default:
		out, err = wire.UnpackAnswer[Out](c.alive, f.out, m, w.limit, c.stream)
		if err != nil {
			m.Discard()
			err = c.undecoded(err)
		} else if c.open > 0 {
			err = c.sendPipes()
		}
		switch {
		case err != nil:
			c.finish(false)
			return *new(Out), err
		case c.open == 0:
			c.finish(true)
		}
	}
	return out, err
}

// undecoded returns why an answer can't be used, given the error of Unpack.
func (c *call) undecoded(err error) error {
	switch {
	case c.alive.Err() != nil:
		return c.fail(io.EOF)
	case errors.Is(err, wire.ErrTooLarge):
		return c.w.f.tooLarge("result", err)
	}
	return fmt.Errorf("sandbox: function %s: its result: %w", c.w.f.name, err)
}
