package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// attempt does with a message what is to be done with it: it runs the task, unless that is not to
// run now or any more. A message that is neither acknowledged nor sent back comes again, to whoever
// asks, when its lease is over.
func (w *Worker) attempt(ctx context.Context, p pulled) {
	id := w.q.idOf("task", p.m.Subject)
	meta, err := p.m.Metadata()
	if err != nil || !validID(id) {
		_ = p.m.Term() // if it does not arrive, the message comes again
		return
	}
	l := w.hold(ctx, id, p, meta.Sequence.Stream)
	if l == nil {
		// While it is renewed here, to send it back would cut short its lease.
		if !w.q.renews(id, meta.Sequence.Stream) {
			p.back(time.Second)
		}
		return
	}
	defer l.close()
	a := &attempt{w: w, l: l, id: id, delivered: meta.NumDelivered, counted: p.made.UnixNano(), from: p.from, log: w.log.With("task", id, "worker", w.name)}
	// Servers that do not hear of its end then give it to others when the lease is over.
	defer context.AfterFunc(ctx, func() {
		a.running.Lock()
		defer a.running.Unlock()
		time.AfterFunc(giveBackTime, func() { l.cancel(errStopped) })
	})()
	began := time.Now()
	err = a.do(ctx, p.m)
	if err != nil {
		a.log.Warn("attempt left to others", "attempt", a.now.Attempt, "error", err)
		if a.seq == 0 && l.ctx.Err() == nil && !errors.Is(err, errNotOurs) && !errors.Is(err, errConflict) { // not claimed
			_ = a.back(p.m, about(refusedFor)) // if it does not arrive, the lease ends
		}
	}
	a.observed(began, err)
}

// giveBackTime is for how long a worker that is to end tries to give a task back when its run has
// ended.
const giveBackTime = 5 * time.Second

// attempt is one of a task.
type attempt struct {
	w         *Worker
	l         *lease
	id        string
	delivered uint64
	counted   int64 // by a consumer that was made then, ns since 1970
	from      *source
	log       *slog.Logger

	task    *taskRecord
	now     stateRecord   // as this worker wrote it
	seq     uint64        // its number
	claimed chan struct{} // closed when the claim is stored
	running sync.Mutex    // held while the run is there
}

var (
	errNotOurs = errors.New("another worker has the task, or its state has changed")
	errStopped = errors.New("the worker is being stopped")
)

func (a *attempt) do(ctx context.Context, m *nats.Msg) (err error) {
	if a.task, err = decode[taskRecord](m.Data); errors.Is(err, errNewer) {
		// For a newer worker; if it does not arrive, it comes again sooner.
		_ = a.back(m, time.Minute)
		return err
	}
	if err == nil && !(plain(m) && len(m.Header) == 1 && m.Header[expected] != nil) {
		err = errHeaders
	}
	if err == nil {
		err = a.task.check()
	}
	if err != nil { // no task that this package wrote
		return a.refuse(m, err)
	}
	if wait, err := a.w.q.until(a.l.ctx, a.task.NotBefore); err != nil {
		return err // it comes again when the lease is over
	} else if wait > 0 {
		// If it does not arrive, it is looked at again.
		_ = a.back(m, min(max(wait, time.Millisecond), maxDelay))
		return nil
	}
	if why := a.refused(); why != "" {
		a.log.Warn("task left to others", "why", why)
		_ = a.back(m, about(refusedFor)) // if it does not arrive, the lease ends
		return nil
	}
	// What it leaves could not be kept, so it would fail once for each attempt.
	if len(a.task.Outputs) > 0 || a.task.Call != nil {
		if err := a.w.q.space(); err != nil {
			a.log.Warn("task left to others", "why", err)
			_ = a.back(m, about(refusedFor))
			return nil
		}
	}
	if first := a.from.othersTurn(a.id); first != "" {
		if r, _, err := a.w.q.state(a.l.ctx, first); err == nil && (r == nil || r.State == Waiting) {
			a.from.fullUntil.Store(int64(clockNow() + turnWait))
			_ = a.back(m, about(turnWait)) // if it does not arrive, the lease ends
			return nil
		}
		a.from.had(first) // another worker has it, or it has ended
	}
	give, ok := func() {}, true
	if _, err := a.task.Limits.within(a.w.max); err == nil {
		give, ok = a.w.budget.take(a.needs())
	} else if a.othersGive() { // else run refuses it
		a.log.Warn("task left to others", "why", err)
		_ = a.back(m, about(refusedFor))
		return nil
	}
	if !ok {
		a.from.full(a.id)
		// So that it comes first when there is room; if it does not arrive, the lease ends.
		_ = a.back(m, time.Millisecond)
		return nil
	}
	defer give()
	if a.w.draining.Err() != nil {
		_ = a.back(m, time.Millisecond) // if it does not arrive, the lease ends
		return nil
	}
	a.from.had(a.id)
	if a.task.Replica != nil { // it has no end that could be waited for
		var move context.CancelFunc
		ctx, move = context.WithCancel(ctx)
		defer move()
		defer context.AfterFunc(a.w.draining, move)()
	}
	end, over, err := a.begin(ctx, m)
	if over || err != nil {
		return err
	}
	run, failure := end.run, end.failure
	switch cause := context.Cause(a.l.ctx); {
	case cause == nil && ctx.Err() != nil:
		a.now.Spared++
		return a.wait(m, errStopped.Error(), 0)
	case cause != nil:
		var ended *endedError
		if errors.As(cause, &ended) {
			a.now.State, a.now.Text = ended.r.State, ended.r.Text
			a.log.Info("attempt ended", "attempt", a.now.Attempt, "cause", cause)
			return m.Ack()
		}
		return cause
	case a.task.Replica != nil:
		return a.restart(m, run, failure)
	case failure != nil && end.again && a.now.Attempt-a.now.Spared < a.task.attempts():
		return a.wait(m, failure.Error(), a.task.Retry.backoff(a.now.Attempt-a.now.Spared))
	case failure != nil && (end.again || run == nil):
		return a.giveUp(m, run, fmt.Sprintf("%s: %v", after(a.now.Attempt), failure))
	}
	return a.end(m, Done, run, "")
}

// back sends the message back, to be handed out again after a time. The lease is renewed no more
// before: servers that hear of it after would keep the message for a lease.
func (a *attempt) back(m *nats.Msg, after time.Duration) error {
	a.l.stop()
	return m.NakWithDelay(after)
}

// outcome is how a run ended: see run.
type outcome struct {
	run     *runRecord
	failure error
	again   bool
}

// write replaces the state that this worker wrote.
func (a *attempt) write(r *stateRecord) error {
	r.Attempt, r.Spared, r.Worker, r.Message, r.Delivered, r.Counted = a.now.Attempt, a.now.Spared, a.w.name, a.l.message, a.delivered, a.counted
	seq, err := a.w.q.replace(a.l.ctx, a.id, r, a.seq)
	if err == nil && seq == 0 {
		err = errNotOurs
	}
	if err == nil {
		a.now.State, a.now.Text, a.now.Run = r.State, r.Text, r.Run
	}
	return err
}

// wait has the task tried again.
func (a *attempt) wait(m *nats.Msg, why string, backoff time.Duration) error {
	r := &stateRecord{State: Waiting, Text: why}
	if backoff > 0 {
		now, err := a.w.q.now(a.l.ctx)
		if err != nil {
			return err
		}
		r.Next = now.Add(backoff).UnixNano()
	}
	if err := a.write(r); err != nil {
		return err
	}
	a.log.Warn("attempt failed", "attempt", a.now.Attempt, "error", why, "backoff", backoff)
	return a.back(m, max(backoff, time.Millisecond))
}

// after returns how many attempts were made, as a dead letter says it.
func after(attempts int) string {
	if attempts == 1 {
		return "after 1 attempt"
	}
	return fmt.Sprintf("after %d attempts", attempts)
}

// end writes the task's end.
func (a *attempt) end(m *nats.Msg, state State, run *runRecord, text string) error {
	a.l.ends.Store(true)
	if err := a.write(&stateRecord{State: state, Run: run, Text: text}); err != nil {
		return err
	}
	code, reason := -1, "" // of an attempt that started nothing
	if run != nil {
		code, reason = run.ExitCode, run.Reason
	}
	a.log.Info("attempt ended", "attempt", a.now.Attempt, "state", state.String(), "code", code, "reason", reason)
	return m.Ack()
}

// giveUp makes the task a dead letter.
func (a *attempt) giveUp(m *nats.Msg, run *runRecord, why string) error {
	if err := a.w.q.bury(a.l.ctx, a.id, m.Data); err != nil {
		return err
	}
	a.log.Warn("task given up", "attempt", a.now.Attempt, "error", why)
	return a.end(m, Dead, run, why)
}

// refuse ends what is no task.
func (a *attempt) refuse(m *nats.Msg, err error) error {
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
	if a.task.Call != nil {
		return a.call(run, limits)
	}
	opts, scratch, err := a.options(run, limits)
	if scratch != nil {
		defer scratch.Close()
	}
	if err != nil {
		return nil, err, true
	}
	out := a.w.q.newOutput(a.id)
	before := func(ctx context.Context) error {
		if err := a.mine(ctx); err != nil {
			return err
		}
		out.attempt, out.claim = a.now.Attempt, a.seq
		return nil
	}
	opts = append(opts, sandbox.WithStdout(out.writer(0)), sandbox.WithStderr(out.writer(1)), func(c *spec.Spec) { c.Supervision.Before, c.Streams.Lull = before, lull })
	var res *sandbox.Result
	a.running.Lock()
	if a.task.Replica != nil {
		res, err = a.serve(run, opts)
	} else {
		res, err = a.w.execute(run, opts...)
	}
	a.running.Unlock()
	out.end(run)
	if res == nil || run.Err() != nil {
		var option *sandbox.OptionError
		return nil, err, !errors.As(err, &option)
	}
	r = runOf(res)
	out.result(r)
	if len(a.task.Outputs) > 0 {
		slow, cancel := context.WithTimeoutCause(run, packTime, errSlow)
		defer cancel()
		r.Outputs, r.Missing, failure = a.w.q.pack(slow, scratch.FS(), a.task.Outputs, true)
		if errors.Is(failure, errTooLarge) { // as it would be again
			r.Lost = strings.ToValidUTF8(failure.Error()[:min(len(failure.Error()), maxText)], "")
		} else if failure != nil {
			return r, fmt.Errorf("outputs: %w", full(failure)), true
		}
	}
	var exit *sandbox.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err, true
	}
	return r, err, a.task.Retry.Failures
}

// lull is for how long the output of a command is not read: that of short ones is at their end.
const lull = 2 * time.Millisecond

// turnWait is about how long a task waits until it is looked at again, as another has the turn, and
// how long its lane is not asked.
const turnWait = 50 * time.Millisecond

// refusedFor is about how long a task that this worker can't run is left to others.
const refusedFor = 2 * time.Second

// refused returns why the worker does not try a task, which lanes keep from it unless they are
// written by somebody else, or "".
func (a *attempt) refused() string {
	switch c := a.task.Call; {
	case a.task.Replica != nil && !a.w.services.IsValid():
		return "it is a service, which this worker does not take"
	case c == nil:
		return ""
	case c.Build != a.w.build:
		return "it is for a worker of build " + c.Build[:buildDigits]
	default:
		if _, ok := remoteFunc(c.Func); !ok {
			return fmt.Sprintf("this program has registered no function %q", c.Func)
		}
	}
	return ""
}

// needs returns the limits for which there must be room.
func (a *attempt) needs() Limits {
	l := a.task.Limits
	if a.task.Call != nil {
		if f, ok := remoteFunc(a.task.Call.Func); ok {
			own := f.limits()
			fill(&l.Memory, own.Memory)
			fill(&l.CPUs, own.CPUs)
		}
	}
	return l
}
