package queue

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
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
// time that Retention says, and then the contents of inputs and outputs to which no task, result,
// dead letter or service refers, and which are older than an hour. One of the workers does so every
// hour. While there is a record of a newer version of this package, which may refer to any, no
// contents are removed, and the error names it. A state of a newer version is removed, too, when it
// is older than Retention says and its task is not there any more.
func (q *Queue) Collect(ctx context.Context) error {
	// By the servers' clock, as the times of records are.
	info, err := q.blobs.Info(ctx)
	if err != nil {
		return fmt.Errorf("queue: collect: %w", err)
	}
	begun, refs := info.TimeStamp, newReferences(q)
	// A task becomes a dead letter, or one a task, by being both for a moment.
	for _, kind := range []string{"dead", "task", "dead"} {
		stream := map[string]jetstream.Stream{"dead": q.dead, "task": q.tasks}[kind]
		for m, err := range q.settled(ctx, stream, q.config.name+"."+kind+".>") {
			if err != nil {
				return err
			}
			if t, err := decode[taskRecord](m.Data); !refs.unread(m.Subject, err) {
				if err := refs.add(ctx, m, t.Inputs); err != nil {
					return err
				}
			}
		}
	}
	for m, err := range q.settled(ctx, q.services, q.subject("service", "*")) {
		if err != nil {
			return err
		}
		if r, err := decode[serviceRecord](m.Data); !refs.unread(m.Subject, err) && r.Task != nil {
			if err := refs.add(ctx, m, r.Task.Inputs); err != nil {
				return err
			}
		}
	}
	if err := q.dropLanes(ctx, begun.Add(-laneKept)); err != nil {
		return err
	}
	for m, err := range q.settled(ctx, q.states, q.config.name+".state.>") {
		if err != nil {
			return err
		}
		if err := q.collectState(ctx, refs, m, begun.Sub(m.Time) > q.config.retention); err != nil {
			return err
		}
	}
	if err := refs.seek(ctx); err != nil {
		return err
	}
	if refs.newer != nil {
		return fmt.Errorf("queue: collect: the contents stay: %w", refs.newer)
	}
	return q.sweep(ctx, refs.names, begun.Add(-q.config.grace))
}

// settled yields the records of a stream at the subjects of a pattern, and then those that servers
// did not have yet that lag behind others of their cluster: a record that was replaced meanwhile is
// behind those that were read, and must not look as if it was gone.
func (q *Queue) settled(ctx context.Context, s jetstream.Stream, pattern string) iter.Seq2[*jetstream.RawStreamMsg, error] {
	return func(yield func(*jetstream.RawStreamMsg, error) bool) {
		from := uint64(1)
		for m, err := range q.recordsFrom(ctx, nameOf(s), from, pattern) {
			if !yield(m, err) || err != nil {
				return
			}
			from = m.Sequence + 1
		}
		if s.CachedInfo().Config.Replicas > 1 {
			pause(ctx, maxLag)
			q.recordsFrom(ctx, nameOf(s), from, pattern)(yield)
		}
	}
}

// collectState removes a state that is kept no longer, or adds what it refers to.
func (q *Queue) collectState(ctx context.Context, refs *references, m *jetstream.RawStreamMsg, old bool) error {
	if len(m.Data) == 0 { // no task's state
		if old {
			return q.remove(ctx, q.states, m.Sequence)
		}
		return nil
	}
	r, err := decode[stateRecord](m.Data)
	if err != nil && old {
		// Whatever it says: a task that has not ended is there.
		_, gone := q.taskMessage(ctx, q.idOf("state", m.Subject))
		if errors.Is(gone, jetstream.ErrMsgNotFound) {
			return q.remove(ctx, q.states, m.Sequence)
		}
	}
	switch {
	case refs.unread(m.Subject, err):
		return nil
	case r.State.Ended() && old:
		return q.forget(ctx, m, r)
	case r.Run != nil:
		return refs.add(ctx, m, r.Run.Outputs)
	}
	return nil
}

// forget removes the state r of a record, and first the task's message, so that it does not start
// again. The message stays if it is not this state's: the task may have been put back, or submitted
// anew, since the state was read.
func (q *Queue) forget(ctx context.Context, state *jetstream.RawStreamMsg, r *stateRecord) error {
	id := q.idOf("state", state.Subject)
	m, err := q.taskMessage(ctx, id)
	// A dead letter may also be put back from now on, and has a later message then.
	if err == nil && (r.State != Dead || m.Sequence <= r.Message) {
		var now *jetstream.RawStreamMsg
		if now, err = q.last(ctx, q.states, state.Subject); err == nil && now.Sequence == state.Sequence {
			err = q.remove(ctx, q.tasks, m.Sequence)
		}
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("queue: %s: %w", id, err)
	}
	return q.remove(ctx, q.states, state.Sequence)
}

// remove removes a message, if it is there.
func (q *Queue) remove(ctx context.Context, s jetstream.Stream, seq uint64) error {
	return q.retry(ctx, func(ctx context.Context) error {
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

// references are the names of the contents to which records refer.
type references struct {
	q      *Queue
	names  map[string]bool
	newer  error           // of a record that a newer version wrote
	lists  map[list]string // those looked for, with the subject of a record that refers to them
	absent []list          // of these, those that were not there
}

// list is a bundle's list that is a blob: its name and its size, which may be a lie.
type list struct {
	sum  string
	size int64
}

func newReferences(q *Queue) *references {
	return &references{q: q, names: map[string]bool{}, lists: map[list]string{}}
}

// unread reports whether a record can't be read, as err says. One that no version can read refers
// to nothing.
func (r *references) unread(subject string, err error) bool {
	if errors.Is(err, errNewer) {
		r.newer = fmt.Errorf("%s: %w", subject, err)
	}
	return err != nil
}

// add adds the names of the contents of a record's bundle.
func (r *references) add(ctx context.Context, m *jetstream.RawStreamMsg, b *bundle) error {
	switch {
	case b == nil:
		return nil
	case b.Inline != nil:
		r.addFiles(b.Inline)
		return nil
	case len(b.Sum) != 32 || b.Size < 0 || b.Size > maxBundle:
		return nil
	}
	r.names[hex.EncodeToString(b.Sum)] = true
	l := list{string(b.Sum), b.Size}
	if _, known := r.lists[l]; known {
		return nil
	}
	r.lists[l] = m.Subject
	return r.addList(ctx, l)
}

func (r *references) addFiles(files *bundleRecord) {
	for _, e := range files.Entries {
		if len(e.Sum) == 32 {
			r.names[hex.EncodeToString(e.Sum)] = true
		}
	}
}

// addList adds what a list has, or the list to those that are absent. One that is not what its name
// says refers to nothing: who has the bundle can't read it either.
func (r *references) addList(ctx context.Context, l list) error {
	blob := r.q.openBlob(ctx, "", []byte(l.sum), l.size)
	blob.once = true
	data, err := io.ReadAll(blob)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		r.absent = append(r.absent, l)
		return nil
	}
	var files *bundleRecord
	if err == nil {
		files, err = decode[bundleRecord](data)
	} else if !errors.Is(err, errBlob) && !errors.Is(err, errHeaders) {
		return fmt.Errorf("queue: collect: %s: %w", r.lists[l], err)
	}
	if !r.unread(r.lists[l], err) {
		r.addFiles(files)
	}
	return nil
}

// seek looks for the absent lists again, for all of them in turn and not for each by itself:
// submitters may refer to any number that never were. Those still absent refer to nothing.
func (r *references) seek(ctx context.Context) error {
	err := r.q.seek(ctx, func() error {
		look := r.absent
		r.absent = nil
		for _, l := range look {
			if err := r.addList(ctx, l); err != nil {
				return err
			}
		}
		if len(r.absent) > 0 {
			return jetstream.ErrMsgNotFound
		}
		return nil
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	return err
}

// sweep removes the blobs that are older than before and not used, and then the bytes to which no
// blob leads.
func (q *Queue) sweep(ctx context.Context, used map[string]bool, before time.Time) error {
	uploads := map[string]bool{}
	for m, err := range q.settled(ctx, q.blobs, q.config.name+".blob.*") {
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
		b, err := decode[blobRecord](m.Data)
		if errors.Is(err, errNewer) {
			return fmt.Errorf("queue: collect: the contents stay: %s: %w", m.Subject, err)
		}
		if err == nil {
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
