package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	logChunk    = 16 << 10
	logChunks   = 64 // that are kept of a task
	logRate     = 1 << 20
	logEvery    = 100 * time.Millisecond
	maxLogBytes = 64 << 20 // of all tasks
	tailBytes   = 64 << 10
)

// logRecord is a piece of what a command wrote.
type logRecord struct {
	Version int    `cbor:"0,keyasint"`
	Attempt int    `cbor:"1,keyasint"`
	Stream  int    `cbor:"2,keyasint"` // 0: standard output, 1: standard error
	Offset  int64  `cbor:"3,keyasint"`
	Data    []byte `cbor:"4,keyasint"` // none: the attempt's output has ended
	// The number of the state by which the worker claimed the attempt, which is more for later
	// ones, and that of the piece in it, from 1.
	Claim  uint64 `cbor:"5,keyasint"`
	Number uint64 `cbor:"6,keyasint"`
}

// position is more for later pieces, and one more for the next one of the attempt, whichever
// numbers servers give them: these begin anew when a stream in memory does.
func (r *logRecord) position() uint64 { return r.Claim<<28 + r.Number }

// Chunk is a piece of what a task's command wrote.
type Chunk struct {
	Position uint64 // of the piece: what Logs takes to go on after it
	Attempt  int
	Stderr   bool
	Offset   int64 // in the attempt's standard output or error. A gap is what is not kept.
	Data     []byte
}

// Logs yields what a task's command writes while it runs, from what is kept of it on, or, for one
// that returns, after the piece with a Position. It ends when the task has ended. Pieces come at
// most a tenth of a second later than they were written. Of a task the last 64 pieces are kept, up
// to 1 MiB, of all tasks 64 MiB, in the servers' memory; and no more is sent than 1 MiB, and 1 MiB
// a second. When the servers were started anew what they kept is lost, and what is written then
// comes up to two seconds later. The end of the output is also in the Result.
func (q *Queue) Logs(ctx context.Context, id string, after uint64) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		if err := q.follow(ctx, id, after, func(c Chunk) bool { return yield(c, nil) }); err != nil {
			yield(Chunk{}, err)
		}
	}
}

func (q *Queue) follow(ctx context.Context, id string, after uint64, yield func(Chunk) bool) error {
	if err := checkID("Logs", id); err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	for _, kind := range []string{"log", "now"} {
		sub, err := q.nc.Subscribe(q.subject(kind, id), func(*nats.Msg) {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }() // fails if the connection is closed
	}
	r := &logReader{q: q, id: id, after: after, yield: yield}
	for looked := clockNow(); ; {
		// Before the log is read, whose last piece is stored before the end.
		s, _, err := q.find(ctx, id)
		more := true
		if err == nil {
			more, err = r.read(ctx)
		}
		ended := s != nil && s.State.Ended()
		if more && err == nil && ended {
			err = r.finish(ctx, s)
		} else if more && err == nil && clockNow() > looked+lookAnew {
			_, err = r.anew(ctx)
			looked = clockNow()
		}
		if err != nil {
			return fmt.Errorf("queue: %s: %w", id, err)
		}
		if !more || ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("queue: %s: %w", id, context.Cause(ctx))
		case <-changed:
		case <-time.After(logEvery): // what is announced may not be stored yet
		}
	}
}

// lookAnew is how often a reader looks whether the stream of logs has begun anew.
const lookAnew = time.Second

// logReader reads what is kept of a task's output.
type logReader struct {
	q     *Queue
	id    string
	after uint64 // the position of the last piece
	next  uint64 // the number of the record to read; those of the task's before are known
	over  int    // the attempt whose end the last piece was
	yield func(Chunk) bool
}

func (r *logReader) ask(ctx context.Context, what query) (seq uint64, p *logRecord, err error) {
	m, err := r.q.read(ctx, r.q.config.name+"-logs", what)
	if err != nil {
		return 0, nil, err
	}
	if p, err = decode[logRecord](m.Data); err != nil {
		p = &logRecord{} // written by no worker
	}
	if p.Claim == 0 { // nor by one of this version
		p.Number = m.Sequence
	}
	return m.Sequence, p, nil
}

// read yields the pieces that are not known, and reports whether more are wanted. Where some are
// missing they may be earlier in a stream that has begun anew, so all are read again once: no more
// than logChunks are kept.
func (r *logReader) read(ctx context.Context) (more bool, err error) {
	for all := r.next == 0; ; {
		seq, p, err := r.ask(ctx, query{From: max(r.next, 1), Pattern: r.q.subject("log", r.id)})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		at := p.position()
		if at > r.after+1 && !all {
			r.next, all = 0, true
			continue
		}
		r.next = seq + 1
		if at <= r.after {
			continue
		}
		r.after, r.over = at, 0
		if len(p.Data) == 0 {
			r.over = p.Attempt
		} else if !r.yield(Chunk{Position: at, Attempt: p.Attempt, Stderr: p.Stream == 1, Offset: p.Offset, Data: p.Data}) {
			return false, nil
		}
	}
}

// anew reports whether the last piece is not known, and has all be read again if its number is too
// low, or there is none: the stream has begun anew.
func (r *logReader) anew(ctx context.Context) (bool, error) {
	seq, p, err := r.ask(ctx, query{Last: r.q.subject("log", r.id)})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		r.next = 0
		return false, nil
	}
	if err != nil || p.position() <= r.after {
		return false, err
	}
	if seq < r.next {
		r.next = 0
	}
	return true, nil
}

// finish yields what is left of a task that has ended. Any server of a cluster answers, also one
// that lags.
func (r *logReader) finish(ctx context.Context, s *stateRecord) error {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		more, err := r.anew(ctx)
		if more && err == nil {
			more, err = r.read(ctx)
			if !more {
				return err
			}
		}
		// What it wrote was stored before its result, in which there is some of it.
		wrote := s.Run != nil && len(s.Run.Stdout)+len(s.Run.Stderr) > 0
		if err != nil || !wrote || r.over == s.Attempt || r.q.tasks.CachedInfo().Config.Replicas == 1 || wait > maxLag/2 {
			return err
		}
		pause(ctx, wait)
	}
}

// output takes what a command writes: its end, for the result, and pieces, for Logs.
type output struct {
	q       *Queue
	id      string
	attempt int    // set before the command starts, as is
	claim   uint64 // the number of its state

	mu      sync.Mutex
	sent    uint64 // pieces
	streams [2]stream
	due     *time.Timer // sends what is pending; nil: nothing is
	budget  float64     // bytes that may be sent now
	filled  time.Time
}

// stream is one of a command's two outputs.
type stream struct {
	tail    []byte // the last tailBytes, or up to twice as many
	pending []byte // not sent yet
	offset  int64  // of what is pending
	written int64
}

func (q *Queue) newOutput(id string) *output {
	return &output{q: q, id: id, budget: logRate, filled: time.Now()}
}

func (o *output) writer(n int) io.Writer {
	return writerFunc(func(p []byte) (int, error) { return o.write(n, p) })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (o *output) write(n int, p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.streams[n]
	s.written += int64(len(p))
	s.tail = append(s.tail, p[max(0, len(p)-tailBytes):]...)
	if len(s.tail) > 2*tailBytes {
		s.tail = append(s.tail[:0], s.tail[len(s.tail)-tailBytes:]...)
	}
	for left := p; len(left) > 0; {
		k := min(len(left), logChunk-len(s.pending))
		s.pending = append(s.pending, left[:k]...)
		left = left[k:]
		if len(s.pending) == logChunk {
			o.send(n)
		}
	}
	if o.due == nil && len(s.pending) > 0 {
		o.due = time.AfterFunc(logEvery, o.flush)
	}
	return len(p), nil
}

// send sends what is pending of a stream, or leaves it out if too much was sent.
func (o *output) send(n int) {
	s := &o.streams[n]
	now := time.Now()
	o.budget = min(logRate, o.budget+logRate*now.Sub(o.filled).Seconds())
	o.filled = now
	if size := float64(len(s.pending)); size > 0 && size <= o.budget {
		data, err := encode(&logRecord{Version: version, Attempt: o.attempt, Stream: n, Offset: s.offset, Data: s.pending, Claim: o.claim, Number: o.sent + 1})
		if err == nil && o.q.nc.Publish(o.q.subject("log", o.id), data) == nil {
			o.budget -= size
			o.sent++
		}
	}
	s.offset += int64(len(s.pending))
	s.pending = s.pending[:0]
}

// end sends what is left, and returns when all that was sent is stored.
func (o *output) end(ctx context.Context) {
	o.flush()
	o.mu.Lock()
	sent := o.sent
	o.mu.Unlock()
	if sent == 0 {
		return
	}
	// The stream stores in order: when it has this one, it has all. It is only a log: the
	// result does not wait for long.
	end, err := encode(&logRecord{Version: version, Attempt: o.attempt, Offset: o.streams[0].offset, Claim: o.claim, Number: sent + 1})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = o.q.js.Publish(ctx, o.q.subject("log", o.id), end, jetstream.WithRetryAttempts(0))
}

// flush sends what is pending.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.due != nil {
		o.due.Stop()
		o.due = nil
	}
	for n := range o.streams {
		o.send(n)
	}
}

// result puts the end of the output into the record of a run.
func (o *output) result(r *runRecord) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n, dst := range []*[]byte{&r.Stdout, &r.Stderr} {
		s := &o.streams[n]
		*dst = s.tail[max(0, len(s.tail)-tailBytes):]
		r.Cut += s.written - int64(len(*dst))
	}
}
