package spec

import (
	"fmt"
	"strings"
)

// What makes a cell and is linked into this program: libcontainer, which takes cgo, or what needs
// nothing.
const (
	Libcontainer = "libcontainer"
	Builtin      = "builtin"
)

// DefaultRuntime is the runtime of cells for which none was chosen and that it can make, "" being
// what is linked into this program. Only tests set it, before there is a cell.
var DefaultRuntime string

// GVisor is the runtime in whose cells each run is a container, with a kernel of its own.
const GVisor = "runsc"

// runtimes are the installed container runtimes that can make a cell, and whether they do it
// without a user namespace too.
var runtimes = []struct {
	name string
	bare bool
}{{"runc", true}, {"crun", true}, {"youki", true}, {"systemd-nspawn", false}, {"lxc", false}, {GVisor, false}, {"docker", false}, {"libvirt", false}}

// Walls returns the names of all that can make a cell.
func Walls() []string { return append([]string{Libcontainer, Builtin}, Runtimes()...) }

// Runtimes returns the names of the installed container runtimes that can make a cell.
func Runtimes() (names []string) {
	for _, r := range runtimes {
		names = append(names, r.name)
	}
	return names
}

// CheckRuntime returns what is wrong with a cell's runtime, "" being the default.
func CheckRuntime(name string, hostIDs bool) error {
	if name == "" || name == Libcontainer || name == Builtin {
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
	return fmt.Errorf("no container runtime %q is known: use one of %s", name, strings.Join(Walls(), ", "))
}
