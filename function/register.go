package function

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
)

// functions has the place where each function was made, by name.
var functions = struct {
	sync.Mutex
	at map[string]string
}{at: map[string]string{}}

// register records the name of a function that the caller of New makes. It panics if the function
// could not be called by that name.
func register(name string) {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	place, early := "", false
	for {
		f, more := frames.Next()
		if place == "" {
			place = fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		early = early || strings.HasPrefix(f.Function, "runtime.doInit")
		if !more {
			break
		}
	}
	functions.Lock()
	defer functions.Unlock()
	switch other, taken := functions.at[name]; {
	case name == "" || strings.IndexByte(name, 0) >= 0:
		panic(fmt.Sprintf("function: New: %q is no name (%s)", name, place))
	case taken:
		panic(fmt.Sprintf("function: New: the name %q is used twice: at %s and at %s", name, other, place))
	case !early:
		panic(fmt.Sprintf("function: New: %q at %s is made after packages were initialised: make it a package-level variable", name, place))
	}
	functions.at[name] = place
}
