package spec

import (
	"fmt"
	"strings"
)

// runtimes are the container runtimes that can make a cell in place of libcontainer, and whether
// they do it without a user namespace too.
var runtimes = []struct {
	name string
	bare bool
}{{"runc", true}, {"crun", true}, {"youki", true}, {"systemd-nspawn", false}, {"lxc", false}}

// Runtimes returns the names of the container runtimes that can make a cell.
func Runtimes() (names []string) {
	for _, r := range runtimes {
		names = append(names, r.name)
	}
	return names
}

// CheckRuntime returns what is wrong with a cell's runtime, "" being libcontainer.
func CheckRuntime(name string, hostIDs bool) error {
	if name == "" {
		return nil
	}
	for _, r := range runtimes {
		switch {
		case r.name != name:
		case hostIDs && !r.bare:
			return fmt.Errorf("%s makes no cell with CellWithoutUserNamespace: leave one of them out, or use runc", name)
		default:
			return nil
		}
	}
	return fmt.Errorf("no container runtime %q is known: use one of %s", name, strings.Join(Runtimes(), ", "))
}
