package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/cellkit/sandbox"
)

// attempt does with a message what is to be done with it: it runs the task, unless that is not to
// run now or any more. A message that is neither acknowledged nor sent back comes again, to whoever
// asks, when its lease is over.
func (w *Worker) attempt(ctx context.Context, p pulled) {
	id := w.q.idOf("task", p.m.Subject())
	meta, err := p.m.Metadata()
	if err != nil || !validID(id) {
		_ = p.m.TermWithReason("no task") // if it does not arrive, the message comes again
		return
	}
	l := w.hold(ctx, id, p)
	if l == nil {
		_ = p.m.NakWithDelay(time.Second)
		return
	}
	defer l.close()
	a := &attempt{w: w, l: l, id: id, message: meta.Sequence.Stream, delivered: meta.NumDelivered, log: w.log.With("task", id, "worker", w.name)}
	if err := a.do(ctx, p.m); err != nil {
		a.log.Warn("attempt left to others", "attempt", a.now.Attempt, "error", err)
	}
}

// attempt is one of a task.
type attempt struct {
	w         *Worker
	l         *lease
	id        string
	message   uint64
	delivered uint64
	log       *slog.Logger

	task *taskRecord
	now  stateRecord // as this worker wrote it
	seq  uint64      // its number
}

var (
	errNotOurs = errors.New("another worker has the task, or its state has changed")
	errStopped = errors.New("the worker is being stopped")
)

func (a *attempt) do(ctx context.Context, m jetstream.Msg) (err error) {
	if a.task, err = decode[taskRecord](m.Data()); errors.Is(err, errNewer) {
		// For a newer worker; if it does not arrive, it comes again sooner.
		_ = m.NakWithDelay(time.Minute)
		return err
	}
	if err == nil {
		err = a.task.check()
	}
	if err != nil { // no task that this package wrote
		return a.refuse(m, err)
	}
	if wait := time.Until(time.Unix(0, a.task.NotBefore)); a.task.NotBefore != 0 && wait > 0 {
		// If it does not arrive, it is looked at again.
		_ = m.NakWithDelay(min(wait, maxDelay))
		return nil
	}
	if over, err := a.claim(m); over || err != nil {
		return err
	}
	started := time.Now()
	run, failure, again := a.run(ctx)
	if run != nil {
		run.Started = started.UnixNano()
	}
	switch cause := context.Cause(a.l.ctx); {
	case cause == nil && ctx.Err() != nil:
		a.now.Spared++
		return a.wait(m, errStopped.Error(), 0)
	case cause != nil:
		var ended *endedError
		if errors.As(cause, &ended) {
			a.log.Info("attempt ended", "attempt", a.now.Attempt, "cause", cause)
			return m.Ack()
		}
		return cause
	case failure != nil && again && a.now.Attempt-a.now.Spared < a.task.Retry.attempts():
		return a.wait(m, failure.Error(), a.task.Retry.backoff(a.now.Attempt-a.now.Spared))
	case failure != nil && (again || run == nil):
		return a.giveUp(m, run, fmt.Sprintf("after %d attempts: %v", a.now.Attempt, failure))
	}
	return a.end(m, Done, run, "")
}

// claim writes that this worker has the task, and reports whether there is nothing to be done.
func (a *attempt) claim(m jetstream.Msg) (over bool, err error) {
	var old *stateRecord
	var seq uint64
	for first := a.delivered == 1; ; first = false {
		if !first { // else there is none, or it will be found out
			if old, seq, err = a.w.q.state(a.l.ctx, a.id); err != nil {
				return false, err
			}
		}
		a.now = stateRecord{State: Running, Attempt: 1, Worker: a.w.name, Message: a.message, Delivered: a.delivered}
		if old != nil {
			switch {
			case old.State.Ended(), old.Message > a.message:
				return true, m.Ack()
			case old.Message == a.message && old.Delivered >= a.delivered:
				return false, errNotOurs // this message was given out again since
			}
			if wait := time.Until(time.Unix(0, old.Next)); old.Next != 0 && wait > 0 {
				// If it does not arrive, it is looked at again.
				_ = m.NakWithDelay(wait)
				return true, nil
			}
			a.now.Attempt, a.now.Spared = old.Attempt+1, old.Spared
			if old.State == Running && old.Attempt-old.Spared >= a.task.Retry.attempts() {
				a.now.Attempt, a.seq = old.Attempt, seq
				return true, a.giveUp(m, nil, fmt.Sprintf("after %d attempts: worker %s was lost", old.Attempt, old.Worker))
			}
		} else if a.task.Deadline != 0 && time.Now().UnixNano() > a.task.Deadline {
			_, err := a.w.q.end(a.l.ctx, a.id, Expired, ErrExpired.Error())
			return true, errors.Join(err, m.Ack())
		}
		a.l.claimed(a.now.Attempt)
		if a.seq, err = a.w.q.replace(a.l.ctx, a.id, &a.now, seq); err != nil || a.seq != 0 {
			return false, err
		}
	}
}

// write replaces the state that this worker wrote.
func (a *attempt) write(r *stateRecord) error {
	r.Attempt, r.Spared, r.Worker, r.Message, r.Delivered = a.now.Attempt, a.now.Spared, a.w.name, a.message, a.delivered
	seq, err := a.w.q.replace(a.l.ctx, a.id, r, a.seq)
	if err == nil && seq == 0 {
		err = errNotOurs
	}
	return err
}

// wait has the task tried again.
func (a *attempt) wait(m jetstream.Msg, why string, backoff time.Duration) error {
	r := &stateRecord{State: Waiting, Text: why}
	if backoff > 0 {
		r.Next = time.Now().Add(backoff).UnixNano()
	}
	if err := a.write(r); err != nil {
		return err
	}
	a.log.Warn("attempt failed", "attempt", a.now.Attempt, "error", why, "backoff", backoff)
	return m.NakWithDelay(max(backoff, time.Millisecond))
}

// end writes the task's end.
func (a *attempt) end(m jetstream.Msg, state State, run *runRecord, text string) error {
	if err := a.write(&stateRecord{State: state, Run: run, Text: text}); err != nil {
		return err
	}
	code := -1
	if run != nil {
		code = run.ExitCode
	}
	a.log.Info("attempt ended", "attempt", a.now.Attempt, "state", state.String(), "code", code)
	return m.Ack()
}

// giveUp makes the task a dead letter.
func (a *attempt) giveUp(m jetstream.Msg, run *runRecord, why string) error {
	if err := a.w.q.bury(a.l.ctx, a.id, m.Data()); err != nil {
		return err
	}
	a.log.Warn("task given up", "attempt", a.now.Attempt, "error", why)
	return a.end(m, Dead, run, why)
}

// refuse ends what is no task.
func (a *attempt) refuse(m jetstream.Msg, err error) error {
	a.log.Warn("no task", "error", err)
	_, endErr := a.w.q.end(a.l.ctx, a.id, Dead, "no task: "+err.Error())
	if endErr != nil {
		return endErr
	}
	return m.Ack()
}

// run runs the task's command. If that did not come to an end, or failed, the error says why, and
// again that another attempt may make sense.
func (a *attempt) run(ctx context.Context) (r *runRecord, failure error, again bool) {
	run, cancel := context.WithCancelCause(a.l.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(errStopped) })
	defer stop()
	limits, err := a.task.Limits.within(a.w.max)
	if err != nil {
		return nil, err, true
	}
	opts, scratch, err := a.options(run, limits)
	if scratch != nil {
		defer scratch.Close()
	}
	if err != nil {
		return nil, err, true
	}
	out := a.w.q.newOutput(a.id, a.now.Attempt)
	flush := out.stream(run)
	res, err := a.w.pool.Run(run, append(opts, sandbox.WithStdout(out.writer(0)), sandbox.WithStderr(out.writer(1)))...)
	flush()
	if res == nil || run.Err() != nil {
		var option *sandbox.OptionError
		return nil, err, !errors.As(err, &option)
	}
	r = runOf(res)
	out.result(r)
	if len(a.task.Outputs) > 0 {
		slow, cancel := context.WithTimeoutCause(run, packTime, errSlow)
		defer cancel()
		if r.Outputs, r.Missing, failure = a.w.q.pack(slow, scratch.FS(), a.task.Outputs, true); failure != nil {
			return nil, fmt.Errorf("outputs: %w", full(failure)), true
		}
	}
	var exit *sandbox.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err, true
	}
	return r, err, a.task.Retry.Failures
}
