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
	Starting State = iota // its run starts, or is not ready yet
	Running               // it is ready
	Waiting               // it has failed, and will be started again
	Stopping              // it is being ended
	Ended                 // it has ended, by itself or by Close, and well
	Failed                // it has failed for good
)

func (s State) String() string {
	names := [...]string{"starting", "running", "waiting", "stopping", "ended", "failed"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return names[s]
}

// Event is that an instance is in another state.
type Event struct {
	Service string
	State   State
	Time    time.Time
	Err     error // why it failed: of Waiting and Failed
}

// Error is that a service failed.
type Error struct {
	Service string
	Err     error
	Last    []Line // the last lines of its output, 20 at most
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s: %v", e.Service, e.Err)
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
