//go:build linux

// Package family finds and kills what a command has started. The command must lead a session.
package family

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killRounds bounds how often a command's family is looked for that can't be stopped.
const killRounds = 20

// killWait bounds how long its end is waited for: a process may be in the kernel for long.
const killWait = time.Second

// Kill kills a command, which leads a session, and all that it has started: its descendants, and
// the session's other processes. What has left both, as a daemon does, stays. All are stopped
// first, so that none is lost with its parent, before it was seen. signal sends a signal to the
// command, or returns an error if it has ended and was waited for: then nothing is killed.
func Kill(leader int, signal func(unix.Signal) error) {
	if signal(unix.SIGSTOP) != nil {
		return // as long as it is there, its number is nobody else's
	}
	still := 0
	for range killRounds {
		running := slices.DeleteFunc(Of(leader), func(m Member) bool { return m.stopped })
		for _, m := range running {
			m.signal(unix.SIGSTOP)
		}
		if still++; len(running) > 0 {
			still = 0
			time.Sleep(time.Millisecond) // the kernel stops them a moment later
		}
		// The first look that finds no other may have missed what was started meanwhile.
		if still == 2 || signal(0) != nil {
			break
		}
	}
	dying := map[int]Member{} // one whose parent is gone already is no descendant any more
	for end := time.Now().Add(killWait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		left := Of(leader)
		for _, m := range left {
			m.Kill()
			dying[m.pid] = m
		}
		maps.DeleteFunc(dying, func(_ int, m Member) bool { return !m.lives() })
		if len(left)+len(dying) == 0 || signal(0) != nil {
			break
		}
	}
	_ = signal(unix.SIGKILL)
}

// Member is a process as /proc/PID/stat describes it: proc(5).
type Member struct {
	pid, parent, session int
	began                string
	stopped              bool
}

// Of returns the living processes of the leader's session, and its descendants, without the leader.
func Of(leader int) (list []Member) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []Member
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != leader {
			if m, ok := memberOf(pid); ok {
				all = append(all, m)
			}
		}
	}
	in := map[int]bool{leader: true}
	for grown := true; grown; {
		grown = false
		for _, m := range all {
			if !in[m.pid] && (in[m.parent] || m.session == leader) {
				in[m.pid], grown = true, true
				list = append(list, m)
			}
		}
	}
	return list
}

// memberOf returns a process that has not ended.
func memberOf(pid int) (m Member, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return m, false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // what follows the name
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return m, false
	}
	m = Member{pid: pid, began: f[19], stopped: f[0] == "T" || f[0] == "t"}
	m.parent, _ = strconv.Atoi(f[1])
	m.session, _ = strconv.Atoi(f[3])
	return m, true
}

// Kill kills the process.
func (m Member) Kill() { m.signal(unix.SIGKILL) }

// signal sends the process a signal, and no other that has got its number since.
func (m Member) signal(s unix.Signal) {
	fd, err := unix.PidfdOpen(m.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if m.lives() {
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
	}
}

func (m Member) lives() bool {
	now, ok := memberOf(m.pid)
	return ok && now.began == m.began
}
