package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// State is what has become of a task.
type State int

const (
	Waiting  State = iota + 1 // for a worker, its delay, or another attempt
	Running                   // a worker has it
	Done                      // its command ended, well or not
	Dead                      // given up after its attempts: a dead letter
	Canceled                  // by Cancel
	Expired                   // its deadline passed before it started
)

func (s State) String() string {
	switch s {
	case Waiting:
		return "waiting"
	case Running:
		return "running"
	case Done:
		return "done"
	case Dead:
		return "dead"
	case Canceled:
		return "canceled"
	case Expired:
		return "expired"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// MarshalText returns the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *State) UnmarshalText(b []byte) error {
	for state := Waiting; state <= Expired; state++ {
		if state.String() == string(b) {
			*s = state
			return nil
		}
	}
	return fmt.Errorf("queue: %q is no state", b)
}

// Ended reports whether the state is the last one of a task.
func (s State) Ended() bool { return s >= Done }

// stateRecord is what has become of a task, at its id's subject: one record, which each change
// replaces if it is still the one that the writer saw. One that ended is never replaced, but by
// Requeue. So a task has one end, and a worker that lost it writes nothing any more.
type stateRecord struct {
	Version int    `cbor:"0,keyasint"`
	State   State  `cbor:"1,keyasint"`
	Attempt int    `cbor:"2,keyasint,omitempty"` // the last one that started
	Worker  string `cbor:"3,keyasint,omitempty"`
	// The number of the task's message; those before are obsolete.
	Message uint64 `cbor:"4,keyasint,omitempty"`
	// How often that had been handed out for the attempt.
	Delivered uint64 `cbor:"5,keyasint,omitempty"`
	// When the consumer was made that counted it, ns since 1970: another one counts anew.
	Counted int64 `cbor:"11,keyasint,omitempty"`
	// Attempts that do not count: their workers were stopped.
	Spared int        `cbor:"10,keyasint,omitempty"`
	At     int64      `cbor:"6,keyasint"`           // ns since 1970
	Text   string     `cbor:"7,keyasint,omitempty"` // why
	Run    *runRecord `cbor:"8,keyasint,omitempty"`
	// Waiting: not before then, ns since 1970 by the servers' clock.
	Next int64 `cbor:"9,keyasint,omitempty"`

	stored time.Time // by the servers' clock; zero: it was not read by state
}

const maxText = 4 << 10

// state returns a task's record and its sequence number, or nil and that of what is there instead,
// or 0.
func (q *Queue) state(ctx context.Context, id string) (r *stateRecord, seq uint64, err error) {
	m, err := q.last(ctx, q.states, q.subject("state", id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if len(m.Data) == 0 {
		return nil, m.Sequence, nil // none that was written for one
	}
	if r, err = decode[stateRecord](m.Data); err == nil {
		r.stored = m.Time
	}
	return r, m.Sequence, err
}

// announced returns the task and the state that servers announce, if it is they who do.
func (q *Queue) announced(m *nats.Msg) (id string, r *stateRecord, err error) {
	id = q.idOf("now", m.Subject)
	a, err := q.recordOf(m, nameOf(q.states))
	if err == nil && a.Subject != q.subject("state", id) {
		err = errHeaders
	}
	if err == nil {
		r, err = decode[stateRecord](a.Data)
	}
	return id, r, err
}

// replace writes a task's record in the place of the one with the number seq, or of none. It
// returns 0 if there is another one.
func (q *Queue) replace(ctx context.Context, id string, r *stateRecord, seq uint64) (uint64, error) {
	r.Version, r.At = version, time.Now().UnixNano()
	r.Text = strings.ToValidUTF8(r.Text[:min(len(r.Text), maxText)], "")
	data, err := encode(r)
	if err != nil {
		return 0, err
	}
	for wait := conflictWait; ; wait *= 2 {
		n, err := q.publish(ctx, q.subject("state", id), data, jetstream.WithExpectLastSequencePerSubject(seq))
		if !conflict(err) {
			return n, err
		}
		now, n, err := q.state(ctx, id)
		if err == nil && n <= seq && wait < maxLag {
			// No other record: the server that was read lags, or the write came too
			// soon after the one before, which nats-server 2.15 acknowledges before it
			// allows the next (jetstream_cluster.go, expectedPerSubjectInProcess).
			pause(ctx, wait)
			continue
		}
		// It may be there already, with the answer lost.
		if err != nil || now == nil || now.At != r.At || now.Worker != r.Worker || now.State != r.State || now.Attempt != r.Attempt {
			return 0, err
		}
		return n, nil
	}
}

// end writes the end of a task that nobody has, and returns that, or how it has ended otherwise.
func (q *Queue) end(ctx context.Context, id string, state State, text string) (now *stateRecord, err error) {
	for wait := conflictWait; ; wait *= 2 {
		old, seq, err := q.state(ctx, id)
		if err != nil || old != nil && old.State.Ended() {
			return old, err
		}
		r := &stateRecord{State: state, Text: text}
		if old != nil {
			r.Attempt, r.Worker, r.Message, r.Delivered, r.Counted = old.Attempt, old.Worker, old.Message, old.Delivered, old.Counted
		}
		// Before its end is written: what is stored after that, as it was put back, stays.
		message := q.waitingMessage(ctx, id, old)
		n, err := q.replace(ctx, id, r, seq)
		if err != nil {
			return r, err
		}
		if n != 0 {
			q.drop(ctx, message)
			return r, nil
		}
		if wait > maxConflictWait {
			return nil, errConflict
		}
		pause(ctx, wait)
	}
}

// waitingMessage returns the number of the message of a task, or 0 if a worker may have it, which
// acknowledges it.
func (q *Queue) waitingMessage(ctx context.Context, id string, r *stateRecord) uint64 {
	if r != nil && r.State != Waiting || q.holds(id) {
		return 0
	}
	m, err := q.taskMessage(ctx, id)
	if err != nil { // there is none, or a worker that gets it finds out
		return 0
	}
	return m.Sequence
}

// dropTime is for how long the answer to drop is waited for: a user that may not gets none.
const dropTime = 500 * time.Millisecond

// drop removes the message, if its number is not 0, of a task that has ended without a worker: it
// would count until one gets it, which may be when its delay is over. If it is still there then,
// the worker acknowledges it.
func (q *Queue) drop(ctx context.Context, message uint64) {
	if message == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dropTime)
	defer cancel()
	_ = q.tasks.DeleteMsg(ctx, message)
}

// Who finds another record than the one to be replaced looks again, after conflictWait and then
// twice as long each time, up to maxConflictWait.
const (
	conflictWait    = time.Millisecond
	maxConflictWait = 2 * time.Second
)

var errConflict = errors.New("its state changes all the time")

// Status is what a queue knows of a task.
type Status struct {
	ID      string `json:"id"`
	State   State  `json:"state"`
	Attempt int    `json:"attempt"`          // the last one that started; 0: none
	Worker  string `json:"worker,omitempty"` // that has it, or had it
	// Why it was canceled, given up or waits again, or for whom it waits.
	Text string    `json:"text,omitempty"`
	At   time.Time `json:"at"` // of the last change
}

// ErrNotFound means that the queue knows no task with the id: it never did, or its result has been
// kept for as long as Retention says.
var ErrNotFound = errors.New("no such task")

// Status returns what is known of a task. The error is ErrNotFound if nothing is.
func (q *Queue) Status(ctx context.Context, id string) (Status, error) {
	if err := checkID("Status", id); err != nil {
		return Status{}, err
	}
	r, t, err := q.find(ctx, id)
	if err != nil {
		return Status{}, fmt.Errorf("queue: %s: %w", id, err)
	}
	if r != nil {
		return statusOf(id, r), nil
	}
	return Status{ID: id, State: Waiting, Text: waitsFor(id), At: time.Unix(0, t.Submitted)}, nil
}

// maxLag is about how long a server may lag behind others of its cluster that have stored a record.
// What an answer lacks is looked for again, after 10 ms and then twice as long each time, up to
// maxLag/2: that is 8 looks in 1.3 s, of which some are likely to be at another server.
const maxLag = 2 * time.Second

// find returns a task's record, or the task itself if it has none yet.
func (q *Queue) find(ctx context.Context, id string) (*stateRecord, *taskRecord, error) {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		if r, _, err := q.state(ctx, id); r != nil || err != nil {
			return r, nil, err
		}
		t, err := q.task(ctx, id)
		if !errors.Is(err, ErrNotFound) {
			return nil, t, err
		}
		// It may have ended since its state was read.
		if r, _, err := q.state(ctx, id); r != nil || err != nil {
			return r, nil, err
		}
		// Any server of a cluster answers, also one that lags.
		if q.tasks.CachedInfo().Config.Replicas == 1 || wait > maxLag/2 {
			return nil, nil, ErrNotFound
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
	}
}

func statusOf(id string, r *stateRecord) Status {
	s := Status{ID: id, State: r.State, Attempt: r.Attempt, Worker: r.Worker, Text: r.Text, At: time.Unix(0, r.At)}
	if r.State == Waiting && s.Text == "" {
		s.Text = waitsFor(id)
	}
	return s
}

// task returns a task that has not ended.
func (q *Queue) task(ctx context.Context, id string) (*taskRecord, error) {
	m, err := q.taskMessage(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return decode[taskRecord](m.Data)
}

func (q *Queue) taskMessage(ctx context.Context, id string) (*jetstream.RawStreamMsg, error) {
	return q.last(ctx, q.tasks, q.subject("task", id))
}

// Cancel ends a task, with a reason for those who wait for it. One that waits never starts, and one
// that runs is killed by its worker as soon as it hears of it, within a fifth of the lease at the
// latest. It reports whether the task is canceled: false, if it had ended before.
func (q *Queue) Cancel(ctx context.Context, id, reason string) (bool, error) {
	if _, err := q.Status(ctx, id); err != nil {
		return false, err
	}
	r, err := q.end(ctx, id, Canceled, reason)
	if err != nil {
		return false, fmt.Errorf("queue: %s: %w", id, err)
	}
	q.config.log.Info("task canceled", "task", id, "state", r.State.String())
	return r.State == Canceled, nil
}

// List yields the tasks that the queue knows in no particular order: those that wait for their
// first attempt, and then the others. What changes meanwhile may be left out, or yielded twice.
func (q *Queue) List(ctx context.Context) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		started := map[string]bool{}
		var all []Status
		for m, err := range q.records(ctx, q.states, q.config.name+".state.>") {
			if err != nil {
				yield(Status{}, err)
				return
			}
			id := q.idOf("state", m.Subject)
			if !validID(id) || len(m.Data) == 0 {
				continue // not written by this package
			}
			started[id] = true
			if r, err := decode[stateRecord](m.Data); err == nil {
				all = append(all, statusOf(id, r))
			} else {
				all = append(all, Status{ID: id, Text: err.Error(), At: m.Time})
			}
		}
		for m, err := range q.records(ctx, q.tasks, q.config.name+".task.>") {
			if err != nil {
				yield(Status{}, err)
				return
			}
			if id := q.idOf("task", m.Subject); validID(id) && !started[id] && !yield(Status{ID: id, State: Waiting, Text: waitsFor(id), At: m.Time}, nil) {
				return
			}
		}
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// records yields the records of a stream at the subjects of a pattern.
func (q *Queue) records(ctx context.Context, s jetstream.Stream, pattern string) iter.Seq2[*jetstream.RawStreamMsg, error] {
	return q.recordsFrom(ctx, nameOf(s), 1, pattern)
}

// recordsFrom yields those whose number is at least from.
func (q *Queue) recordsFrom(ctx context.Context, stream string, from uint64, pattern string) iter.Seq2[*jetstream.RawStreamMsg, error] {
	return func(yield func(*jetstream.RawStreamMsg, error) bool) {
		for seq := from; ; {
			m, err := q.read(ctx, stream, query{From: seq, Pattern: pattern})
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("queue: %w", err))
				return
			}
			seq = m.Sequence + 1
			if !yield(m, nil) {
				return
			}
		}
	}
}
