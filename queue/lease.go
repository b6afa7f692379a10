package queue

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// lease is what a worker has of a task's message. The servers give the message to another worker
// when they have not heard of this one for the lease's length. By this process's clock, counted
// from before the last request that was answered, the run is killed after half of it, and this
// process after three quarters: see fence.
type lease struct {
	w       *Worker
	id      string
	m       *nats.Msg
	length  time.Duration
	ctx     context.Context // ends when the task is not this worker's any more
	cancel  context.CancelCauseFunc
	ended   chan struct{} // closed when it is renewed no more
	attempt int           // 0 before it is claimed; guarded by w.mu
	since   time.Time     // when it was; guarded by w.mu
	ends    atomic.Bool   // its end is being written, which tells if the task is another's
}

var errLease = errors.New("the lease of the task could not be renewed")

// endedError is the cause of a run's end that is the end of its task.
type endedError struct{ r *stateRecord }

func (e *endedError) Error() string { return fmt.Sprintf("%v: %s", e.r.State, e.r.Text) }

// hold begins a lease, or returns nil if this process has another one of the same task, or if it
// may be over already.
func (w *Worker) hold(ctx context.Context, id string, p pulled) *lease {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	if w.q.live[id] != nil || clockNow() >= p.asked+p.lease/2 {
		return nil
	}
	// Before anything of it lives.
	if err := w.fence.hold(id, p.asked+p.lease*3/4); err != nil {
		w.log.Warn("no task can be held", "error", err)
		return nil
	}
	l := &lease{w: w, id: id, m: p.m, length: p.lease, ended: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	w.q.live[id] = l
	w.mu.Lock()
	w.live[id] = l
	w.mu.Unlock()
	go l.keep(p.asked)
	return l
}

// renews reports whether this process renews a lease of the task.
func (q *Queue) renews(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.live[id]
	return l != nil && l.ctx.Err() == nil
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
		if err := l.renew(min(left, wait)); err == nil {
			last = asked
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

// renew has the lease begin anew.
func (l *lease) renew(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	// Answered once it is done.
	_, err := l.w.q.nc.RequestWithContext(ctx, l.m.Reply, []byte("+WPI"))
	return err
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
