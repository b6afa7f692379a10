package queue

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// collectEvery is how often one of the workers collects.
const collectEvery = time.Hour

// takeTurn reports whether nobody has collected for collectEvery: a message of an id that was there
// so recently is a duplicate.
func (q *Queue) takeTurn(ctx context.Context) bool {
	ack, err := q.js.Publish(ctx, q.config.name+".turn", nil, jetstream.WithMsgID("collect"))
	return err == nil && !ack.Duplicate
}

// Collect removes what is kept no longer: the states and results of tasks that ended before the
// time that Retention says, and then the contents of inputs and outputs to which no task, result or
// dead letter refers, and which are older than an hour. One of the workers does so every hour.
func (q *Queue) Collect(ctx context.Context) error {
	used := map[string]bool{} // names of contents
	// By the servers' clock, as the times of records are.
	info, err := q.blobs.Info(ctx)
	if err != nil {
		return fmt.Errorf("queue: collect: %w", err)
	}
	begun := info.TimeStamp
	// A task becomes a dead letter, or one a task, by being both for a moment.
	for _, kind := range []string{"dead", "task", "dead"} {
		stream := map[string]jetstream.Stream{"dead": q.dead, "task": q.tasks}[kind]
		for m, err := range q.records(ctx, stream, q.config.name+"."+kind+".>") {
			if err != nil {
				return err
			}
			if t, err := decode[taskRecord](m.Data); err == nil {
				if err := q.mark(ctx, used, t.Inputs); err != nil {
					return err
				}
			}
		}
	}
	for m, err := range q.records(ctx, q.services, q.subject("service", "*")) {
		if err != nil {
			return err
		}
		if r, err := decode[serviceRecord](m.Data); err == nil && r.Task != nil {
			if err := q.mark(ctx, used, r.Task.Inputs); err != nil {
				return err
			}
		}
	}
	if err := q.dropLanes(ctx, begun.Add(-laneKept)); err != nil {
		return err
	}
	for m, err := range q.records(ctx, q.states, q.config.name+".state.>") {
		if err != nil {
			return err
		}
		old := begun.Sub(m.Time) > q.config.retention
		if len(m.Data) == 0 { // no task's state
			if !old {
				continue
			}
			if err := q.remove(ctx, q.states, m.Sequence); err != nil {
				return err
			}
			continue
		}
		r, err := decode[stateRecord](m.Data)
		if err != nil {
			continue
		}
		if r.State.Ended() && old {
			if err := q.forget(ctx, m); err != nil {
				return err
			}
			continue
		}
		if r.Run != nil {
			if err := q.mark(ctx, used, r.Run.Outputs); err != nil {
				return err
			}
		}
	}
	return q.sweep(ctx, used, begun.Add(-blobGrace))
}

// forget removes a state, and first the task's message, so that it does not start again.
func (q *Queue) forget(ctx context.Context, state *jetstream.RawStreamMsg) error {
	id := q.idOf("state", state.Subject)
	m, err := q.taskMessage(ctx, id)
	if err == nil {
		err = q.remove(ctx, q.tasks, m.Sequence)
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("queue: %s: %w", id, err)
	}
	return q.remove(ctx, q.states, state.Sequence)
}

// remove removes a message, if it is there.
func (q *Queue) remove(ctx context.Context, s jetstream.Stream, seq uint64) error {
	return retry(ctx, func(ctx context.Context) error {
		err := s.DeleteMsg(ctx, seq)
		if err == nil || unanswered(err) {
			return err
		}
		// The error does not say why.
		if _, gone := q.read(ctx, nameOf(s), query{From: seq}); errors.Is(gone, jetstream.ErrMsgNotFound) {
			return nil
		}
		return err
	})
}

// mark adds the names of a bundle's contents. A list that can't be read refers to nothing: who has
// the bundle can't read it either.
func (q *Queue) mark(ctx context.Context, used map[string]bool, b *bundle) error {
	if b == nil {
		return nil
	}
	list := b.Inline
	if list == nil {
		if len(b.Sum) != 32 || b.Size < 0 || b.Size > maxBundle {
			return nil
		}
		used[hex.EncodeToString(b.Sum)] = true
		data, err := io.ReadAll(q.openBlob(ctx, "", b.Sum, b.Size))
		if unanswered(err) || ctx.Err() != nil {
			return fmt.Errorf("queue: collect: %w", err)
		}
		if list, err = decode[bundleRecord](data); err != nil {
			return nil
		}
	}
	for _, e := range list.Entries {
		if len(e.Sum) == 32 {
			used[hex.EncodeToString(e.Sum)] = true
		}
	}
	return nil
}

// sweep removes the blobs that are older than before and not used, and then the bytes to which no
// blob leads.
func (q *Queue) sweep(ctx context.Context, used map[string]bool, before time.Time) error {
	uploads := map[string]bool{}
	for m, err := range q.records(ctx, q.blobs, q.config.name+".blob.*") {
		if err != nil {
			return err
		}
		if sum := strings.TrimPrefix(m.Subject, q.config.name+".blob."); !used[sum] && m.Time.Before(before) {
			// By its number: one that was touched since has another, and stays.
			if err := q.remove(ctx, q.blobs, m.Sequence); err != nil {
				return fmt.Errorf("queue: collect: %w", err)
			}
			if _, err := q.last(ctx, q.blobs, m.Subject); errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
		}
		if b, err := decode[blobRecord](m.Data); err == nil {
			uploads[b.Upload] = true
		}
	}
	for m, err := range q.records(ctx, q.blobs, q.config.name+".chunk.*.*") {
		if err != nil {
			return err
		}
		upload, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, q.config.name+".chunk."), ".")
		if !uploads[upload] && m.Time.Before(before) {
			if err := q.remove(ctx, q.blobs, m.Sequence); err != nil {
				return fmt.Errorf("queue: collect: %w", err)
			}
		}
	}
	return nil
}
