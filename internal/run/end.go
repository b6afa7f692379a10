//go:build linux

package run

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
)

// End is how a run ended.
type End struct {
	ExitCode int // -1 if a signal ended the command
	Signal   syscall.Signal
	Reason   fault.Reason
	Usage    Usage
	Cause    error // of a cancellation
	Of       *End  // the run's, for RunEnded
}

// Usage is sandbox.Usage, which has its documentation.
type Usage struct {
	Wall        time.Duration
	UserCPU     time.Duration
	SystemCPU   time.Duration
	Throttled   time.Duration
	MemoryPeak  uint64
	ReadBytes   uint64
	WriteBytes  uint64
	PIDsPeak    uint64
	OOMKills    uint64
	PIDsRefused uint64
	Uncounted   []string
}

// Failed reports whether the command did not exit with status 0, or a limit was reached.
func (e *End) Failed() bool { return e.Signal != 0 || e.ExitCode != 0 || e.Reason != fault.Exited }

// finish waits for the end and puts the result together.
func (r *Run) finish() {
	exit, exited := r.awaitExit()
	r.letEnd()
	// PID 1's exit event is its last one, whether it is true or not.
	_ = signal(r.init, unix.SIGKILL)
	var usage Usage
	if exit.Alone() {
		usage = r.usageAtEnd(exit) // read while PID 1 ends
	}
	awaitEnd(r.init)
	r.execs.end()
	r.dropLastGuard()
	if !exit.Alone() {
		usage = r.usageAtEnd(exit)
	}
	for _, stop := range r.stop {
		stop()
	}
	r.engine.live.remove(r)
	if exited || r.wasKilled() || !r.cell.DiesNow() {
		r.conclude(exit, exited, usage)
	}
	r.setOver()
	r.release()
	r.finishStreams()
	close(r.done)
}

// finishStreams waits for the output, and sets the error of a run that has ended.
func (r *Run) finishStreams() {
	inTime, copied := r.streams.Finish()
	if r.in == nil { // what a further command was refused is told as the run's
		r.refused.finish(r.spec.Supervision.WaitDelay)
	}
	r.last = r.end
	if r.end == nil {
		r.err = fmt.Errorf("sandbox: %w (%w)", fault.ErrCellLost, r.cell.Lost())
		return
	}
	// The limit may be reached by what was still to be read when the end was seen.
	if reason, killed, _ := r.whyKilled(); killed && reason == fault.OutputExceeded && (r.end.Reason == fault.Exited || r.end.Reason == fault.Signaled) {
		last := *r.end // of which commands in the run may be told at this moment
		last.Reason, r.last = reason, &last
	}
	failed := r.last.Failed()
	if !inTime && !failed {
		copied = errors.Join(copied, fault.ErrWaitDelay)
	}
	if copied != nil && failed {
		r.err = fmt.Errorf("copying standard streams: %w", copied) // maybe why it failed, as by SIGPIPE
	} else if copied != nil {
		r.err = fmt.Errorf("sandbox: copying standard streams: %w", copied)
	}
}

func (r *Run) setOver() {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.state.over = true
	if r.state.grace != nil {
		r.state.grace.Stop()
	}
	for _, m := range r.state.family {
		m.Kill() // what was there when the command was asked to end is to end too
	}
}

// awaitExit returns PID 1's exit event, and whether there was one.
func (r *Run) awaitExit() (program.Event, bool) {
	if r.exited != nil {
		return *r.exited, true
	}
	m, err := r.conn.Next()
	if m.File != nil {
		m.File.Close()
	}
	if err != nil || m.Kind != program.Exited {
		return program.Event{Status: uint32(unix.SIGKILL)}, false
	}
	return m.Event, true
}

// usageAtEnd returns what the run has used. What has no counter for the run as a whole comes from
// what the kernel told PID 1 at the command's end.
func (r *Run) usageAtEnd(exit program.Event) Usage {
	own := r.usageOf(exit)
	u := own
	if r.group != nil {
		if g, err := r.group.Usage(); err == nil {
			u = r.counted(g)
		}
	}
	for _, name := range u.Uncounted {
		switch name {
		case "UserCPU":
			u.UserCPU = own.UserCPU
		case "SystemCPU":
			u.SystemCPU = own.SystemCPU
		case "MemoryPeak":
			u.MemoryPeak = max(u.MemoryPeak, own.MemoryPeak)
		}
	}
	u.Wall = own.Wall
	return u
}

// usageOf returns what the command has used, as the kernel told its parent.
func (r *Run) usageOf(exit program.Event) Usage {
	return Usage{Wall: time.Since(r.started), UserCPU: exit.UserCPU, SystemCPU: exit.SystemCPU, MemoryPeak: exit.MaxRSS, Uncounted: slices.Clone(withoutCgroup)}
}

// withoutCgroup is Usage.Uncounted of a run that has none.
var withoutCgroup = []string{"UserCPU", "SystemCPU", "Throttled", "MemoryPeak", "ReadBytes", "WriteBytes", "PIDsPeak", "PIDsRefused", "OOMKills"}

func (r *Run) counted(g limits.Usage) Usage {
	return Usage{
		UserCPU: g.UserCPU, SystemCPU: g.SystemCPU, Throttled: g.Throttled,
		MemoryPeak: g.MemoryPeak, ReadBytes: g.ReadBytes, WriteBytes: g.WriteBytes,
		PIDsPeak: g.PIDsPeak, PIDsRefused: g.PIDsRefused, OOMKills: g.OOMKills,
		Uncounted: slices.Clone(r.cell.Uncounted()),
	}
}

// endOf returns the end as its status has it.
func endOf(exit program.Event, usage Usage) *End {
	end := &End{Usage: usage}
	if status := syscall.WaitStatus(exit.Status); status.Signaled() {
		end.ExitCode, end.Signal, end.Reason = -1, status.Signal(), fault.Signaled
	} else {
		end.ExitCode = status.ExitStatus()
	}
	return end
}

// whyKilled returns the reason for which it was killed, or asked to end, if it was.
func (r *Run) whyKilled() (reason fault.Reason, killed, asked bool) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	// Closed is not what a command is whose status is its own.
	return r.state.reason, r.state.killed, r.state.asked && r.state.reason != fault.Signaled
}

// conclude decides how the run ended.
func (r *Run) conclude(exit program.Event, exited bool, usage Usage) {
	end := endOf(exit, usage)
	reason, killed, asked := r.whyKilled()
	failed := end.Failed()
	switch {
	case killed && !exited && reason == fault.Exited:
		end = &End{Usage: usage} // closed, and without a command that could have failed
	case killed && !exited, asked:
		end.Reason = reason
	case killed && reason == fault.OutputExceeded:
		end.Reason = reason // the command was quicker than the kill
	case failed && usage.OOMKills > 0:
		end.Reason = fault.OutOfMemory
	case failed && usage.PIDsRefused > 0:
		end.Reason = fault.PIDsExceeded
	}
	if end.Reason == fault.Canceled {
		end.Cause = fault.Ended(r.ctx)
	}
	r.end = end
}
