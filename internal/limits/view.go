//go:build linux

package limits

import (
	"slices"
	"strings"
)

// viewed lists the v1 controllers in which programs look for their limits. OpenJDK takes none of
// them if one is missing.
var viewed = []string{"memory", "cpu", "cpuacct", "cpuset"}

// View is the cgroup file systems through which a run sees its own limits, the rest being zero. It
// is for a mount in the run's own cgroup namespace, whose root is the run's group.
type View [4]Hierarchy // on v1 as many as there are viewed controllers, unless some share one

// Hierarchy is one of them.
type Hierarchy struct {
	Type    string // of the file system, cgroup or cgroup2
	Name    string // of its directory in /sys/fs/cgroup; "" on v2, where it is that itself
	Options string // for mount(2), separated by commas
}

// Links returns by which other names programs look for a v1 hierarchy: cgroups(7) has cpu and
// cpuacct mounted together.
func (h Hierarchy) Links() []string {
	return slices.DeleteFunc(strings.Split(h.Name, ","), func(name string) bool { return name == h.Name || !slices.Contains(viewed, name) })
}

// flagsV1 are those of a v1 hierarchy's options that are no controllers. The kernel complains in
// its log about a mount without them.
var flagsV1 = []string{"noprefix", "xattr", "cpuset_v2_mode", "favordynmods"}

// view is how the hierarchy is mounted once more; zero if programs don't look for their limits in
// it.
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

// Views is all that View may return.
func (c *Cell) Views() View {
	return c.views(func(hierarchy) bool { return true })
}

// View returns what a run with such a Spec is to see. On v1 it has directories of its own in some
// hierarchies only, and in others is where the cell's first process is, alone with its like. Where
// it would be with anybody else it sees nothing.
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

// seen reports whether programs would look for any of the limits of s. Each hierarchy of v1 is a
// mount more.
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

// findHome looks in which v1 hierarchies libcontainer has put the cell's first process into the
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

// fillable reports whether processes can be put below the cell in a v1 hierarchy: an empty cpuset
// takes none.
func (c *Cell) fillable(name string) bool {
	return name != "cpuset" || len(readWords(c.tree.v1[name]+c.path+"/cpuset.cpus")) > 0
}
