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
// request was not answered looks for tasks that were handed out and that nobody has claimed, and
// sends them back in the place of who did not get them.

const (
	// lostAfter is how long a task that was handed out is given to be claimed, or refused.
	lostAfter = time.Second
	// maxLook is at how many tasks of a lane it looks.
	maxLook = 1024
)

// find looks for tasks of a lane that were lost, once at a time.
func (p *puller) find(ctx context.Context, l *source) {
	if !l.finds.CompareAndSwap(false, true) {
		return
	}
	p.group.Go(func() {
		defer l.finds.Store(false)
		for ctx.Err() == nil {
			n, err := p.w.q.returnLost(ctx, l.class, l.route)
			if n > 0 {
				p.w.log.Warn("tasks that did not arrive are sent back", "class", l.class, "tasks", n)
			}
			if err == nil {
				return
			}
			pause(ctx, about(lostAfter))
		}
	})
}

// returnLost sends back the tasks of a lane that were handed out and that nobody has claimed in
// lostAfter, and returns how many. A worker that has one still, and claims it later, finds that it
// was handed out again, or has claimed it by then.
func (q *Queue) returnLost(ctx context.Context, class, route string) (n int, err error) {
	pattern := q.subject("task", class+"."+route+".*")
	q.forgetConsumer(class, route)
	c, err := q.consumer(ctx, class, route)
	if err != nil {
		return 0, err
	}
	then := c.CachedInfo()
	pause(ctx, lostAfter)
	for from, left := then.AckFloor.Stream+1, maxLook; left > 0 && ctx.Err() == nil; left-- {
		m, err := q.next(ctx, q.tasks, from, pattern)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > then.Delivered.Stream {
			break
		}
		if err != nil {
			return n, err
		}
		from = m.Sequence + 1
		if t, err := decode[taskRecord](m.Data); err != nil || t.NotBefore > time.Now().UnixNano() {
			continue // it was sent back
		}
		r, _, err := q.state(ctx, q.idOf("task", m.Subject))
		if err != nil {
			return n, err
		}
		if r != nil && r.Message >= m.Sequence {
			continue
		}
		// nats-server 2.15, consumer.go, ackReplyInfo: which message of the stream, and any of
		// the consumer's numbers since the floor.
		reply := fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.%d.0", then.Stream, then.Name, m.Sequence, then.Delivered.Consumer, time.Now().UnixNano())
		if err := q.nc.Publish(reply, []byte("-NAK")); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
