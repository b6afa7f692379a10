//go:build linux

package host

import (
	"slices"
	"strings"
)

// Viewed lists the v1 controllers in which programs look for their limits. OpenJDK uses none of
// them if one is missing.
var Viewed = []string{"memory", "cpu", "cpuacct", "cpuset"}

// View holds the cgroup file systems through which a run sees its own limits; the rest is zero. It
// is for a mount in the run's own cgroup namespace, whose root is the run's group.
type View [4]Hierarchy // v1 has one for each Viewed controller, unless some share one

// Hierarchy is a cgroup file system to mount.
type Hierarchy struct {
	Type    string // of the file system, cgroup or cgroup2
	Name    string // of its directory in /sys/fs/cgroup; "" on v2, where it is that itself
	Options string // for mount(2), separated by commas
}

// Links returns the other names by which programs look for a v1 hierarchy: cpu and cpuacct are
// usually mounted together (cgroups(7)).
func (h Hierarchy) Links() []string {
	return slices.DeleteFunc(strings.Split(h.Name, ","), func(name string) bool { return name == h.Name || !slices.Contains(Viewed, name) })
}
