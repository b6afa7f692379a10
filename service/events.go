package service

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// State is what an instance is doing.
type State int

const (
	Starting  State = iota // its run starts, or is not ready yet
	Running                // it is ready
	Waiting                // it has failed, and will be started again
	Stopping               // it is being ended
	Ended                  // it has ended, by itself or by Close, and well
	Failed                 // it has failed for good
	Preparing              // before its first run: what it needs is made or fetched
)

func (s State) String() string {
	names := [...]string{"starting", "running", "waiting", "stopping", "ended", "failed", "preparing"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return names[s]
}

// Event is that an instance, or a replica of it, is in another state; or, while it is Preparing,
// how far that is.
type Event struct {
	Service string
	Replica int // its number, from 1; 0 without Scale
	State   State
	Time    time.Time
	Err     error // why it failed: of Waiting and Failed
	// Instance is the one that is in this state; nil while the function of Open makes its
	// sandbox. Its Logs, Follow, State and Ended may be used from its first event on.
	Instance *Instance
	// Progress is of Preparing, and else empty.
	Progress Progress
}

// Progress is how far a part of Preparing is.
type Progress struct {
	What        string // such as "snapshot of /data", or what the function of Open calls it
	Done, Total int64  // in bytes; Total is 0 if that is not known
}

// Error is that a service failed.
type Error struct {
	Service string
	Replica int // that failed, from 1; 0 without Scale
	Err     error
	Last    []Line // the last lines of its output, 20 at most
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s: ", e.Service)
	if e.Replica > 0 {
		fmt.Fprintf(&b, "replica %d: ", e.Replica)
	}
	fmt.Fprint(&b, e.Err)
	if len(e.Last) > 0 {
		b.WriteString("; its last lines:")
	}
	for _, line := range e.Last {
		fmt.Fprintf(&b, "\n\t%s", shown(strings.TrimSuffix(line.Text, "\r")))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

const (
	lastLines = 20
	maxShown  = 500 // runes of a line, or of an answer, in an error's text
)

// ErrNotReady is in the error of a service that took longer than StartTimeout allows.
var ErrNotReady = errors.New("not ready")

// ErrUnhealthy is in the error of a service that failed by Health.
var ErrUnhealthy = errors.New("unhealthy")
