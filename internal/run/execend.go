//go:build linux

package run

import (
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

// counts is what a cgroup has counted that may have made a command fail.
type counts struct{ oomKills, pidsRefused uint64 }

// counts returns those of the run that the command is in.
func (x *Run) counts() (c counts) {
	if x.group != nil {
		x.group.Keep()
		if u, err := x.group.Usage(); err == nil {
			c = counts{u.OOMKills, u.PIDsRefused}
		}
	}
	return c
}

// finishExec waits for the end of a further command and puts the result together. What the command
// has left goes on.
func (x *Run) finishExec() {
	exit, exited := x.awaitExit()
	x.endBeside(exited)
	for _, stop := range x.stop {
		stop()
	}
	end := x.endOfExec(exit, exited)
	x.setOver()
	x.release()
	if end.Reason == fault.RunEnded {
		<-x.in.gone // its own reason is there then
		switch of := x.in.end; {
		case of == nil:
			end = nil // with the cell
		case of.Reason == fault.OutOfMemory:
			end.Reason = of.Reason // the kernel has killed all of the run
		default:
			end.Of = of
		}
	}
	x.end = end
	x.finishStreams()
	close(x.done)
}

// endBeside ends what is beside the command, and a command whose end was not reported.
func (x *Run) endBeside(exited bool) {
	switch {
	case x.guest == nil:
		if !exited {
			_ = signal(x.pidfd, unix.SIGKILL) // nobody would tell of its end
		}
		_ = signal(x.init, unix.SIGKILL)
		awaitEnd(x.init)
	case !exited:
		x.in.endGuest() // its PID 1 ends
	}
}

// endOfExec decides how a further command ended.
func (x *Run) endOfExec(exit program.Event, exited bool) *End {
	end := endOf(exit, x.usageOf(exit))
	reason, killed, asked := x.whyKilled()
	now := x.counts()
	switch {
	case killed && end.Signal == unix.SIGKILL, asked, killed && reason == fault.OutputExceeded:
		end.Reason = reason
	// PID 1 closes its socket before the kernel ends what is left in its pid namespace:
	// kernel/exit.c, do_exit. That of the cell ends all at once.
	case end.Signal == unix.SIGKILL && (x.in.ends() || !x.in.conn.Quiet() || !exited && (x.guest != nil || x.cell.DiesNow())):
		end.Reason = fault.RunEnded
	case end.Failed() && now.oomKills > x.before.oomKills:
		end.Reason = fault.OutOfMemory
	case end.Failed() && now.pidsRefused > x.before.pidsRefused:
		end.Reason = fault.PIDsExceeded
	}
	if end.Reason == fault.Canceled {
		end.Cause = fault.Ended(x.ctx)
	}
	return end
}
