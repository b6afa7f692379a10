// Package console is this program's terminal, connected to that of a command in a run.
package console

import (
	"errors"
	"sync/atomic"
)

// GuardName is the argument with which a program executes itself to restore its terminal. It must
// call RestoreAfter then, and nothing else.
const GuardName = "restore-terminal"

var errMisused = errors.New(GuardName + " is for this program itself")

// beforeExit restores the terminal that is connected.
var beforeExit atomic.Pointer[func()]

// BeforeExit is called before a signal ends this program at once.
func BeforeExit() {
	if f := beforeExit.Load(); f != nil {
		(*f)()
	}
}
