package queue

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What one machine writes and another one compares is a time by the servers' clock, so that the
// clocks of submitters and workers may be wrong, and may be set. How long something takes within a
// process is measured by a clock that nobody sets: clockNow, or that of Go's timers.

// now returns the time by the servers' clock.
func (q *Queue) now(ctx context.Context) (time.Time, error) {
	var info *jetstream.StreamInfo
	err := q.retry(ctx, func(ctx context.Context) (err error) {
		info, err = q.tasks.Info(ctx)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	return info.TimeStamp, nil
}

// nowOnce returns now, asked for at most once.
func (q *Queue) nowOnce(ctx context.Context) func() (time.Time, error) {
	return sync.OnceValues(func() (time.Time, error) { return q.now(ctx) })
}

// until returns how long it is until a time of the servers' clock, in ns since 1970. 0 is no time,
// and over.
func (q *Queue) until(ctx context.Context, at int64) (time.Duration, error) {
	if at == 0 {
		return 0, nil
	}
	now, err := q.now(ctx)
	if err != nil {
		return 0, err
	}
	return time.Unix(0, at).Sub(now), nil
}

// setTimes says when a task that is submitted now may start, and until when. begun is when the
// caller said so.
func (q *Queue) setTimes(ctx context.Context, r *taskRecord, t *Task, begun time.Time) error {
	r.Submitted = begun.UnixNano()
	if t.Delay == 0 && t.Deadline.IsZero() {
		return nil
	}
	now, err := q.now(ctx)
	if err != nil {
		return err
	}
	if t.Delay != 0 {
		r.NotBefore = now.Add(t.Delay - time.Since(begun)).UnixNano()
	}
	if !t.Deadline.IsZero() {
		r.Deadline = now.Add(t.Deadline.Sub(begun) - time.Since(begun)).UnixNano()
	}
	return nil
}

// A server whose clock is set forward takes all leases for over, and gives their tasks to others.
// So a worker that gets the task of another one asks that first. A worker that was killed has no
// connection any more, and the servers say so at once.

const askTime = 500 * time.Millisecond

var held, free = []byte("held"), []byte("free")

// isOthers reports whether another worker has the task. It asks that worker. If there is no answer,
// it has the task if it claimed it less than three quarters of a lease ago: no lease can have ended
// since, so the task was delivered again because returnLost took it for lost.
func (a *attempt) isOthers(r *stateRecord) (bool, error) {
	if r.State != Running || r.Worker == a.w.name || !namePattern(r.Worker) {
		return false, nil
	}
	class, _, _ := strings.Cut(a.id, ".")
	ctx, cancel := context.WithTimeout(a.l.ctx, askTime)
	defer cancel()
	answer := a.w.q.ask(ctx, class, r.Worker, a.id)
	if bytes.Equal(answer, held) || bytes.Equal(answer, free) {
		return bytes.Equal(answer, held), nil
	}
	left, err := a.w.q.until(a.l.ctx, r.stored.Add(a.l.length*3/4).UnixNano())
	return left > 0, err
}

// ask returns what a worker says of a task: held, free, or nothing. The answer's subject is beside
// the question's: servers can hold both to a class, and nobody else's inbox gets it.
func (q *Queue) ask(ctx context.Context, class, worker, id string) []byte {
	question := q.subject("held", class+"."+worker)
	answer := question + "." + randomName()
	s, err := q.nc.SubscribeSync(answer)
	if err != nil {
		return nil
	}
	defer func() { _ = s.Unsubscribe() }() // fails if the connection is closed
	if err := q.nc.PublishRequest(question, answer, []byte(id)); err != nil {
		return nil
	}
	m, err := s.NextMsgWithContext(ctx)
	if err != nil {
		return nil
	}
	return m.Data // empty: the server says that nobody listens
}

// answerHeld is called for each question of isOthers.
func (w *Worker) answerHeld(m *nats.Msg) {
	if !strings.HasPrefix(m.Reply, m.Subject+".") {
		return // it would be written for somebody who may not
	}
	w.mu.Lock()
	l := w.live[string(m.Data)]
	w.mu.Unlock()
	answer := free
	if l != nil {
		answer = held
	}
	_ = m.Respond(answer) // if it does not arrive, the asker goes by the servers
}
