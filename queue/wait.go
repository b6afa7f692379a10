package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cellkit/sandbox"
)

// Result is how a task's last attempt ended.
type Result struct {
	sandbox.Result
	ID      string
	Attempt int    // 1 for the first
	Worker  string // the name of the worker that ran it
	Started time.Time
	Ended   time.Time

	// Stdout and Stderr are the last 64 KiB of what the command wrote to each, and Cut is how
	// many bytes of both are missing before. An output that is to be had as a whole is written
	// to a file of Outputs.
	Stdout, Stderr []byte
	Cut            int64
	// Outputs has the files of Task.Outputs that there were. Their contents are read from the
	// queue when they are read, as long as it is open and keeps them, and checked: a Read fails
	// instead of the end of what was changed. It implements fs.ReadDirFS, fs.StatFS and
	// fs.ReadLinkFS, and follows symbolic links within. They are what a run left: hostile.
	Outputs fs.FS
	// Missing names those of Task.Outputs, and of the files in them, that there were not, or
	// that can't be kept, such as devices: up to 100.
	Missing []string

	function string // that was called; empty: it was a command
}

// These are found by errors.Is in errors of Wait.
var (
	ErrCanceled = errors.New("canceled")
	ErrDead     = errors.New("given up")
	ErrExpired  = errors.New("it did not start before its deadline")
	// ErrOutputs means that the command came to its end, and left more than a result may have
	// in Outputs: none of them is kept. The Result has what it printed. It is not tried again.
	ErrOutputs = errors.New("the outputs are too large to be kept")
)

// EndError is the error of a task that did not come to the end of its command, or was given up
// because the command failed in each attempt. errors.Is finds ErrCanceled, ErrDead or ErrExpired in
// it, and errors.As the *sandbox.ExitError of the last attempt, if it had one.
type EndError struct {
	ID      string
	State   State  // Dead, Canceled or Expired
	Attempt int    // the last one that started; 0: none did
	Text    string // why: of a canceled task, the reason that Cancel was given

	exit error
}

func (e *EndError) Error() string {
	s := fmt.Sprintf("queue: %s: %v", e.ID, e.State)
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Unwrap returns the sentinel of the state, and the last attempt's *sandbox.ExitError.
func (e *EndError) Unwrap() []error {
	sentinel := map[State]error{Dead: ErrDead, Canceled: ErrCanceled, Expired: ErrExpired}[e.State]
	if e.exit == nil {
		return []error{sentinel}
	}
	return []error{sentinel, e.exit}
}

// Wait waits for the end of a task, which anybody may have submitted. As for a run on this machine,
// the error is an *sandbox.ExitError if the command did not exit with status 0, and the result is
// there too; errors.Is finds ErrOutputs in it if its files were too large. It is an *EndError if
// the task was canceled, given up or expired, and ErrNotFound if the queue does not know it.
func (q *Queue) Wait(ctx context.Context, id string) (*Result, error) {
	if err := checkID("Wait", id); err != nil {
		return nil, err
	}
	changed, stop, err := q.watch(id)
	if err != nil {
		return nil, fmt.Errorf("queue: %s: %w", id, err)
	}
	defer stop()
	waits := waitsFor(id) // unless it is known to have a worker
	var r *stateRecord    // as it was announced, or nil: it is to be looked at
	var seq uint64
	for look := q.firstLook(id); ; look = nextLook(look) {
		if r == nil && look != lookSoon {
			r, seq, err = q.state(ctx, id)
		}
		if err == nil && r == nil && look == lookAgain {
			r, err = q.expire(ctx, id, seq)
		}
		if err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("queue: %s: %w", id, err)
		}
		if r != nil && r.State == Running {
			waits = ""
		}
		if r != nil && r.State.Ended() {
			return q.result(id, r)
		}
		r, err = nil, nil
		select {
		case <-ctx.Done():
			if waits != "" {
				return nil, fmt.Errorf("queue: %s: it waits %s: %w", id, waits, context.Cause(ctx))
			}
			return nil, fmt.Errorf("queue: %s: %w", id, context.Cause(ctx))
		case r = <-changed:
		case <-time.After(look):
		}
	}
}

// lookAgain is after how long Wait looks at a task of which nothing was announced, as that may get
// lost with a connection; lookFirst is after how long it looks whether there is such a task at all,
// which most have answered by then. Before, it looks at once, but at a task that was submitted a
// moment ago after lookSoon: hardly one has ended before its changes were listened to.
const (
	lookSoon  = 2 * time.Millisecond
	lookFirst = 50 * time.Millisecond
	lookAgain = 2 * time.Second
)

func (q *Queue) firstLook(id string) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if id == q.newest && time.Since(q.newestAt) < lookSoon {
		return lookSoon
	}
	return lookFirst
}

func nextLook(look time.Duration) time.Duration {
	if look == lookSoon {
		return lookFirst
	}
	return lookAgain
}

// watch returns a channel that gets a task's record after each change of its state, or nil if it is
// to be looked at. Servers announce a record once it is stored as durably as their answer says, so
// who waits needs no other request for it.
func (q *Queue) watch(id string) (<-chan *stateRecord, func(), error) {
	changed := make(chan *stateRecord, 1)
	sub, err := q.nc.Subscribe(q.subject("now", id), func(m *nats.Msg) {
		_, r, err := q.announced(m)
		if err != nil {
			r = nil
		}
		select {
		case <-changed: // an older one
		default:
		}
		changed <- r
	})
	if err != nil {
		return nil, nil, err
	}
	return changed, func() { _ = sub.Unsubscribe() }, nil // fails if the connection is closed
}

// expire ends a task that has not started if its deadline has passed, and returns its state if it
// has one, which it had not when seq was that of what was there.
func (q *Queue) expire(ctx context.Context, id string, seq uint64) (*stateRecord, error) {
	m, err := q.taskMessage(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		// It may have ended since its state was read. If not, it is looked at again.
		r, _, err := q.find(ctx, id)
		return r, err
	}
	if err != nil {
		return nil, err
	}
	t, err := decode[taskRecord](m.Data)
	if err != nil || t.Deadline == 0 {
		return nil, err
	}
	if left, err := q.until(ctx, t.Deadline); err != nil || left > 0 {
		return nil, err
	}
	// If there is a state now, it is looked at again.
	r := &stateRecord{State: Expired, Text: ErrExpired.Error()}
	if n, err := q.replace(ctx, id, r, seq); n == 0 || err != nil {
		return nil, err
	}
	q.drop(ctx, m.Sequence)
	return r, nil
}

// result returns what Wait does.
func (q *Queue) result(id string, r *stateRecord) (*Result, error) {
	var res *Result
	var exit error
	if r.Run != nil {
		run, err := r.Run.result()
		if err != nil {
			return nil, fmt.Errorf("queue: %s: %w", id, err)
		}
		res = &Result{Result: run, ID: id, Attempt: r.Attempt, Worker: r.Worker, Started: time.Unix(0, r.Run.Started), Ended: time.Unix(0, r.At), Stdout: r.Run.Stdout, Stderr: r.Run.Stderr,
			Cut: r.Run.Cut, Missing: r.Run.Missing, function: r.Run.Func}
		files := r.Run.Outputs
		if files == nil {
			files = &bundle{Inline: &bundleRecord{}}
		}
		if res.Outputs, err = q.unpack(q.ctx, files); err != nil {
			return nil, fmt.Errorf("queue: %s: outputs: %w", id, err)
		}
		if run.ExitCode != 0 || run.Reason != sandbox.Exited {
			exit = &sandbox.ExitError{Result: &res.Result, Stderr: res.Stderr}
		}
		if r.Run.Call != nil {
			exit = r.Run.Call.err(id)
		}
		if r.Run.Lost != "" {
			exit = errors.Join(fmt.Errorf("queue: %s: %w: %s", id, ErrOutputs, r.Run.Lost), exit)
		}
	}
	switch r.State {
	case Done:
		if res == nil {
			return nil, fmt.Errorf("queue: %s: its record has no result", id)
		}
		return res, exit
	case Dead, Canceled, Expired:
		return res, &EndError{ID: id, State: r.State, Attempt: r.Attempt, Text: r.Text, exit: exit}
	}
	return nil, fmt.Errorf("queue: %s: the state %v, which this version does not know", id, r.State)
}

// WaitAll waits for the ends of several tasks, and returns what Wait does for each, in their order.
// A task that failed does not end the others' wait.
func (q *Queue) WaitAll(ctx context.Context, ids []string) ([]*Result, []error) {
	results, errs := make([]*Result, len(ids)), make([]error, len(ids))
	ended := make([]func() map[string]*stateRecord, (len(ids)+batch-1)/batch)
	var silent atomic.Bool // servers may forbid it
	for n := range ended {
		ended[n] = sync.OnceValue(func() map[string]*stateRecord {
			if silent.Load() {
				return nil
			}
			records, answered := q.ended(ctx, ids[n*batch:min((n+1)*batch, len(ids))])
			silent.Store(!answered)
			return records
		})
	}
	inBatches(len(ids), func(i int) {
		if r := ended[i/batch]()[ids[i]]; r != nil {
			results[i], errs[i] = q.result(ids[i], r)
		} else {
			results[i], errs[i] = q.Wait(ctx, ids[i])
		}
	})
	return results, errs
}

// endedTime is for how long the answers to ended are waited for.
const endedTime = 500 * time.Millisecond

// ended returns the records of those of a batch of tasks that have ended, asked for at once, and
// whether the servers answered. What can't be had now is left out: Wait asks for it.
func (q *Queue) ended(ctx context.Context, ids []string) (records map[string]*stateRecord, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, endedTime)
	defer cancel()
	ask := struct {
		Subjects []string `json:"multi_last"`
	}{}
	for _, id := range ids {
		if validID(id) {
			ask.Subjects = append(ask.Subjects, q.subject("state", id))
		}
	}
	body, err := json.Marshal(ask)
	if err != nil || len(ask.Subjects) == 0 {
		return nil, true
	}
	answers := q.nc.NewInbox()
	sub, err := q.nc.SubscribeSync(answers)
	if err != nil {
		return nil, false
	}
	defer func() { _ = sub.Unsubscribe() }() // fails if the connection is closed
	if err := q.nc.PublishRequest("$JS.API.DIRECT.GET."+nameOf(q.states), answers, body); err != nil {
		return nil, false
	}
	records = map[string]*stateRecord{}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return records, answered
		}
		answered = true
		if m.Header.Get("Status") != "" { // that was all, or looks so
			return records, answered
		}
		if a, err := q.recordOf(m, nameOf(q.states)); err == nil {
			if r, err := decode[stateRecord](a.Data); err == nil && r.State.Ended() {
				records[q.idOf("state", a.Subject)] = r
			}
		}
	}
}
