//go:build linux

package limits

import (
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/host"
)

// flagsV1 are the options of a v1 hierarchy that are not controllers. The kernel complains in its
// log about a mount without them.
var flagsV1 = []string{"noprefix", "xattr", "cpuset_v2_mode", "favordynmods"}

// view returns the mount of the hierarchy for a run, or zero if programs don't look for their
// limits in it.
func (h hierarchy) view() host.Hierarchy {
	if h.v2 {
		return host.Hierarchy{Type: "cgroup2"}
	}
	if !slices.ContainsFunc(h.v1, func(c string) bool { return slices.Contains(host.Viewed, c) }) {
		return host.Hierarchy{}
	}
	controllers := slices.DeleteFunc(slices.Clone(h.options), func(o string) bool { return slices.Contains(flagsV1, o) })
	return host.Hierarchy{Type: "cgroup", Name: strings.Join(controllers, ","), Options: strings.Join(h.options, ",")}
}

// Views returns everything that View may return.
func (c *Cell) Views() host.View {
	return c.views(func(hierarchy) bool { return true })
}

// View returns what a run with such a Spec sees. On v1 the run has directories of its own only in
// some hierarchies. In others it is where the cell's first process is, among the cell's processes
// only. Where it would be among other processes it sees nothing.
func (c *Cell) View(s Spec) host.View {
	if !c.seen(s) {
		return host.View{}
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

func (c *Cell) views(may func(hierarchy) bool) (v host.View) {
	n := 0
	for _, h := range c.tree.all {
		if as := h.view(); as != (host.Hierarchy{}) && h.v2 == (c.tree.v2 != "") && n < len(v) && may(h) {
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
	for _, name := range host.Viewed {
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
