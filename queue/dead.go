package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrNotDead means that a task that was to be put back is no dead letter.
var ErrNotDead = errors.New("it is no dead letter")

// Dead yields the tasks that were given up after their attempts, and are kept (Retention).
func (q *Queue) Dead(ctx context.Context) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		for m, err := range q.records(ctx, q.dead, q.config.name+".dead.>") {
			if err != nil {
				yield(Status{}, err)
				return
			}
			id := q.idOf("dead", m.Subject)
			if !validID(id) {
				continue // not written by this package
			}
			r, _, err := q.state(ctx, id)
			if err != nil {
				if !yield(Status{ID: id}, fmt.Errorf("queue: %s: %w", id, err)) {
					return
				}
				continue
			}
			// A worker writes the letter before the state, and Requeue removes it last.
			if r != nil && r.State == Dead && !yield(statusOf(id, r), nil) {
				return
			}
		}
	}
}

// bury keeps a task that is about to be given up.
func (q *Queue) bury(ctx context.Context, id string, task []byte) error {
	_, err := q.publish(ctx, q.subject("dead", id), task)
	return err
}

// Requeue puts a dead letter back: it waits again, with as many attempts as at first, and the same
// id. The error is ErrNotDead if it is none. It may be repeated if it failed.
func (q *Queue) Requeue(ctx context.Context, id string) error {
	if err := checkID("Requeue", id); err != nil {
		return err
	}
	if err := q.requeue(ctx, id); err != nil {
		return fmt.Errorf("queue: %s: %w", id, full(err))
	}
	q.config.log.Info("task put back", "task", id)
	return nil
}

func (q *Queue) requeue(ctx context.Context, id string) error {
	var letter *jetstream.RawStreamMsg
	var r *stateRecord
	var seq uint64
	var again bool
	// Servers that answer may lag behind those that have said that the task is dead.
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		var err error
		if letter, err = q.last(ctx, q.dead, q.subject("dead", id)); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
		if r, seq, err = q.state(ctx, id); err != nil {
			return err
		}
		// A Requeue that was cut short has left it waiting, with its letter and without a
		// task.
		again = r != nil && r.State == Waiting && r.Attempt == 0
		if letter != nil && (again || r != nil && r.State == Dead) {
			break
		}
		if r != nil && r.State.Ended() && r.State != Dead || q.states.CachedInfo().Config.Replicas == 1 || wait > maxLag/2 {
			return ErrNotDead
		}
		pause(ctx, wait)
	}
	if !again {
		// Its message may still be there, if who buried it has not acknowledged it yet.
		r = &stateRecord{State: Waiting, Message: r.Message + 1, Text: "put back"}
		if n, err := q.replace(ctx, id, r, seq); err != nil || n == 0 {
			return errors.Join(err, ErrNotDead)
		}
	}
	t, err := decode[taskRecord](letter.Data)
	if err != nil {
		return err
	}
	t.NotBefore, t.Deadline = 0, 0
	data, err := encode(t)
	if err == nil {
		err = q.republish(ctx, id, data, r.Message)
	}
	if err != nil {
		return err
	}
	return q.remove(ctx, q.dead, letter.Sequence)
}

// republish stores a task whose message is to have at least the given number, unless it is stored.
func (q *Queue) republish(ctx context.Context, id string, data []byte, from uint64) error {
	for {
		_, err := q.publish(ctx, q.subject("task", id), data, jetstream.WithExpectLastSequencePerSubject(0))
		if !conflict(err) {
			return err
		}
		m, err := q.taskMessage(ctx, id)
		if err == nil && m.Sequence < from {
			err = q.remove(ctx, q.tasks, m.Sequence)
		} else if err == nil {
			return nil
		}
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
	}
}
