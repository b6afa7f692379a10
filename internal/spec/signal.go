package spec

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// signals are the numbers that Linux gives them, signal(7): other systems lack some, or have
// others.
var signals = map[string]syscall.Signal{"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15, "WINCH": 28, "PWR": 30, "RTMIN+3": 37}

// SignalNames are the names that SignalOf knows, for errors.
var SignalNames = strings.Join(slices.Sorted(maps.Keys(signals)), ", ")

// SignalOf returns the signal with a name, with or without SIG, or a number, or 0 if there is none.
func SignalOf(s string) syscall.Signal {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= maxSignal {
		return syscall.Signal(n)
	}
	return signals[name]
}
