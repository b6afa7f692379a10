package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// lease is what a worker has of a task's message. The servers give the message to another worker
// when they have not heard of this one for length and restartLoss. By this process's clock, counted
// from before the last request that was answered, the run is killed after half of length, and this
// process after three quarters: see fence.
type lease struct {
	w       *Worker
	id      string
	m       *nats.Msg
	message uint64 // its number
	length  time.Duration
	ctx     context.Context // ends when the task is not this worker's any more
	cancel  context.CancelCauseFunc
	ended   chan struct{} // closed when it is renewed no more
	leader  string        // who answers for it, and since when it leads; used by keep alone
	told    time.Duration // when, by clockNow, that one was first asked to renew it, as is
	attempt int           // 0 before it is claimed; guarded by w.mu
	since   time.Time     // when it was; guarded by w.mu
	ends    atomic.Bool   // its end is being written, which tells if the task is another's
}

// restartLoss is how much of a lease a server that is started anew may not know of: the file of a
// consumer has times in whole seconds, rounded down (encodeConsumerState of nats-server 2.15.3). It
// is written up to 100 ms after a renewal (flushLoop of its consumerFileStore), also with
// SyncAlways, so a server that is killed may know only of the renewal before, a fifth of length
// earlier. The task is given away after four fifths of length then: later than the three quarters.
const restartLoss = time.Second

var errLease = errors.New("the lease of the task could not be renewed")

// endedError is the cause of a run's end that is the end of its task.
type endedError struct{ r *stateRecord }

func (e *endedError) Error() string { return fmt.Sprintf("%v: %s", e.r.State, e.r.Text) }

// hold begins a lease, or returns nil if this process has another one of the same task, or if it
// may be over already.
func (w *Worker) hold(ctx context.Context, id string, p pulled, message uint64) *lease {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	p.lease -= restartLoss
	if w.q.live[id] != nil || clockNow() >= p.asked+p.lease/2 {
		return nil
	}
	// Before anything of it lives.
	if err := w.fence.hold(id, p.asked+p.lease*3/4); err != nil {
		w.log.Warn("no task can be held", "error", err)
		return nil
	}
	l := &lease{w: w, id: id, m: p.m, message: message, length: p.lease, ended: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	w.q.live[id] = l
	w.mu.Lock()
	w.live[id] = l
	w.mu.Unlock()
	go l.keep(p.asked)
	return l
}

// renews reports whether this process renews the lease of a task's message.
func (q *Queue) renews(id string, message uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.live[id]
	return l != nil && l.message == message && l.ctx.Err() == nil
}

// holds reports whether this process has a lease of the task.
func (q *Queue) holds(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.live[id] != nil
}

// stop renews the lease no more. No command of it must live any more; a run that was prepared for
// one is dropped.
func (l *lease) stop() {
	l.cancel(nil)
	<-l.ended
}

// close ends a lease of which nothing lives any more.
func (l *lease) close() {
	l.stop()
	l.w.fence.release(l.id)
	l.w.mu.Lock()
	delete(l.w.live, l.id)
	l.w.mu.Unlock()
	l.w.changedHere()
	l.w.q.mu.Lock()
	delete(l.w.q.live, l.id)
	l.w.q.mu.Unlock()
}

// keep renews the lease until it is closed, or could not be renewed. last is before the request
// that was answered with the task.
func (l *lease) keep(last time.Duration) {
	defer close(l.ended)
	for wait := last + l.length/5 - clockNow(); ; {
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(wait):
		}
		asked := clockNow()
		left := last + l.length/2 - asked
		if left <= 0 {
			l.cancel(errLease)
			return
		}
		wait = l.length / 5
		if since := l.renew(asked, min(left, wait)); since > last {
			last = since
			if err := l.w.fence.hold(l.id, last+l.length*3/4); err != nil {
				l.cancel(err)
				return
			}
			l.look()
		} else {
			wait = min(wait, l.length/20)
		}
		wait = min(wait, last+l.length/2-clockNow())
	}
}

// renew has the lease begin anew, and returns since when, or 0. A server that was cut off from the
// others answers for another 10 s or more, and they may give the task away before: so it begins
// when a majority was last heard of, if that was before it was asked for.
func (l *lease) renew(asked, timeout time.Duration) (since time.Duration) {
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	if !l.confirmed(ctx) {
		return 0
	}
	if c := l.w.q.tasks.CachedInfo().Cluster; c == nil || c.Name == "" { // a single server
		return asked
	}
	// The others answer that server a moment later.
	for wait := time.Millisecond; ctx.Err() == nil && since < asked-l.length/20; wait *= 2 {
		leader, heard := l.w.q.heardOf(ctx, l.id)
		switch {
		case leader != "" && leader != l.leader:
			// It may know of nothing that the one before it has confirmed.
			since, asked = 0, clockNow()
			if l.confirmed(ctx) {
				l.leader, l.told = leader, asked
			}
		case heard >= l.told:
			since = max(since, heard)
		}
		pause(ctx, wait)
	}
	return min(since, asked)
}

// confirmed reports whether a server has renewed the lease, which the others may not know yet.
func (l *lease) confirmed(ctx context.Context) bool {
	_, err := l.w.q.nc.RequestWithContext(ctx, l.m.Reply, []byte("+WPI"))
	return err == nil
}

// heardOf returns which server hands out a task, with the time since when it does, and until when,
// by clockNow, it has heard of enough others to be a majority with them, or 0.
func (q *Queue) heardOf(ctx context.Context, id string) (leader string, until time.Duration) {
	asked := clockNow()
	parts := strings.Split(id, ".")
	consumer, err := q.tasks.Consumer(ctx, parts[0]+"-"+parts[1])
	if err != nil {
		return "", 0
	}
	c := consumer.CachedInfo().Cluster
	if c == nil || c.Leader == "" {
		return "", 0
	}
	leader = fmt.Sprint(c.Leader, c.LeaderSince)
	var silent []time.Duration
	for _, o := range c.Replicas { // the others
		if o.Active > 0 { // else it was not heard of yet
			silent = append(silent, o.Active)
		}
	}
	need := (len(c.Replicas) + 1) / 2
	if need == 0 {
		return leader, asked
	}
	if len(silent) < need {
		return leader, 0
	}
	slices.Sort(silent)
	return leader, asked - silent[need-1]
}

// look looks at the task's state, whose change may have been announced while this process was not
// connected.
func (l *lease) look() {
	ctx, cancel := context.WithTimeout(l.ctx, l.length/10)
	defer cancel()
	if r, _, err := l.w.q.state(ctx, l.id); err == nil && r != nil {
		l.see(r)
	}
}

// claimed notes which attempt it is of.
func (l *lease) claimed(attempt int) {
	l.w.mu.Lock()
	l.attempt, l.since = attempt, time.Now()
	l.w.mu.Unlock()
	l.w.changedHere()
}

// see ends what runs here if a state says that the task is not this worker's.
func (l *lease) see(r *stateRecord) {
	l.w.mu.Lock()
	attempt := l.attempt
	l.w.mu.Unlock()
	own := r.Worker == l.w.name && r.Attempt == attempt && r.State != Canceled && r.State != Expired
	switch {
	case attempt == 0 || own || r.Attempt < attempt:
	case r.State.Ended():
		l.cancel(&endedError{r})
	case r.State == Running:
		l.cancel(errLease)
	}
}
