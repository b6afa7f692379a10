package cell

import (
	"errors"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BootError is a cell that could not be booted.
type BootError struct {
	Why    Why
	Denied bool // the kernel refused something: EPERM, EACCES or ENOSYS
	Err    error
}

func (e *BootError) Error() string { return e.Err.Error() }
func (e *BootError) Unwrap() error { return e.Err }

// Why is a cause of a BootError that there is a remedy for.
type Why int

const (
	Other               Why = iota
	ChildTaken              // somebody else in this process waited for one of the boot's children
	ProgramUnreadable       // this program's own file
	IDsUnmapped             // the kernel refused the map of ids
	CapabilitiesLacking     // the cell's root can't have those that it needs
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

// interpreted is what a text of libcontainer says.
type interpreted struct {
	why    Why
	denied bool
	child  int // libcontainer's second process, if it is that that failed
}

// interpret is the one place of this module where the text of an error decides anything. Of what
// fails in libcontainer's processes, in C and beyond a pipe, nothing but the text arrives. With
// another version of libcontainer look whether it still says so: the tests of containers notice.
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

// signed is how libcontainer's second process signs its errors, with its process id.
var signed = regexp.MustCompile(`nsexec-1\[(\d+)\]`)
