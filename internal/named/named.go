// Package named makes a process reachable by a name for other processes of the same user: a unix
// socket in a directory that only this user may enter, and messages with open files over it.
package named

import (
	"fmt"
	"regexp"
)

// valid matches what is one element of a path, is no option, and leaves the socket's name short.
var valid = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// Check returns why a name can't be used, or nil.
func Check(name string) error {
	if !valid.MatchString(name) {
		return fmt.Errorf("%q is no name of 1 to 64 letters, digits, '_', '.' and '-' that begins with a letter or a digit", name)
	}
	return nil
}
