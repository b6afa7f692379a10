//go:build linux && cgo

package wall

import (
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (linked) Explain(err error) (Why, bool) {
	said := interpret(err)
	return said.why, said.denied
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
		{"can't apply capabilities", CapabilitiesLacking}, // capabilities.go, ApplyCaps
		{"failed to use newuid map", IDsUnmapped},         // nsexec.c, update_uidmap
	} {
		if strings.Contains(text, words.text) {
			said.why = words.why // the last one counts
		}
	}
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		said.denied = said.denied || strings.Contains(text, errno.Error())
	}
	// The signature of libcontainer's second process holds its process id. The expression is
	// compiled here, because every program that imports this package would compile a variable's
	// at its start.
	if m := regexp.MustCompile(`nsexec-1\[(\d+)\]`).FindStringSubmatch(text); m != nil {
		said.child, _ = strconv.Atoi(m[1])
	}
	return said
}
