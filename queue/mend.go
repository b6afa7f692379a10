package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Logs, and what workers say of themselves and of replicas, are in the servers' memory alone: much
// is written there, and none of it is a result. A single server that was started anew does not even
// know that there were these streams, and answers no request for them. So who gets no answer has
// the streams looked for, and those in memory made. So has who was connected anew, as others may
// not be allowed to make them.

const (
	// memoryTime is for how long servers have to answer that streams in memory are made: a user
	// that may not make them gets no answer.
	memoryTime = 2 * time.Second
	// missingTime is for how long a stream may be made by somebody else before it is said to be
	// missing; it is looked for every mendEvery at most.
	missingTime = 3 * time.Second
	mendEvery   = time.Second
)

var errMissing = errors.New("a stream of the queue is missing")

// bindMemory finds what servers have in memory, or makes it. The error is errMissing if this user
// may not.
func (q *Queue) bindMemory(ctx context.Context) error {
	n := q.config.name
	ctx, cancel := context.WithTimeout(ctx, memoryTime)
	defer cancel()
	_, err := q.bind(ctx, "logs", func(c *jetstream.StreamConfig) {
		c.Subjects, c.Storage = []string{n + ".log.*.*.*"}, jetstream.MemoryStorage
		c.MaxMsgsPerSubject, c.MaxBytes, c.MaxAge = logChunks, maxLogBytes, q.config.retention
	})
	if err == nil {
		_, err = q.bind(ctx, "workers", func(c *jetstream.StreamConfig) {
			c.Subjects, c.Storage = []string{n + ".worker.*"}, jetstream.MemoryStorage
			c.MaxMsgsPerSubject, c.MaxAge, c.MaxMsgs = 1, workerAge, maxWorkers
		})
	}
	if err == nil {
		err = q.bindHealth(ctx)
	}
	if last := q.nc.LastError(); unanswered(err) && errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), "$JS.API.STREAM.CREATE.") {
		// Not %w: it is an answer.
		return fmt.Errorf("%w, as after its only server was started anew, and this user may not make it: open the queue as one who may: %v", errMissing, err)
	}
	return err
}

// finding is which streams were missing, or nil, and when.
type finding struct {
	missing error
	at      time.Time
}

// mendStreams looks for the queue's streams when they may be missing, and makes those in memory,
// until the queue is closed.
func (q *Queue) mendStreams() {
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-q.mend:
		}
		err := retry(q.ctx, q.findStreams)
		f := &finding{at: time.Now()}
		if errors.Is(err, errMissing) { // else such as that the server that has it is away
			f.missing = err
		}
		if old := q.found.Swap(f); err != nil && q.ctx.Err() == nil && (old == nil || old.missing == nil) {
			q.config.log.Warn("streams are missing", "error", err)
		}
		pause(q.ctx, mendEvery)
	}
}

func (q *Queue) findStreams(ctx context.Context) error {
	if err := q.bindMemory(ctx); err != nil {
		return err
	}
	for _, s := range []jetstream.Stream{q.tasks, q.states, q.dead, q.blobs, q.services} {
		_, err := q.js.Stream(ctx, nameOf(s))
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %s: restore a copy of it (nats stream restore), or open the queue anew, which makes an empty one", errMissing, nameOf(s))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mendSoon has mendStreams look.
func (q *Queue) mendSoon() {
	select {
	case q.mend <- struct{}{}:
	default:
	}
}

// retry is the function retry for requests to the queue's streams, of which one may be missing. If
// one still is after missingTime the error says so.
func (q *Queue) retry(ctx context.Context, f func(context.Context) error) error {
	begun := time.Now()
	return retry(ctx, func(ctx context.Context) error {
		err := f(ctx)
		if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrNoStreamResponse) {
			return err
		}
		q.mendSoon()
		if found := q.found.Load(); found != nil && found.missing != nil && found.at.After(begun.Add(missingTime)) {
			return found.missing
		}
		return err
	})
}
