package service

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

const (
	minPause = 100 * time.Millisecond // before a restart
	maxPause = 10 * time.Second
	settled  = 10 * time.Second // ready for so long, a service has not failed in a row

	minPoll = time.Millisecond // between checks whether it is ready
	maxPoll = 100 * time.Millisecond
)

// supervise runs the service until it has ended for good.
func (i *Instance) supervise() {
	defer close(i.ended)
	defer i.cancel()
	defer i.log.close(i.replica)
	defer i.release()
	pause := minPause
	began := false
	for failures := 0; ; pause = min(2*pause, maxPause) {
		i.enter(Starting, nil)
		a := attempt{i: i}
		err := a.run()
		switch {
		case i.ctx.Err() != nil || err == nil:
			i.enter(Ended, nil)
			return
		case !a.ready.IsZero() && time.Since(a.ready) >= settled:
			failures, pause = 0, minPause // for this one again
		}
		began = began || a.p != nil
		// What could not be set up twice won't be the next time. A port that another is
		// just leaving, say, may be free by then.
		hopeless := errors.As(err, new(*sandbox.OptionError)) || failures > 0 && !began && errors.As(err, new(*sandbox.SetupError))
		err = i.failure(err)
		if failures++; failures > i.service.conf.restarts || hopeless {
			i.enter(Failed, err)
			return
		}
		i.enter(Waiting, err)
		select {
		case <-time.After(pause):
		case <-i.ctx.Done():
			i.enter(Ended, nil)
			return
		}
	}
}

// attempt is one run of a service.
type attempt struct {
	i     *Instance
	p     *sandbox.Process
	ctx   context.Context // of checks: ends with the run, too
	left  []Check         // of Ready, which were not met yet
	ready time.Time       // zero until it is
	takes atomic.Bool     // what comes for the service, if others would take it as well
}

// known has other replicas get what comes for the service while this one is not ready.
func (a *attempt) known(c *spec.Spec) {
	if a.i.replica != 0 {
		c.Supervision.Ready = &a.takes
	}
}

// run returns when the run has ended: nil if that was well, or as its context has ended.
func (a *attempt) run() error {
	a.left = a.i.service.conf.readyChecks()
	a.i.log.look(a.i.replica, a.left)
	stdout, stderr := a.i.stream(false), a.i.stream(true)
	var err error
	if a.p, err = a.i.s.With(sandbox.WithStdout(stdout), sandbox.WithStderr(stderr), a.known).Start(a.i.ctx); err != nil {
		return err
	}
	a.i.setProcess(a.p)
	var cancel context.CancelFunc
	a.ctx, cancel = context.WithCancel(a.i.ctx)
	go func() {
		<-a.p.Ended()
		cancel()
	}()
	why := a.watch()
	if why != nil || a.i.ctx.Err() != nil {
		a.takes.Store(false)
		a.i.enter(Stopping, nil)
		_ = a.p.Close()
	}
	_, err = a.p.Wait()
	a.i.setProcess(nil)
	stdout.end()
	stderr.end()
	switch {
	case why != nil:
		return why
	case err == nil && a.i.service.conf.goesOn && a.i.ctx.Err() == nil:
		return errors.New("it exited with status 0")
	case err != nil || !a.ready.IsZero() || a.i.ctx.Err() != nil:
		return err
	}
	return a.exited()
}

// exited returns whether exiting with status 0 is what the service was to do.
func (a *attempt) exited() error {
	for _, c := range a.left {
		if !c.exits && !a.i.log.saw(a.i.replica, c.re) {
			return fmt.Errorf("%w: it exited with status 0 before %s", ErrNotReady, c.what)
		}
	}
	a.becomeReady()
	return nil
}

// watch waits until the run has ended, or returns why it is to end.
func (a *attempt) watch() error {
	if err := a.await(); err != nil || a.ready.IsZero() {
		return err
	}
	conf := &a.i.service.conf
	if conf.health == nil {
		a.wait(nil, nil)
		return nil
	}
	for failed := 0; ; {
		if pause := time.After(conf.every); !a.wait(pause, nil) {
			return nil
		}
		c, err := a.firstUnmet(conf.health)
		if failed++; err == nil {
			failed = 0
		}
		if failed >= conf.failures && a.goesOn() {
			return fmt.Errorf("%w: %s: %w", ErrUnhealthy, conf.health[c].what, err)
		}
	}
}

// await waits until the run is ready, has ended, or is to end.
func (a *attempt) await() error {
	timeout, begin := a.i.service.conf.startTimeout, time.Now()
	late := time.After(timeout)
	for {
		news, asked := a.i.log.next(), time.Now()
		n, err := a.firstUnmet(a.left)
		pause := pauseAfter(time.Since(begin), time.Since(asked))
		if !a.goesOn() {
			return nil
		}
		if a.left = a.left[n:]; err == nil {
			a.becomeReady()
			return nil
		}
		if errors.As(err, new(*sandbox.OptionError)) { // Command's, as wrong next time
			return fmt.Errorf("%s: %w", a.left[0].what, err)
		}
		if a.left[0].re == nil {
			news = nil
		}
		if !a.wait(time.After(pause), news) {
			return nil
		}
		select {
		case <-late:
			return fmt.Errorf("%w after %v: %s: %w", ErrNotReady, timeout, a.left[0].what, err)
		default:
		}
	}
}

// pauseAfter returns how long after checks that were not met they are tried again, if the service
// has taken so long so far, and the checks so long: what is noticed late is a sixteenth of a start,
// and checks take no more than a third of its time.
func pauseAfter(taken, checks time.Duration) time.Duration {
	return min(max(taken/16, 2*checks, minPoll), maxPoll)
}

// firstUnmet returns the number of the first check that is not met, and why.
func (a *attempt) firstUnmet(checks []Check) (int, error) {
	for n, c := range checks {
		ctx, cancel := context.WithTimeout(a.ctx, min(checkTimeout, a.i.service.conf.startTimeout))
		err := c.met(ctx, a)
		cancel()
		if err != nil {
			return n, err
		}
	}
	return len(checks), nil
}

// wait waits until the pause is over or there is news, and reports whether the run goes on.
func (a *attempt) wait(pause <-chan time.Time, news <-chan struct{}) bool {
	select {
	case <-pause:
	case <-news:
	case <-a.p.Ended():
	case <-a.i.ctx.Done():
	}
	return a.goesOn()
}

// goesOn reports whether the run has not ended, and is not to end.
func (a *attempt) goesOn() bool {
	select {
	case <-a.p.Ended():
		return false
	default:
		return a.i.ctx.Err() == nil
	}
}

func (a *attempt) becomeReady() {
	a.ready = time.Now()
	a.takes.Store(true)
	a.i.enter(Running, nil)
	a.i.once.Do(func() { close(a.i.ready) })
}
