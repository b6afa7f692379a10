package service

import "github.com/cellkit/sandbox"

// Listening returns nil if something listens on the port in a live run, by TCP, at an address that
// others reach, or else why not: what the check Listens looks at, for runs that are no service of
// this package. It needs what Listens does.
func Listening(p *sandbox.Process, port int) error { return listens(p.PID(), port) }
