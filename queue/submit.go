package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrFull means that the queue has as many tasks, or as many bytes, as it takes, or that the disk
// of its server has too little space.
var ErrFull = errors.New("the queue is full")

// Submit stores a task, and its inputs before, and returns its id. When it has returned without an
// error the servers have stored the task. With a server in this process it is on the disk then,
// unless SyncEvery is set, of which Log warns; of servers elsewhere it is if they sync always,
// which they do not tell: docs/QUEUE.md has what is lost when. After an error the task may be
// stored nevertheless, as when the answer got lost; Submit of a task with a Key may be repeated
// until it succeeds. While no server answers, Submit waits for one until ctx ends, with Inputs for
// half an hour at most.
//
// What is wrong with the task is an *sandbox.OptionError.
func (q *Queue) Submit(ctx context.Context, t Task) (id string, err error) {
	r, err := t.record(nil)
	if err != nil {
		return "", err
	}
	begun := time.Now()
	if t.Inputs != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, packTime, errSlow)
		defer cancel()
		if r.Inputs, _, err = q.pack(ctx, t.Inputs, []string{"."}, false); err != nil {
			return "", fmt.Errorf("queue: inputs: %w", full(err))
		}
	}
	return q.submit(ctx, t.id(""), r, &t, begun)
}

// submit stores a task under an id. begun is when Submit was called.
func (q *Queue) submit(ctx context.Context, id string, r *taskRecord, t *Task, begun time.Time) (string, error) {
	err := r.check()
	if err == nil {
		err = q.setTimes(ctx, r, t, begun)
	}
	var data []byte
	if err == nil {
		data, err = encode(r)
	}
	if err == nil {
		err = q.store(ctx, id, data)
	}
	if unanswered(err) && q.embedded == nil {
		err = fmt.Errorf("%w: no server has stored it: are they there, and have their disks space?", err)
	}
	if err != nil {
		return "", fmt.Errorf("queue: submit: %w", full(err))
	}
	if t.Key == "" {
		q.mu.Lock()
		q.newest, q.newestAt = id, time.Now()
		q.mu.Unlock()
	}
	q.config.log.Info("task submitted", "task", id)
	return id, nil
}

// store stores a task, unless it is there or has been.
func (q *Queue) store(ctx context.Context, id string, data []byte) error {
	for {
		err := q.publishNew(ctx, q.subject("task", id), data, jetstream.WithExpectLastSequencePerSubject(0))
		if !conflict(err) {
			return err
		}
		// Servers may refuse a record because of one that they have not stored yet, and
		// then fail to store that.
		if _, err := q.task(ctx, id); !errors.Is(err, ErrNotFound) {
			if unanswered(err) || ctx.Err() != nil {
				return err
			}
			return nil
		}
		if s, _, err := q.state(ctx, id); s != nil || err != nil {
			return err
		}
	}
}

// full returns ErrFull for what servers answer when they take no more.
func full(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode {
		// JSInsufficientResources, JSStorageResourcesExceeded, JSStreamStoreFailed: a
		// maximum.
		case 10023, 10047, 10077:
			return errors.Join(ErrFull, err)
		}
	}
	return err
}

// batch is how many tasks SubmitAll and WaitAll work on at once.
const batch = 64

// SubmitAll submits tasks, several at a time, and returns their ids in the same order. Ids of tasks
// that failed are empty, and their errors are joined.
func (q *Queue) SubmitAll(ctx context.Context, tasks []Task) ([]string, error) {
	ids, errs := make([]string, len(tasks)), make([]error, len(tasks))
	inBatches(len(tasks), func(i int) {
		if ids[i], errs[i] = q.Submit(ctx, tasks[i]); errs[i] != nil {
			errs[i] = fmt.Errorf("task %d: %w", i, errs[i])
		}
	})
	return ids, errors.Join(errs...)
}

// inBatches calls f for 0 to n-1, batch at a time.
func inBatches(n int, f func(int)) {
	var group sync.WaitGroup
	turn := make(chan struct{}, batch)
	for i := range n {
		turn <- struct{}{}
		group.Go(func() {
			defer func() { <-turn }()
			f(i)
		})
	}
	group.Wait()
}
