package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nats-io/nats.go"

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
	for look := lookAgain; ; look = min(2*look, lookAgain) {
		r, _, err := q.state(ctx, id)
		if err == nil && r == nil {
			r, err = q.expire(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("queue: %s: %w", id, err)
		}
		if r != nil && r.State == Running {
			waits = ""
		}
		if r != nil && r.State.Ended() {
			return q.result(ctx, id, r)
		}
		select {
		case <-ctx.Done():
			if waits != "" {
				return nil, fmt.Errorf("queue: %s: it waits %s: %w", id, waits, context.Cause(ctx))
			}
			return nil, fmt.Errorf("queue: %s: %w", id, context.Cause(ctx))
		case <-changed:
			if q.states.CachedInfo().Config.Replicas > 1 {
				look = time.Millisecond // the server that answers may lag
			}
		case <-time.After(look):
		}
	}
}

// lookAgain is after how long Wait looks at a task of which nothing was announced, as that may get
// lost with a connection.
const lookAgain = 2 * time.Second

// watch returns a channel that gets something after each change of a task's state.
func (q *Queue) watch(id string) (<-chan struct{}, func(), error) {
	changed := make(chan struct{}, 1)
	sub, err := q.nc.Subscribe(q.subject("now", id), func(*nats.Msg) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return changed, func() { _ = sub.Unsubscribe() }, nil // fails if the connection is closed
}

// expire ends a task that has not started if its deadline has passed.
func (q *Queue) expire(ctx context.Context, id string) (*stateRecord, error) {
	r, t, err := q.find(ctx, id)
	if r != nil || err != nil {
		return r, err
	}
	if t.Deadline == 0 {
		return nil, nil
	}
	if left, err := q.until(ctx, t.Deadline); err != nil || left > 0 {
		return nil, err
	}
	return q.end(ctx, id, Expired, ErrExpired.Error())
}

// result returns what Wait does.
func (q *Queue) result(ctx context.Context, id string, r *stateRecord) (*Result, error) {
	var res *Result
	var exit error
	if r.Run != nil {
		run, err := r.Run.result()
		if err != nil {
			return nil, fmt.Errorf("queue: %s: %w", id, err)
		}
		res = &Result{Result: run, ID: id, Attempt: r.Attempt, Worker: r.Worker, Started: time.Unix(0, r.Run.Started), Ended: time.Unix(0, r.At), Stdout: r.Run.Stdout, Stderr: r.Run.Stderr,
			Cut: r.Run.Cut, Missing: r.Run.Missing}
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
	inBatches(len(ids), func(i int) { results[i], errs[i] = q.Wait(ctx, ids[i]) })
	return results, errs
}
