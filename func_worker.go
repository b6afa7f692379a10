package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
	"github.com/cellkit/sandbox/internal/wire"
)

// worker is a process that serves calls of a function.
type worker struct {
	f       *function
	process *Process
	kill    func(why fault.Reason)
	conn    *wire.Conn
	log     *stdio.PrefixSuffix // what it wrote to its standard error, unless the caller takes that
	timeout time.Duration       // 0 for none
	limit   int64               // of messages
	born    time.Time
	calls   int
	ended   chan struct{}
}

// start starts a worker and waits until it is ready. Once it is, the end of ctx means nothing to it.
func (f *function) start(ctx context.Context, s *Sandbox) (_ *worker, err error) {
	w := &worker{f: f, timeout: s.is.Spec.Supervision.Timeout, limit: s.is.Spec.Function.Message(), born: time.Now(), ended: make(chan struct{})}
	conn, far, err := wire.Pair(w.limit)
	if err != nil {
		return nil, errors.Join(err)
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

// lastWord is how long a process whose connection has ended may take to end too, before it is killed: its status tells why.
const lastWord = time.Second

// whyEnded ends the worker, and says why nothing, or nothing sensible, was received from it.
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
	var exit *ExitError
	if errors.As(err, &exit) && w.log != nil {
		exit.Stderr = w.log.Bytes()
	}
	if err == nil {
		err = fmt.Errorf("sandbox: function %s: %w", w.f.name, ErrNoAnswer)
	}
	return err
}

// fresh tells whether a worker that is idle can serve another call.
func (w *worker) fresh(c *spec.Function) bool {
	return (c.MaxCalls == 0 || w.calls < c.MaxCalls) && (c.MaxAge == 0 || time.Since(w.born) < c.MaxAge) && w.conn.Quiet()
}

// cancelGrace is how long a function may take to return once its context has ended.
const cancelGrace = 100 * time.Millisecond

// call is a call that a worker serves, in this process.
type call struct {
	w      *worker
	ctx    context.Context
	left   []io.Closer     // of streams
	far    []*os.File      // the worker's ends of the answer's streams
	alive  context.Context // until ctx ends, the time is over, or the call is
	cancel context.CancelFunc
	stops  []func() bool
	done   func(healthy bool)
	once   sync.Once

	mu       sync.Mutex
	inErr    error           // of a stream that the caller gave
	streams  []*answerStream // of the answer, from when it is there
	open     int             // those that are not read to the end
	broken   bool
	timedOut bool
	over     bool
	finished chan struct{} // closed when over
}

// begin watches over the call: its context and its timeout.
func (c *call) begin() {
	c.stops = append(c.stops, context.AfterFunc(c.ctx, func() {
		// First: a process that does not read can't be told either.
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

// finish gives the worker back. It is not used again unless healthy, and nothing has begun to end the call.
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

// abandon ends the worker, unless it serves somebody else already.
func (c *call) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.broken = true
		c.w.kill(fault.Signaled)
	}
}

// feed copies the streams of the argument to the worker. If one can't be read, the call fails: the function must not take
// what it has got for all.
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

// source keeps the error of a reader, which is not that of who writes.
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

// fail is why a call has no answer, given what Receive says.
func (c *call) fail(received error) error {
	err := c.w.whyEnded(received)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ctx.Err() != nil:
		return c.canceled()
	case c.inErr != nil:
		return fmt.Errorf("sandbox: function %s: reading a stream of its argument: %w", c.w.f.name, c.inErr)
	case c.timedOut && !errors.Is(err, ErrTimeout): // it had ended before, with an answer that took too long to decode
		return fmt.Errorf("sandbox: function %s: %w", c.w.f.name, ErrTimeout)
	case errors.Is(received, wire.ErrTooLarge):
		return c.w.f.tooLarge("result", received)
	}
	return err
}

func (f *function) tooLarge(what string, err error) error {
	return fmt.Errorf("sandbox: function %s: its %s: %w (raise WithMessageLimit, or pass an io.Reader)", f.name, what, err)
}

func (c *call) canceled() error {
	return fmt.Errorf("sandbox: function %s: %w", c.w.f.name, fault.Ended(c.ctx))
}

// trouble is the error that the worker reports.
func (c *call) trouble(m wire.Message) error {
	var t wire.Trouble
	if err := wire.Unmarshal(m.Body, &t); err != nil {
		return fmt.Errorf("sandbox: function %s: decoding its error: %w", c.w.f.name, err)
	}
	if deadline, ok := c.ctx.Deadline(); ok && t.Late && time.Until(deadline) < cancelGrace {
		<-c.ctx.Done() // the other process's clock was first
	}
	t.Text, t.Stack = t.Text[:min(len(t.Text), wire.MaxText)], t.Stack[:min(len(t.Stack), wire.MaxText)]
	switch {
	case c.ctx.Err() != nil:
		return fmt.Errorf("%w (%s)", c.canceled(), t.Text)
	case t.TooLarge:
		return c.w.f.tooLarge("result", wire.ErrTooLarge)
	case m.Kind == wire.Panicked:
		return &PanicError{Func: c.w.f.name, Value: t.Text, Stack: t.Stack}
	}
	return &FuncError{Func: c.w.f.name, Text: t.Text}
}

// invoke has a worker serve a call. done is called, once, when the worker is not needed any more.
func invoke[In, Out any](ctx context.Context, f *Func[In, Out], w *worker, in In, done func(healthy bool)) (out Out, err error) {
	c := &call{w: w, ctx: ctx, done: done, finished: make(chan struct{})}
	c.alive, c.cancel = context.WithCancel(ctx)
	var e wire.Envelope
	if deadline, ok := ctx.Deadline(); ok {
		e.Until = max(deadline.UnixNano(), 1)
	}
	body, files, streams, ends, err := wire.Pack(f.in, in, e)
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
	if err != nil && !isReset(err) { // if so, why comes next
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

// undecoded is why an answer is none, given what Unpack says.
func (c *call) undecoded(err error) error {
	switch {
	case c.alive.Err() != nil:
		return c.fail(io.EOF)
	case errors.Is(err, wire.ErrTooLarge):
		return c.w.f.tooLarge("result", err)
	}
	return fmt.Errorf("sandbox: function %s: its result: %w", c.w.f.name, err)
}

// stream is a field of the answer that is read by this process, through a pipe of its own making:
// of one that the worker made it would have an open file in common with it, and O_NONBLOCK, without
// which Read waits where Close does not reach it, is the open file's.
func (c *call) stream() (io.Reader, error) {
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.left, c.far = append(c.left, near, far), append(c.far, far)
	s := &answerStream{c: c, f: stdio.NewPipeReader(near)}
	c.streams, c.open = append(c.streams, s), c.open+1
	return s, nil
}

// sendPipes sends the worker its ends of the answer's streams.
func (c *call) sendPipes() error {
	err := c.w.conn.Send(wire.Message{Kind: wire.Pipes, Files: c.far})
	for _, f := range c.far {
		f.Close()
	}
	if err != nil && !isReset(err) { // if so, reading the streams tells why
		return fmt.Errorf("sandbox: function %s: sending pipes for the streams of its result: %w", c.w.f.name, err)
	}
	go c.watch()
	return nil
}

// watch ends the streams when nothing of the worker lives any more: another run may have their
// other ends.
func (c *call) watch() {
	select {
	case <-c.w.process.Ended():
		for _, s := range c.streams {
			s.f.End()
		}
	case <-c.finished:
	}
}

type answerStream struct {
	c   *call
	f   *stdio.PipeReader
	mu  sync.Mutex
	end error // what Read returns from now on
}

func (s *answerStream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return 0, s.end
	}
	n, err := s.f.Read(b)
	if err != nil {
		s.f.Close()
		s.end = s.c.read(err)
		return n, s.end
	}
	return n, nil
}

// Close gives up what has not been read, and with it the worker.
func (s *answerStream) Close() error {
	s.f.Close() // a Read that waits for the stream returns
	if !s.mu.TryLock() {
		s.c.abandon() // as does one that waits for the worker's last word
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = os.ErrClosed
		s.c.finish(false)
	}
	return nil
}

// read is told how a stream of the answer ended. When all have, the worker says whether they are whole. The end of one is
// only as good as the word of the worker that comes after all of them, so that with several each but the last ends without.
func (c *call) read(err error) error {
	c.mu.Lock()
	c.open--
	last := c.open == 0
	c.broken = c.broken || err != io.EOF
	c.mu.Unlock()
	if err != io.EOF {
		c.finish(false)
		return err
	}
	if !last {
		return io.EOF
	}
	m, recvErr := c.w.conn.Receive(0, wire.Streamed)
	if recvErr != nil {
		err = c.fail(recvErr)
		c.finish(false)
		return err
	}
	var t wire.Trouble
	if wire.Unmarshal(m.Body, &t) != nil || t.Text != "" {
		err = c.trouble(wire.Message{Kind: wire.Failure, Body: m.Body})
	}
	c.finish(err == io.EOF && !c.broken)
	return err
}
