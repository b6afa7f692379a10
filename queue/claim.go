package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// claimPatience is for how long a prepared run holds its place in the pool for a claim that servers
// do not answer.
const claimPatience = time.Second

// begin claims the task and runs it, or returns what claim returns; then there is no outcome. The
// run is prepared while the claim is written, and its command waits for that. If there is another
// claim, or no answer, the run is dropped, and another one prepared when the claim is stored.
func (a *attempt) begin(ctx context.Context, m *nats.Msg) (end outcome, over bool, err error) {
	early, cancel := context.WithCancel(ctx)
	defer cancel()
	a.claimed = make(chan struct{})
	ended := make(chan outcome, 1)
	run := func(ctx context.Context) {
		var o outcome
		o.run, o.failure, o.again = a.run(ctx)
		ended <- o
	}
	var mu sync.Mutex // of prepares: whether there is a run that waits for the claim
	prepares := a.prepares()
	drop := func() {
		mu.Lock()
		defer mu.Unlock()
		if prepares {
			prepares = false
			cancel()
			<-ended
		}
	}
	if prepares {
		go run(early)
		defer time.AfterFunc(claimPatience, drop).Stop()
	}
	if over, err = a.claim(m, drop); over || err != nil {
		drop()
		return outcome{}, over, err
	}
	mu.Lock()
	prepared := prepares
	prepares = false // it is dropped no more
	mu.Unlock()
	started := time.Now()
	close(a.claimed)
	if !prepared {
		run(ctx)
	}
	end = <-ended
	if end.run != nil {
		end.run.Started = started.UnixNano()
	}
	return end, false, nil
}

// prepares reports whether the run is prepared before the task is claimed. A message that comes
// again is mostly another worker's still, and for a task that was canceled or is late nothing is to
// be fetched.
func (a *attempt) prepares() bool {
	t := a.task
	return a.delivered == 1 && t.Call == nil && t.Replica == nil && t.Inputs == nil && t.Deadline == 0
}

// mine waits until this worker has the task. The error says that it has not when ctx ends.
func (a *attempt) mine(ctx context.Context) error {
	select {
	case <-a.claimed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// claim writes that this worker has the task, and reports whether there is nothing to be done. It
// calls conflict if there is another claim.
func (a *attempt) claim(m *nats.Msg, conflict func()) (over bool, err error) {
	var old *stateRecord
	var seq uint64
	wait := conflictWait
	for first := a.delivered == 1; ; first, wait = false, 2*wait {
		if wait > maxConflictWait {
			return false, errConflict
		}
		if !first { // else there is none, or it will be found out
			conflict()
			if old, seq, err = a.w.q.state(a.l.ctx, a.id); err != nil {
				return false, err
			}
		}
		a.now = stateRecord{State: Running, Attempt: 1, Worker: a.w.name, Message: a.l.message, Delivered: a.delivered, Counted: a.counted}
		if old != nil {
			switch {
			case old.State.Ended(), old.Message > a.l.message:
				return true, m.Ack()
			case old.Message == a.l.message && (old.Counted == a.counted || old.Counted == 0) && old.Delivered >= a.delivered:
				return false, errNotOurs // this message was given out again since
			}
			// Nobody waits longer than anybody writes, whatever clocks say.
			if left, err := a.w.q.until(a.l.ctx, old.Next); err != nil {
				return false, err // it comes again when the lease is over
			} else if left > 0 && left <= maxBackoff {
				// If it does not arrive, it is looked at again.
				_ = a.back(m, max(left, time.Millisecond))
				return true, nil
			}
			if other, err := a.isOthers(old); err != nil {
				return false, err
			} else if other {
				a.log.Warn("task left to the worker that has it", "holder", old.Worker)
				// That renews its lease within a fifth of it. Less than a lease
				// would cut short the one that it has, which it may not be able to
				// renew.
				_ = a.back(m, a.l.length+restartLoss)
				return true, nil
			}
			a.now.Attempt, a.now.Spared = old.Attempt+1, old.Spared
			if old.State == Running && old.Attempt-old.Spared >= a.task.attempts() {
				a.now.Attempt, a.seq = old.Attempt, seq
				return true, a.giveUp(m, nil, fmt.Sprintf("%s: worker %s was lost", after(old.Attempt), old.Worker))
			}
		} else if a.task.Deadline != 0 {
			left, err := a.w.q.until(a.l.ctx, a.task.Deadline)
			if err != nil {
				return false, err
			}
			if left <= 0 {
				r := &stateRecord{State: Expired, Text: ErrExpired.Error()}
				n, err := a.w.q.replace(a.l.ctx, a.id, r, seq)
				if err != nil {
					return false, err
				}
				if n != 0 {
					return true, m.Ack()
				}
				pause(a.l.ctx, wait)
				continue
			}
		}
		a.l.claimed(a.now.Attempt)
		if a.seq, err = a.w.q.replace(a.l.ctx, a.id, &a.now, seq); err != nil || a.seq != 0 {
			return false, err
		}
		pause(a.l.ctx, wait)
	}
}
