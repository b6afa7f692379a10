package sandbox

import (
	"net/netip"
	"os"
	"sync"
)

// Process is a run that was started. Its methods are safe for concurrent use.
type Process struct {
	r *running

	once   sync.Once
	result *Result
	err    error
}

// PID returns the command's process id as this process sees it. The number may belong to another
// process once Wait has returned.
func (p *Process) PID() int { return p.r.PID() }

// Wait waits until no process of the run is left, and until all of its output has been written, or
// WithWaitDelay is over, and returns how it ended. Its mounts and its cgroup are removed a moment
// later, at the latest with the cell. The errors are those of Run; a failure to copy input or
// output is reported if there is no other. Every call returns the same values.
func (p *Process) Wait() (*Result, error) {
	p.once.Do(func() { p.result, p.err = wait(p.r) })
	return p.result, p.err
}

// Ended returns a channel that is closed when no process of the run is left. Its output may still
// have to be written, for which Wait waits.
func (p *Process) Ended() <-chan struct{} { return p.r.Ended() }

// Published returns the addresses at which the run is published, in the order of the WithPublish
// options, with the ports that were chosen for those that say 0.
func (p *Process) Published() []netip.AddrPort { return p.r.Published() }

// Signal sends a signal to the command. It returns os.ErrProcessDone if the command has ended.
func (p *Process) Signal(sig os.Signal) error { return p.r.Signal(sig) }

// Kill kills every process of the run.
func (p *Process) Kill() error { return p.r.Kill() }

// Pause stops every process of the run until Resume. The processes do not notice it. Time goes on:
// a timeout still ends the run. It needs the freezer (cgroup v1) or cgroup v2.
func (p *Process) Pause() error { return p.r.Pause() }

// Resume lets a paused run go on.
func (p *Process) Resume() error { return p.r.Resume() }

// Usage returns what the run has used so far. Without cgroups only Wall is known before the end.
func (p *Process) Usage() (Usage, error) { return usage(p.r) }
