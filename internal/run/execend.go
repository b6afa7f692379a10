//go:build linux

package run

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

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
	if !exited {
		_ = signal(x.pidfd, unix.SIGKILL) // nobody would tell of its end
	}
	_ = signal(x.init, unix.SIGKILL)
	awaitEnd(x.init)
	for _, stop := range x.stop {
		stop()
	}
	end := x.endOfExec(exit)
	x.setOver()
	x.release()
	if end.Reason == fault.RunEnded {
		<-x.in.gone // its own reason is there then
		if x.in.end == nil {
			end = nil // with the cell
		} else {
			end.Of = x.in.end
		}
	}
	x.end = end
	x.finishStreams()
	close(x.done)
}

// endOfExec decides how a further command ended.
func (x *Run) endOfExec(exit program.Event) *End {
	end := endOf(exit, x.usageOf(exit))
	reason, killed, asked := x.whyKilled()
	now := x.counts()
	switch {
	case killed && end.Signal == unix.SIGKILL, asked, killed && reason == fault.OutputExceeded:
		end.Reason = reason
	case end.Failed() && now.oomKills > x.before.oomKills:
		end.Reason = fault.OutOfMemory
	// PID 1 closes its socket before the kernel ends what is left in its pid namespace:
	// kernel/exit.c, do_exit.
	case end.Signal == unix.SIGKILL && !x.in.conn.Quiet():
		end.Reason = fault.RunEnded
	case end.Failed() && now.pidsRefused > x.before.pidsRefused:
		end.Reason = fault.PIDsExceeded
	}
	if end.Reason == fault.Canceled {
		end.Cause = fault.Ended(x.ctx)
	}
	return end
}

// killRounds bounds how often a command's family is looked for that can't be stopped.
const killRounds = 20

// killWait bounds how long its end is waited for: a process may be in the kernel for long.
const killWait = time.Second

// killFamily kills a command, which leads a session, and all that it has started: its descendants,
// and the session's other processes. What has left both, as a daemon does, stays. All are stopped
// first, so that none is lost with its parent, before it was seen.
func killFamily(pid int, pidfd *os.File) {
	_ = signal(pidfd, unix.SIGSTOP) // as long as it is there, its number is nobody else's
	still := 0
	for range killRounds {
		running := slices.DeleteFunc(family(pid), func(k kin) bool { return k.stopped })
		for _, k := range running {
			k.signal(unix.SIGSTOP)
		}
		if still++; len(running) > 0 {
			still = 0
			time.Sleep(time.Millisecond) // the kernel stops them a moment later
		}
		// The first look that finds no other may have missed what was started meanwhile.
		if still == 2 || signal(pidfd, 0) != nil {
			break
		}
	}
	for end := time.Now().Add(killWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		left := family(pid)
		for _, k := range left {
			k.kill()
		}
		if len(left) == 0 || signal(pidfd, 0) != nil {
			break
		}
	}
	_ = signal(pidfd, unix.SIGKILL)
}

// kin is a process as /proc/PID/stat describes it: proc(5).
type kin struct {
	pid, parent, session int
	began                string
	stopped              bool
}

// family returns the living processes of the leader's session, and its descendants.
func family(leader int) (list []kin) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []kin
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != leader {
			if k, ok := kinOf(pid); ok {
				all = append(all, k)
			}
		}
	}
	in := map[int]bool{leader: true}
	for grown := true; grown; {
		grown = false
		for _, k := range all {
			if !in[k.pid] && (in[k.parent] || k.session == leader) {
				in[k.pid], grown = true, true
				list = append(list, k)
			}
		}
	}
	return list
}

// kinOf returns a process that has not ended.
func kinOf(pid int) (k kin, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return k, false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // what follows the name
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return k, false
	}
	k = kin{pid: pid, began: f[19], stopped: f[0] == "T" || f[0] == "t"}
	k.parent, _ = strconv.Atoi(f[1])
	k.session, _ = strconv.Atoi(f[3])
	return k, true
}

// kill kills the process.
func (k kin) kill() { k.signal(unix.SIGKILL) }

// signal sends the process a signal, and no other that has got its number since.
func (k kin) signal(s unix.Signal) {
	fd, err := unix.PidfdOpen(k.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, ok := kinOf(k.pid); ok && now.began == k.began {
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
	}
}
