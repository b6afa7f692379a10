package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// A configuration is a place where the tests run. Those in the guest are one boot each.
type configuration struct {
	name     string
	kernel   string   // VM_KERNEL of guest.sh; "" on this machine
	as       string   // VM_AS of guest.sh: the user and what PID 1 is; on this machine "user" is uid 1000, "" the user at hand
	packages []string // directories; nil: all
	run      string   // -run of its tests
	skip     string   // -skip: those that tell nothing there that they don't tell elsewhere
	always   bool     // of make test; the others are of make matrix
	optional bool     // skipped if this machine can't have it: no package of its kernel, no such container
	note     string
}

// What depends on the place: most of the root package, the cgroups, and the cell's own directories.
var placed = []string{".", "internal/cell", "internal/limits"}

// What users import or run. Of these packages the tests named Rootless and Attack are for everybody.
var public = []string{".", "sandboxtest", "image", "image/cmd/sandbox"}

// What meets the kernel and cgroups most is enough where most is as in another configuration. Examples are left
// out on kernels without idmapped tmpfs (6.3), and in containers: they can't say what they need.
const (
	sample    = "^Test.*(Rootless|Attack|Limit|Memory|CPU|Pause|Cgroup|Check|Bind|Rootfs|Freeze|Kill|Usage|IO)"
	tests     = "^Test"
	user      = "Rootless|Attack"
	container = "Container"
)

// What takes long and depends on this library alone, or on what all kernels do alike, tells on this machine what it
// has to tell. Emulated, a cell's boot takes seconds, and each script boots some.
const (
	slow = "^Test(AttackRaces|AttackInherited|RootlessFaults|RootlessIDsOfSeveralHosts|RootlessNestedNamespace|" +
		"RootlessPrograms|RootlessReadable|HostRootfs|RootlessHostRootfs|RandomOptions)$"
	scripts = "^TestScripts$"
)

// configurations is the matrix. All run in this order, guests beside each other.
var configurations = []configuration{
	{name: "host", always: true, note: "this machine, as the user at hand"},
	{name: "host-user", always: true, as: "user", packages: public, run: user, note: "this machine, as uid 1000 without subordinate ids"},
	{name: "docker-default", always: true, as: "docker", packages: []string{"."}, run: container, note: "root in a container of docker run without flags: only the error that says which"},
	{name: "docker", always: true, as: "docker", packages: public, run: user + "|" + container, skip: slow, note: "the same with the least flags that make runs work: the rootless tests"},
	{name: "docker-cap", as: "docker", packages: public, run: tests, note: "the same with CAP_SYS_ADMIN"},
	{name: "docker-privileged", as: "docker", packages: public, run: tests, optional: true, note: "docker run --privileged"},
	{name: "guest", always: true, kernel: "6.12", as: "root", skip: slow + "|" + scripts, note: "plain init, cgroup v2, root"},
	{name: "systemd-user", always: true, kernel: "6.12", as: "systemd-user", packages: public, run: user, skip: slow, note: "uid 1000, in a service with Delegate=yes of its user manager"},
	{name: "linux-5.10", always: true, kernel: "5.10", as: "root", packages: placed, run: sample, skip: slow, optional: true, note: "plain init, root"},
	{name: "systemd", kernel: "6.12", as: "systemd", packages: placed, run: sample, skip: slow, note: "root, in a service without delegation"},
	{name: "systemd-service", kernel: "6.12", as: "systemd-service", packages: placed, run: sample, skip: slow, note: "root, in a service with Delegate=yes"},
	{name: "linux-6.1", kernel: "6.1", as: "root", packages: placed, run: tests, skip: slow, note: "plain init, root"},
	{name: "linux-6.1-user", kernel: "6.1", as: "user", packages: public, run: user, note: "plain init, uid 1000 with subordinate ids, no delegation"},
	{name: "linux-newest", kernel: "newest", as: "root", packages: placed, run: tests, skip: slow, optional: true, note: "plain init, root"},
}

// defaultKernel is the one that guest.sh takes by itself.
const defaultKernel = "6.12"

func (c configuration) guest() bool { return c.kernel != "" }

// chooseConfigurations returns what to run: the configurations named, or those of make test that make sense here. "guests" is
// all in the guest, "matrix" all that there are.
func chooseConfigurations(names []string) ([]configuration, error) {
	var known []string
	for _, c := range configurations {
		known = append(known, c.name)
	}
	for _, name := range names {
		if name != "guests" && name != "matrix" && !slices.Contains(known, name) {
			return nil, fmt.Errorf("no configuration %q: there are %s, guests, and matrix", name, strings.Join(known, ", "))
		}
	}
	if slices.Contains(names, "host-user") && os.Getuid() != 0 {
		return nil, errors.New("the configuration host-user needs root: an ordinary user's own tests are host")
	}
	needsRoot := func(c configuration) bool { return !c.guest() && c.as != "" }
	var chosen []configuration
	for _, c := range configurations {
		switch {
		case !c.asked(names):
		case c.guest() && os.Getenv("SANDBOX_VM") == "0":
			fmt.Println(c.name + ": left out, as SANDBOX_VM=0 says")
		case needsRoot(c) && os.Getuid() != 0:
		default:
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

func (c configuration) asked(names []string) bool {
	return len(names) == 0 && c.always || slices.Contains(names, c.name) || slices.Contains(names, "matrix") || c.guest() && slices.Contains(names, "guests")
}
