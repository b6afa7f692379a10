package cell

import (
	"errors"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BootError reports that a cell could not be booted.
type BootError struct {
	Why    Why
	Denied bool // the kernel refused something: EPERM, EACCES or ENOSYS
	Err    error
}

func (e *BootError) Error() string { return e.Err.Error() }
func (e *BootError) Unwrap() error { return e.Err }

// Why is a cause of a BootError for which there is a remedy.
type Why int

const (
	Other               Why = iota
	ChildTaken              // somebody else in this process waited for one of the boot's children
	ProgramUnreadable       // this program's own file
	IDsUnmapped             // the kernel refused the map of ids
	CapabilitiesLacking     // the cell's root can't have the ones it needs
	ProcUnmounted           // the cell's /proc can't be mounted
)

func newBootError(err error) *BootError {
	said := interpret(err)
	e := &BootError{Why: said.why, Denied: said.denied, Err: err}
	var file *fs.PathError
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		e.Denied = e.Denied || errors.Is(err, errno)
	}
	switch {
	case errors.Is(err, unix.ECHILD):
		e.Why = ChildTaken
	case errors.Is(err, unix.EACCES) && errors.As(err, &file) && file.Path == ownPath:
		e.Why = ProgramUnreadable
	}
	return e
}

// interpreted is what a text of libcontainer means.
type interpreted struct {
	why    Why
	denied bool
	child  int // pid of libcontainer's second process, if that failed
}

// interpret derives the cause from the text of an error, which no other function of this module
// does. Of a failure in libcontainer's processes, which are written in C and reached through a
// pipe, only the text arrives. When libcontainer changes, check whether it still uses these words:
// the tests that run in containers fail if it does not.
func interpret(err error) (said interpreted) {
	text := strings.ToLower(err.Error()) // the C code's errors have capitals
	for _, words := range []struct {
		text string
		why  Why
	}{
		{`mounting "proc"`, ProcUnmounted},                // rootfs_linux.go, mountToRootfs
		{"can't apply capabilities", CapabilitiesLacking}, // capabilities/capabilities.go, ApplyCaps
		{"failed to use newuid map", IDsUnmapped},         // nsenter/nsexec.c, update_uidmap
	} {
		if strings.Contains(text, words.text) {
			said.why = words.why // the last one counts
		}
	}
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		said.denied = said.denied || strings.Contains(text, errno.Error())
	}
	if m := signed.FindStringSubmatch(text); m != nil {
		said.child, _ = strconv.Atoi(m[1])
	}
	return said
}

// signed matches the signature of libcontainer's second process, which holds its process id.
var signed = regexp.MustCompile(`nsexec-1\[(\d+)\]`)
