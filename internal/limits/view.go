//go:build linux

package limits

import (
	"slices"
	"strings"
)

// viewed lists the v1 controllers in which programs look for their limits. OpenJDK uses none of
// them if one is missing.
var viewed = []string{"memory", "cpu", "cpuacct", "cpuset"}

// View holds the cgroup file systems through which a run sees its own limits; the rest is zero. It
// is for a mount in the run's own cgroup namespace, whose root is the run's group.
type View [4]Hierarchy // v1 has one for each viewed controller, unless some share one

// Hierarchy is a cgroup file system to mount.
type Hierarchy struct {
	Type    string // of the file system, cgroup or cgroup2
	Name    string // of its directory in /sys/fs/cgroup; "" on v2, where it is that itself
	Options string // for mount(2), separated by commas
}

// Links returns the other names by which programs look for a v1 hierarchy: cpu and cpuacct are
// usually mounted together (cgroups(7)).
func (h Hierarchy) Links() []string {
	return slices.DeleteFunc(strings.Split(h.Name, ","), func(name string) bool { return name == h.Name || !slices.Contains(viewed, name) })
}

// flagsV1 are the options of a v1 hierarchy that are not controllers. The kernel complains in its
// log about a mount without them.
var flagsV1 = []string{"noprefix", "xattr", "cpuset_v2_mode", "favordynmods"}

// view returns the mount of the hierarchy for a run, or zero if programs don't look for their
// limits in it.
func (h hierarchy) view() Hierarchy {
	if h.v2 {
		return Hierarchy{Type: "cgroup2"}
	}
	if !slices.ContainsFunc(h.v1, func(c string) bool { return slices.Contains(viewed, c) }) {
		return Hierarchy{}
	}
	controllers := slices.DeleteFunc(slices.Clone(h.options), func(o string) bool { return slices.Contains(flagsV1, o) })
	return Hierarchy{Type: "cgroup", Name: strings.Join(controllers, ","), Options: strings.Join(h.options, ",")}
}

// Views returns everything that View may return.
func (c *Cell) Views() View {
	return c.views(func(hierarchy) bool { return true })
}

// View returns what a run with such a Spec sees. On v1 the run has directories of its own only in
// some hierarchies. In others it is where the cell's first process is, among the cell's processes
// only. Where it would be among other processes it sees nothing.
func (c *Cell) View(s Spec) View {
	if !c.seen(s) {
		return View{}
	}
	joined := c.controllersV1(s)
	return c.views(func(h hierarchy) bool {
		return h.v2 || slices.ContainsFunc(h.v1, func(name string) bool {
			return c.tree.v1[name] != "" && (slices.Contains(joined, name) || c.home[name])
		})
	})
}

// seen reports whether programs would look for any of the limits of s. Each hierarchy of v1 costs
// one more mount.
func (c *Cell) seen(s Spec) bool {
	return s.Memory != 0 || s.CPUs != 0 || s.CPUSet != "" || c.tree.v2 != "" && !s.Empty()
}

func (c *Cell) views(may func(hierarchy) bool) (v View) {
	n := 0
	for _, h := range c.tree.all {
		if as := h.view(); as != (Hierarchy{}) && h.v2 == (c.tree.v2 != "") && n < len(v) && may(h) {
			v[n] = as
			n++
		}
	}
	return v
}

// findHome finds the v1 hierarchies in which libcontainer has put the cell's first process into the
// cell's own cgroup.
func (c *Cell) findHome() {
	c.home = map[string]bool{}
	for _, name := range viewed {
		for _, dir := range c.tree.dirs(c.path+"/cell", name) {
			members, err := readFile(dir+"/cgroup.procs", nil)
			c.home[name] = err == nil && len(members) > 0
		}
	}
}

// fillable reports whether processes can be put below the cell in a v1 hierarchy: a cgroup with an
// empty cpuset takes none.
func (c *Cell) fillable(name string) bool {
	return name != "cpuset" || len(readWords(c.tree.v1[name]+c.path+"/cpuset.cpus")) > 0
}
