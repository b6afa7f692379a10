package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What servers hand out can be lost before it arrives: a consumer whose leader changes drops what
// it has not sent, and counts it all the same (nats-server 2.15, consumer.go: setLeader,
// resetPendingDeliveries). Servers hand it out again when its lease is over. So a worker whose
// request was lost looks for tasks that were handed out and that nobody has claimed, and sends them
// back in the place of who did not get them. If another worker has claimed one after all, as its
// claim is not known to all servers yet, claim leaves it to that one.

const (
	// lostAfter is how long a task that was handed out is given to be claimed, or refused.
	lostAfter = time.Second
	// lookTime is for how long a worker looks at a lane's tasks, and maxLook at how many.
	lookTime = 5 * time.Second
	maxLook  = 1024
)

// check handles the outcome of a request: it forgets a consumer that is gone, and searches for lost
// deliveries if there may be some.
func (p *puller) check(r *request) {
	l := r.from
	switch {
	case r.err == nil:
		l.answered.Store(true)
	case errors.Is(r.err, errGone):
		p.w.q.forgetConsumer(l.class, l.route)
		p.find(l)
	case errors.Is(r.err, errSilent) || errors.Is(r.err, errMoved):
		p.find(l)
	}
}

// find starts a search for lost deliveries of a lane, or extends the one that is running. It makes
// two passes, as servers may count a delivery late, and gives up after a lease, when all have been
// delivered again. A lane that has never answered is not searched: servers may forbid it.
func (p *puller) find(l *source) {
	if !l.answered.Load() || l.looks.Swap(2) > 0 {
		return
	}
	p.group.Go(func() {
		for end := clockNow() + p.w.q.config.lease; p.ctx.Err() == nil && clockNow() < end; {
			n, err := p.w.q.returnLost(p.ctx, l.class, l.route)
			if n > 0 {
				p.w.log.Warn("tasks that did not arrive are sent back", "class", l.class, "tasks", n)
			}
			if err != nil {
				pause(p.ctx, about(lostAfter))
			} else if l.looks.Add(-1) == 0 {
				return
			}
		}
		l.looks.Store(0)
	})
}

// returnLost sends back the tasks of a lane that were delivered and that nobody has claimed within
// lostAfter, and returns their number. It looks at maxLook tasks at most.
func (q *Queue) returnLost(ctx context.Context, class, route string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, lostAfter+lookTime)
	defer cancel()
	q.forgetConsumer(class, route)
	c, err := q.consumer(ctx, class, route)
	if err != nil {
		return 0, err
	}
	then := c.CachedInfo()
	pause(ctx, lostAfter)
	if then.NumAckPending == 0 {
		return 0, nil
	}
	lane, err := q.tasks.Info(ctx, jetstream.WithSubjectFilter(q.subject("task", class+"."+route+".*")))
	if err != nil {
		return 0, err
	}
	left := maxLook
	for subject := range lane.State.Subjects {
		if left--; left < 0 {
			break
		}
		m, err := q.last(ctx, q.tasks, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return n, err
		}
		if lost, err := q.isLost(ctx, m, then, lane.TimeStamp); err != nil {
			return n, err
		} else if !lost {
			continue
		}
		// Which message of the stream, and any of the consumer's numbers since the floor:
		// nats-server 2.15, consumer.go, ackReplyInfo and processNak.
		reply := fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.%d.0", then.Stream, then.Name, m.Sequence, then.Delivered.Consumer, time.Now().UnixNano())
		if err := q.nc.Publish(reply, []byte("-NAK")); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// isLost reports whether a task had been delivered when then was read, is not delayed, and has not
// been claimed. now is by the servers' clock.
func (q *Queue) isLost(ctx context.Context, m *jetstream.RawStreamMsg, then *jetstream.ConsumerInfo, now time.Time) (bool, error) {
	if m.Sequence <= then.AckFloor.Stream || m.Sequence > then.Delivered.Stream {
		return false, nil
	}
	if t, err := decode[taskRecord](m.Data); err != nil || t.NotBefore > now.UnixNano() {
		return false, nil // nobody runs the one yet, nor the other ever
	}
	r, _, err := q.state(ctx, q.idOf("task", m.Subject))
	return err == nil && (r == nil || r.Message < m.Sequence), err
}
