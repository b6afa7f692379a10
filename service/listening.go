package service

import "github.com/cellkit/sandbox"

// Listening returns nil if something listens on one of the ports in a live run, by TCP, at an
// address that others reach, or else why not: what the check Listens looks at, for runs that are no
// service of this package, and for checks of Func. It needs what Listens does.
func Listening(p *sandbox.Process, ports ...int) error { return listens(p.PID(), ports...) }
