package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Stats is what a queue has at a moment.
type Stats struct {
	At time.Time `json:"at"`
	// Those that have workers, tasks or dead letters.
	Classes map[string]ClassStats `json:"classes"`
	Workers int                   `json:"workers"` // as Workers yields them
	Slots   int                   `json:"slots"`   // of those that are drained, Running
	Running int                   `json:"running"`
	// What contents of inputs and outputs take.
	Bytes uint64 `json:"content_bytes"`
}

// ClassStats is what a queue has of one class. Running, Workers and Slots are what workers said in
// the last seconds; a worker of several classes counts in each.
type ClassStats struct {
	Tasks   int           `json:"tasks"` // that have not ended: they wait or run
	Running int           `json:"running"`
	Oldest  time.Duration `json:"oldest_ns"` // the age of the oldest of Tasks
	Dead    int           `json:"dead"`      // dead letters
	Workers int           `json:"workers"`
	Slots   int           `json:"slots"`
}

// OtherClasses is the name in Stats of all classes together that have no worker, when there are
// more than a hundred: submitters choose these names.
const OtherClasses = "(other)"

const maxClasses = 100

// Stats returns what the queue has now. It asks the servers a few times for each class and once for
// each worker, however many tasks there are.
func (q *Queue) Stats(ctx context.Context) (Stats, error) {
	s := Stats{Classes: map[string]ClassStats{}}
	for w, err := range q.Workers(ctx) {
		if err != nil {
			return s, err
		}
		s.add(w)
	}
	info, err := q.blobs.Info(ctx)
	if err != nil {
		return s, fmt.Errorf("queue: stats: %w", err)
	}
	s.At, s.Bytes = info.TimeStamp, info.State.Bytes
	tasks, err := q.tally(ctx, q.tasks, "task", s.Classes)
	if err != nil {
		return s, fmt.Errorf("queue: stats: %w", err)
	}
	dead, err := q.tally(ctx, q.dead, "dead", s.Classes)
	if err != nil {
		return s, fmt.Errorf("queue: stats: %w", err)
	}
	for class, t := range tasks {
		c := s.Classes[class]
		c.Tasks = t.n
		if !t.first.IsZero() {
			c.Oldest = max(s.At.Sub(t.first), 0)
		}
		s.Classes[class] = c
	}
	for class, t := range dead {
		c := s.Classes[class]
		c.Dead = t.n
		s.Classes[class] = c
	}
	return s, nil
}

func (s *Stats) add(w WorkerStatus) {
	if w.Draining {
		w.Slots = w.Running
	}
	s.Workers, s.Slots, s.Running = s.Workers+1, s.Slots+w.Slots, s.Running+w.Running
	for _, class := range w.Classes {
		if !tokenPattern.MatchString(class) {
			continue // it was not written by this package
		}
		c := s.Classes[class]
		c.Workers, c.Slots = c.Workers+1, c.Slots+w.Slots
		for _, t := range w.Tasks {
			if strings.HasPrefix(t.ID, class+".") {
				c.Running++
			}
		}
		s.Classes[class] = c
	}
}

// tally is how many records of a class a stream has, and when the first of them was stored.
type tally struct {
	n     int
	first time.Time
}

// tally counts the records of a stream by class: those of known classes, and of others up to
// maxClasses.
func (q *Queue) tally(ctx context.Context, s jetstream.Stream, kind string, known map[string]ClassStats) (map[string]tally, error) {
	counts := map[string]tally{}
	total := 0
	count := func(class string) error {
		t, err := q.count(ctx, s, q.subject(kind, class+".>"))
		if t.n > 0 {
			counts[class] = t
		}
		total += t.n
		return err
	}
	for class := range known {
		if class != OtherClasses {
			if err := count(class); err != nil {
				return nil, err
			}
		}
	}
	info, err := s.Info(ctx)
	if err != nil || info.State.Msgs <= uint64(total) {
		return counts, err
	}
	// This lists all ids. A queue whose classes have workers does not need it.
	if info, err = s.Info(ctx, jetstream.WithSubjectFilter(q.subject(kind, ">"))); err != nil {
		return nil, err
	}
	more := map[string]bool{}
	for subject := range info.State.Subjects {
		class, _, _ := strings.Cut(q.idOf(kind, subject), ".")
		if _, ok := known[class]; !ok && tokenPattern.MatchString(class) {
			more[class] = true
		}
	}
	for i, class := range slices.Sorted(maps.Keys(more)) {
		if i == maxClasses {
			break
		}
		if err := count(class); err != nil {
			return nil, err
		}
	}
	if rest := len(info.State.Subjects) - total; len(more) > maxClasses && rest > 0 {
		counts[OtherClasses] = tally{n: rest}
	}
	return counts, nil
}

// count counts the records of a stream at the subjects of a pattern, mostly in one request.
func (q *Queue) count(ctx context.Context, s jetstream.Stream, pattern string) (t tally, err error) {
	for from := uint64(1); t.n < maxOdd; {
		first, after, err := q.first(ctx, nameOf(s), from, pattern)
		if errors.Is(err, errHeaders) {
			first, err = q.next(ctx, s, from, pattern)
		}
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("stream %s: %w", nameOf(s), err)
		}
		if t.n++; t.first.IsZero() {
			t.first = first.Time
		}
		if after >= 0 {
			t.n += after
			return t, nil
		}
		from = first.Sequence + 1
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(pattern))
	if err == nil {
		t.n = len(info.State.Subjects)
	}
	return t, err
}

// maxOdd is how many records with headers that can't be read count looks at one after another.
const maxOdd = 16

// first returns the first record whose number is at least from, and how many come after it, or -1
// if its headers can't be read.
func (q *Queue) first(ctx context.Context, stream string, from uint64, pattern string) (r *jetstream.RawStreamMsg, after int, err error) {
	var m *nats.Msg
	err = q.retry(ctx, func(ctx context.Context) error {
		m, err = q.request(ctx, stream, query{From: from, Pattern: pattern, Batch: 1})
		return err
	})
	if err == nil {
		r, err = q.recordOf(m, stream)
	}
	if err != nil {
		return nil, -1, err
	}
	if after, err = strconv.Atoi(m.Header.Get("Nats-Num-Pending")); err != nil {
		return nil, -1, errors.New("the servers don't say how many records follow")
	}
	return r, after, nil
}

// Changes yields the changes of tasks' states from now on, as they happen, until ctx ends. It
// misses those that happen while the servers can't be reached, or while the caller takes longer
// than 4,096 of them: it is for people who watch, and Wait is for programs.
func (q *Queue) Changes(ctx context.Context) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		changes := make(chan *nats.Msg, 4096)
		sub, err := q.nc.ChanSubscribe(q.subject("now", ">"), changes)
		if err != nil {
			yield(Status{}, fmt.Errorf("queue: %w", err))
			return
		}
		defer func() { _ = sub.Unsubscribe() }() // fails if the connection is closed
		for {
			select {
			case <-ctx.Done():
				return
			case <-q.ctx.Done():
				yield(Status{}, fmt.Errorf("queue: %w", nats.ErrConnectionClosed))
				return
			case m := <-changes:
				id, r, err := q.announced(m)
				if err == nil && validID(id) && !yield(statusOf(id, r), nil) {
					return
				}
			}
		}
	}
}
