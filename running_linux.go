package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// running is a run from its clone to its end.
type running struct {
	recipe
	config         *spec.Spec
	commandProgram *program.Program // from when it is handed over

	block   *cell.Block
	group   *limits.Group
	streams *stdio.Streams
	conn    *forkserver.Conn
	pidfd   *os.File // of PID 1
	mounts  *os.File // the mount namespace
	command *os.File // pidfd of the command
	pid     int
	stage   program.Kind // how far the start is: Ready, Waiting or Started
	started time.Time

	upper *Scratch // that is the run's root

	pausing pausing

	mu      sync.Mutex
	killed  bool
	reason  Reason         // why killed
	exited  *program.Event // if PID 1's last word came during the start
	ending  bool           // may not be paused any more
	paused  bool           // is frozen, or about to be
	over    bool           // pidfds are closed
	gone    chan struct{}  // closed when nothing of the run lives any more
	stop    []func()
	ctx     context.Context
	done    chan struct{}
	result  *Result
	err     error
	copyErr error
}

// abandonWait is how long a start that failed waits until nothing of the run is left. It only takes
// longer if the fork server does not answer.
const abandonWait = time.Second

// abandon undoes a start that failed, if need be behind the caller's back.
func (r *running) abandon() {
	done := make(chan struct{})
	go func() {
		r.cleanUp()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(abandonWait):
	}
}

// cleanUp ends what there is of a run whose start failed and waits until nothing of it lives.
func (r *running) cleanUp() {
	if r.conn != nil {
		_ = r.conn.HangUp() // a command that waits to go on gives up
	}
	if r.command != nil {
		_ = pidfdSignal(r.command, unix.SIGKILL)
	}
	for r.conn != nil && r.pidfd == nil {
		m, err := r.conn.Next() // there was no answer yet, or another came first
		if err == nil {
			err = r.adopt(m)
		}
		if err != nil && !errors.Is(err, forkserver.ErrLostFile) {
			break // nobody is left who could say more
		}
	}
	r.kill(Canceled)
	if r.pidfd != nil {
		waitPidfd(r.pidfd)
	}
	if r.streams != nil {
		r.streams.Close()
	}
	r.release()
}

// adopt keeps the pidfd that came with an event, if one did, which anything else could be neither waited for nor killed by,
// or the mount namespace.
func (r *running) adopt(m forkserver.Message) error {
	if m.File == nil {
		return nil
	}
	if m.Kind == program.Ready {
		r.mounts = m.File
		return nil
	}
	if m.Kind != program.Cloned || errors.Is(pidfdSignal(m.File, 0), unix.EBADF) {
		m.File.Close()
		return fmt.Errorf("a descriptor that is no pidfd came with an event %v", m.Kind)
	}
	r.pidfd = m.File
	return nil
}

// release gives back what the run had. Nothing of it lives any more.
func (r *running) release() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	close(r.gone)
	if r.conn != nil {
		r.conn.Close()
	}
	for _, f := range []*os.File{r.pidfd, r.command} {
		if f != nil {
			f.Close()
		}
	}
	free := func() {}
	if r.upper != nil {
		free = r.upper.use.endRun()
	}
	go func() {
		if r.mounts != nil {
			r.mounts.Close()
		}
		free()
		if r.group != nil {
			_ = r.group.Delete() // what could not be deleted, the cell's end tries again
		}
		r.block.Give()
	}()
}

// begin starts what watches over the run.
func (r *running) begin(ctx context.Context) {
	c := r.config
	r.ctx = ctx
	r.streams.Start()
	stopCancel := context.AfterFunc(ctx, func() { r.kill(Reason(fault.ReasonOf(ctx))) })
	r.stop = append(r.stop, func() { stopCancel() })
	if limit := c.Supervision.Timeout; limit != 0 {
		t := time.AfterFunc(limit-time.Since(r.started), func() { r.kill(TimedOut) })
		r.stop = append(r.stop, func() { t.Stop() })
	}
	if limit := c.Limits.CPUTime; limit > 0 {
		stop := make(chan struct{})
		go r.watchCPU(limit, stop)
		r.stop = append(r.stop, func() { close(stop) })
	}
	live.add(r)
	go r.finish()
}

// watchCPU kills the run when it has used its CPU time. It looks again when
// that could be, with all CPUs busy, at the earliest.
func (r *running) watchCPU(limit time.Duration, stop <-chan struct{}) {
	cpus := time.Duration(busyCPUs(&r.config.Limits))
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		used, err := r.group.CPU()
		switch {
		case err != nil: // out of descriptors, say; the limit holds all the same
			timer.Reset(10 * time.Millisecond)
		case used >= limit:
			r.kill(CPUTimedOut)
			return
		default:
			timer.Reset(max((limit-used)/cpus, time.Millisecond))
		}
	}
}

// finish waits for the end and puts the result together.
func (r *running) finish() {
	exit, exited := r.awaitExit()
	r.letEnd()
	_ = pidfdSignal(r.pidfd, unix.SIGKILL) // what PID 1 has said was its last word, whether it lies or not
	var usage Usage
	if exit.Alone() {
		usage = r.usage(exit) // while PID 1 ends
	}
	waitPidfd(r.pidfd)
	r.dropLastGuard()
	if !exit.Alone() {
		usage = r.usage(exit)
	}
	for _, stop := range r.stop {
		stop()
	}
	live.remove(r)
	lost := !exited && !r.wasKilled() && r.cell.DiesNow()
	result := &Result{Usage: usage}
	r.release()
	inTime, err := r.streams.Finish()
	if r.copyErr = err; !inTime {
		r.copyErr = errors.Join(err, ErrWaitDelay)
	}
	if lost {
		r.err = fmt.Errorf("sandbox: %w (%w)", ErrCellLost, r.cell.Lost())
	} else {
		r.conclude(result, exit, exited)
	}
	close(r.done)
}

// awaitExit returns PID 1's last word, if it came to that.
func (r *running) awaitExit() (program.Event, bool) {
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

// waitPidfd waits until the process has ended, and with it, as PID 1, all of
// its namespace. The descriptor is used through the runtime's poller.
func waitPidfd(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// usage takes what nothing counts for the run as a whole from what PID 1 was told at the command's end.
func (r *running) usage(exit program.Event) Usage {
	wall := time.Since(r.started)
	own := Usage{UserCPU: exit.UserCPU, SystemCPU: exit.SystemCPU, MemoryPeak: exit.MaxRSS, Uncounted: slices.Clone(withoutCgroup)}
	u := own
	if r.group != nil {
		if g, err := r.group.Usage(); err == nil {
			u = r.fromGroup(g)
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
	u.Wall = wall
	return u
}

// withoutCgroup is Usage.Uncounted of a run that has none.
var withoutCgroup = []string{"UserCPU", "SystemCPU", "Throttled", "MemoryPeak", "ReadBytes", "WriteBytes", "PIDsPeak", "PIDsRefused", "OOMKills"}

func (r *running) fromGroup(g limits.Usage) Usage {
	return Usage{
		UserCPU: g.UserCPU, SystemCPU: g.SystemCPU, Throttled: g.Throttled,
		MemoryPeak: g.MemoryPeak, ReadBytes: g.ReadBytes, WriteBytes: g.WriteBytes,
		PIDsPeak: g.PIDsPeak, PIDsRefused: g.PIDsRefused, OOMKills: g.OOMKills,
		Uncounted: slices.Clone(r.cell.Uncounted()),
	}
}

// conclude decides what the run's end was.
func (r *running) conclude(result *Result, exit program.Event, exited bool) {
	status := syscall.WaitStatus(exit.Status)
	if status.Signaled() {
		result.ExitCode, result.Signal, result.Reason = -1, status.Signal(), Signaled
	} else {
		result.ExitCode = status.ExitStatus()
	}
	r.mu.Lock()
	reason, killed := r.reason, r.killed
	r.mu.Unlock()
	failed := result.Signal != 0 || result.ExitCode != 0
	switch {
	case killed && !exited:
		result.Reason = reason
	case killed && reason == OutputExceeded:
		result.Reason = reason // the command was quicker than the kill
	case failed && result.Usage.OOMKills > 0:
		result.Reason = OutOfMemory
	case failed && result.Usage.PIDsRefused > 0:
		result.Reason = PIDsExceeded
	}
	r.result = result
	if failed || result.Reason != Exited {
		e := &ExitError{Result: result}
		if result.Reason == Canceled {
			e.cause = fault.Ended(r.ctx)
		}
		r.err = e
	} else if r.copyErr != nil {
		r.err = fmt.Errorf("sandbox: copying standard streams: %w", r.copyErr)
	}
}

func (r *running) wait() (*Result, error) {
	<-r.done
	return r.result, r.err
}

func (r *running) wasKilled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.killed
}

// ended returns a channel that is closed when nothing of the run lives any more. Its output may
// still have to be written.
func (r *running) ended() <-chan struct{} { return r.gone }

func (r *running) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// kill ends the run for the given reason. The first reason counts.
func (r *running) kill(reason Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		return
	}
	r.killed, r.reason = true, reason
	if r.over {
		return // only the output was still to be read
	}
	if r.pidfd != nil {
		_ = pidfdSignal(r.pidfd, unix.SIGKILL)
	}
	if r.paused {
		_ = r.group.Thaw() // on cgroup v1 a frozen process can't die
	}
}

func (r *running) killAll() error {
	select {
	case <-r.done:
		return os.ErrProcessDone
	default:
	}
	r.kill(Signaled)
	return nil
}

func (r *running) signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("sandbox: unsupported signal %v", sig)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return os.ErrProcessDone
	}
	err := pidfdSignal(r.command, s)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

func pidfdSignal(f *os.File, s syscall.Signal) (err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	return errors.Join(ctlErr, err)
}

func (r *running) usageNow() (Usage, error) {
	select {
	case <-r.done:
		if r.result == nil {
			return Usage{}, r.err
		}
		return r.result.Usage, nil
	default:
	}
	u := Usage{Wall: time.Since(r.started), Uncounted: slices.Clone(withoutCgroup)}
	if r.group == nil {
		return u, nil
	}
	g, err := r.group.Usage()
	if err != nil && r.isOver() {
		<-r.done
		return r.usageNow()
	}
	if err != nil {
		return Usage{}, fmt.Errorf("sandbox: usage: %w", err)
	}
	wall := u.Wall
	u = r.fromGroup(g)
	u.Wall = wall
	return u, nil
}
