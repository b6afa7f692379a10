package function

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/wire"
)

// What follows is for those who carry calls to other processes of this program, as module queue
// does: there is nothing here that Call does not do too.

// Name returns the name that New was given.
func (f *Func[In, Out]) Name() string { return f.name }

// Encode returns an argument as CallEncoded takes it, in this process or in another one of the same
// build. The error is ErrMessageLimit if it is larger than MessageLimit allows, and
// errors.ErrUnsupported if In or Out has a field that is an *os.File or an io.Reader.
func (f *Func[In, Out]) Encode(in In) ([]byte, error) {
	if f.in.Files()+f.out.Files() > 0 {
		return nil, fmt.Errorf("sandbox: function %s: its files and streams can't be encoded: send their contents: %w", f.name, errors.ErrUnsupported)
	}
	b, err := wire.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("sandbox: function %s: its argument: %w", f.name, err)
	}
	if limit := f.Limits().Message; int64(len(b)) > limit {
		return nil, f.tooLarge("argument", fmt.Errorf("%w: %d bytes, the limit is %d", wire.ErrTooLarge, len(b), limit))
	}
	return b, nil
}

// Decode returns a result of CallEncoded, whoever made it: what it may take is bounded as for Call,
// and a result that has files is an error.
func (f *Func[In, Out]) Decode(ctx context.Context, result []byte) (Out, error) {
	out, err := wire.UnpackAnswer[Out](ctx, f.out, wire.Message{Body: result}, f.Limits().Message, nil)
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		return out, f.tooLarge("result", err)
	case err != nil:
		return out, fmt.Errorf("sandbox: function %s: its result: %w", f.name, err)
	}
	return out, nil
}

// CallEncoded does what Call does, with an argument that Encode returned, and a result for Decode.
// This process decodes neither: a hostile argument is decoded in the function's process.
func (f *Func[In, Out]) CallEncoded(ctx context.Context, in []byte, opts ...Option) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, fault.NotStarted(ctx)
	}
	s, err := f.sandbox(opts)
	if err != nil {
		return nil, err
	}
	w, err := f.start(ctx, s)
	if err != nil {
		return nil, err
	}
	return f.invokeEncoded(ctx, w, in)
}

// invokeEncoded makes a worker serve a call, and ends the worker.
func (f *function) invokeEncoded(ctx context.Context, w *worker, in []byte) ([]byte, error) {
	c := &call{w: w, ctx: ctx, done: func(bool) { w.end() }, finished: make(chan struct{})}
	c.alive, c.cancel = context.WithCancel(ctx)
	defer c.finish(false)
	var e wire.Envelope
	if deadline, ok := ctx.Deadline(); ok {
		e.Until = max(deadline.UnixNano(), 1)
	}
	body, err := wire.Marshal(e)
	if err != nil {
		return nil, err
	}
	c.begin()
	err = w.conn.Send(wire.Message{Kind: wire.Call, Body: append(body, in...)})
	if errors.Is(err, wire.ErrTooLarge) {
		err = f.tooLarge("argument", err)
	}
	if err != nil && !isReset(err) { // after a reset, Receive returns why
		return nil, err
	}
	m, err := w.conn.Receive(0, wire.Answer, wire.Failure, wire.Panicked)
	if err != nil {
		return nil, c.fail(err)
	}
	m.Discard()
	if m.Kind != wire.Answer {
		return nil, c.trouble(m)
	}
	return m.Body, nil
}

// Limits are what the options of a function allow its processes and messages.
type Limits struct {
	Memory  int64   // bytes; 0: not limited
	CPUs    float64 // 0: not limited
	Message int64   // bytes: MessageLimit
}

// Limits returns what the options of the function allow.
func (f *Func[In, Out]) Limits() Limits {
	as := described(f.base())
	return Limits{Memory: as.Limits.Memory, CPUs: as.Limits.CPUs, Message: as.Function.Message()}
}
