//go:build linux

package run

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/family"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/guest"
	"github.com/cellkit/sandbox/internal/stdio"
)

// Run is a run whose command was executed, or a further command in one. Its methods are safe for
// concurrent use.
type Run struct {
	*clone
	in      *Run   // the run that it is a further command in, or nil
	before  counts // of that run, when it began
	execs   execs
	streams *stdio.Streams
	started time.Time
	ctx     context.Context
	stop    []func() // what watches over it
	state   state
	pausing pausing
	watch   watch
	updates updates

	published []netip.AddrPort

	end  *End          // there when gone is closed
	done chan struct{} // closed when last and err are there
	last *End          // end, or another one if what was left of the output tells another reason
	err  error
}

// state is what is done to a run while it lives.
type state struct {
	mu     sync.Mutex
	killed bool
	asked  bool            // to end, by its signal
	grace  *time.Timer     // of that, or of being killed
	family []family.Member // of a further command, then
	reason fault.Reason    // why killed, or asked
	ending bool            // may not be paused any more
	paused bool            // is frozen, or about to be
	over   bool            // pidfds are closed
}

// begin starts what watches over the run.
func (r *Run) begin(ctx context.Context) {
	r.ctx = ctx
	r.streams.Start()
	stopCancel := context.AfterFunc(ctx, func() { r.ask(fault.ReasonOf(ctx)) })
	r.stop = append(r.stop, func() { stopCancel() })
	r.watchLimits(r.spec)
	r.stop = append(r.stop, r.unwatch)
	if r.in != nil {
		go r.finishExec()
		return
	}
	r.engine.live.add(r)
	go r.finish()
}

// PID returns the command's process id, or 0 if there is none.
func (r *Run) PID() int {
	if r.spec.Command.Hold {
		return 0
	}
	return r.pid
}

// Wait returns how the run ended, once all of its output has been written. The error is that of a
// lost cell, with no End, or of copying the run's streams.
func (r *Run) Wait() (*End, error) {
	<-r.done
	return r.last, r.err
}

func (r *Run) wasKilled() bool {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.killed
}

// Pipes returns the caller's ends of the pipes that were asked for.
func (r *Run) Pipes() stdio.Ends { return r.streams.Ends() }

// Ended returns a channel that is closed when nothing of the run lives any more.
func (r *Run) Ended() <-chan struct{} { return r.gone }

func (r *Run) isOver() bool {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.state.over
}

// kill ends the run for the given reason. The first reason counts.
func (r *Run) kill(reason fault.Reason) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	if r.state.killed {
		return
	}
	if r.state.killed = true; !r.state.asked {
		r.state.reason = reason
	}
	if r.state.over {
		return // only its output is still to be read
	}
	if r.in != nil && r.guest != nil {
		r.killInGuest()
		return
	}
	if r.in != nil {
		family.Kill(r.pid, r.signal)
		return
	}
	if r.init != nil {
		_ = signal(r.init, unix.SIGKILL)
	}
	if r.state.paused {
		_ = r.group.Thaw() // on cgroup v1 a frozen process can't die
	}
}

// ask ends the run for the given reason, gently if WithStopSignal says so: the command gets the
// signal, and is killed after the grace. A paused run goes on for that.
func (r *Run) ask(reason fault.Reason) {
	c := &r.spec.Supervision
	if c.StopGrace == 0 || r.spec.Command.Hold {
		r.kill(reason)
		return
	}
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	if r.state.asked || r.state.killed || r.state.over {
		return
	}
	var all []family.Member
	send := r.signal
	switch {
	case r.in != nil && r.guest != nil:
		send = func(s unix.Signal) error { return guest.Stop(r.conn, s) }
	case r.in != nil:
		all = family.Of(r.pid)
	}
	// gVisor's PID 1 may not take what it is sent, or be gone: then the grace ends the run.
	if err := send(unix.Signal(c.StopSignal)); err != nil && r.guest == nil {
		return // it has ended, and its number may be another's
	}
	r.state.family = all
	r.state.asked, r.state.reason = true, reason
	r.state.grace = time.AfterFunc(c.StopGrace, func() { r.kill(reason) })
	if r.state.paused {
		_ = r.group.Thaw()
		r.state.paused = false
	}
}

// Kill kills every process of the run, or those of the command.
func (r *Run) Kill() error {
	select {
	case <-r.done:
		return os.ErrProcessDone
	default:
	}
	r.kill(fault.Signaled)
	return nil
}

// Close ends the run, gently if WithStopSignal says so. One without a command has then ended well.
func (r *Run) Close() {
	if r.spec.Command.Hold {
		r.kill(fault.Exited)
		return
	}
	r.ask(fault.Signaled)
}

// Signal sends a signal to the command.
func (r *Run) Signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("sandbox: unsupported signal %v", sig)
	}
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	if r.state.over || r.spec.Command.Hold {
		return os.ErrProcessDone // what executes the command of other runs may still be there
	}
	err := r.signal(s)
	if hasEnded(err) {
		return os.ErrProcessDone
	}
	return err
}

// signal sends a signal to the command, or asks gVisor's PID 1 to do so.
func (r *Run) signal(s unix.Signal) error {
	if r.guest != nil {
		return guest.Signal(r.conn, s)
	}
	return signal(r.pidfd, s)
}

// Usage returns what the run has used so far.
func (r *Run) Usage() (Usage, error) {
	select {
	case <-r.done:
		if r.last == nil {
			return Usage{}, r.err
		}
		return r.last.Usage, nil
	default:
	}
	wall := time.Since(r.started)
	if r.group == nil || r.in != nil {
		return Usage{Wall: wall, Uncounted: slices.Clone(withoutCgroup)}, nil
	}
	g, err := r.group.Usage()
	if err != nil && r.isOver() {
		<-r.done
		return r.Usage()
	}
	if err != nil {
		return Usage{}, fmt.Errorf("sandbox: usage: %w", err)
	}
	u := r.counted(g)
	u.Wall = wall
	return u, nil
}
