//go:build linux

package limits

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// used lists the v1 controllers that runs use, in the order in which a process joins their
// hierarchies.
var used = []string{"memory", "pids", "cpuacct", "freezer", "blkio", "cpu", "cpuset"}

// usedV2 lists the v2 controllers. Reading CPU time, freezing and killing need none.
var usedV2 = []string{"memory", "pids", "cpu", "cpuset", "io"}

// hierarchy is one cgroup tree and the place where it is mounted.
type hierarchy struct {
	mount string   // mount point
	root  string   // what of the tree is mounted there: "/", or less in some containers
	v1    []string // v1: its controllers among used; several are mounted together as "cpu,cpuacct"
	v2    bool

	options []string // v1: its controllers and mount options
}

// mounts reads the hierarchies of this process's mount namespace.
func mounts() ([]hierarchy, error) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
	}
	return hierarchies(infos), nil
}

// hierarchies picks one mount for each hierarchy. The same one can be mounted many times, as a
// whole or in part. The usual place is preferred, because libcontainer looks only there.
func hierarchies(infos []*mountinfo.Info) []hierarchy {
	best := map[[2]int]*mountinfo.Info{}
	var order [][2]int
	for _, m := range infos {
		for dev, old := range best {
			if old.Mountpoint == m.Mountpoint && old != m {
				delete(best, dev) // hidden by this later mount
			}
		}
		dev := [2]int{m.Major, m.Minor}
		if !slices.Contains(order, dev) {
			order = append(order, dev)
		}
		if old := best[dev]; old == nil || rank(m) > rank(old) {
			best[dev] = m
		}
	}
	var all []hierarchy
	for _, dev := range order {
		m := best[dev]
		if m == nil {
			continue
		}
		h := hierarchy{mount: m.Mountpoint, root: m.Root, v2: m.FSType == "cgroup2"}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if !h.v2 && slices.Contains(used, option) {
				h.v1 = append(h.v1, option)
			}
			if !h.v2 && !strings.Contains(option, "=") && !slices.Contains([]string{"rw", "ro", "clone_children", "seclabel"}, option) {
				h.options = append(h.options, option)
			}
		}
		all = append(all, h)
	}
	return all
}

func mountPoints(all []hierarchy) []string {
	points := make([]string, len(all))
	for i, h := range all {
		points[i] = h.mount
	}
	return points
}

func rank(m *mountinfo.Info) (n int) {
	if m.Root == "/" {
		n += 2
	}
	if m.Mountpoint == "/sys/fs/cgroup" || path.Dir(m.Mountpoint) == "/sys/fs/cgroup" {
		n++
	}
	return n
}

// version names the kind of machine by where the controllers are: a stray v1 mount (VPN clients
// make one for net_cls) does not turn a v2 machine into a hybrid one.
func version(all []hierarchy) string {
	var v1, v2 bool
	for _, h := range all {
		v2 = v2 || h.v2
		v1 = v1 || len(h.v1) > 0
	}
	switch {
	case v1 && v2:
		return "hybrid"
	case v1:
		return "v1"
	case v2:
		return "v2"
	}
	return ""
}

// containerdRoot returns the directory in which containerd/cgroups finds a v1 controller. That
// looks for <root>/cpu, so a mount at <root>/cpu,cpuacct needs the customary link beside it.
func containerdRoot(mount, controller string) (string, bool) {
	root := path.Dir(mount)
	if path.Base(mount) == controller {
		return root, true
	}
	there, err1 := os.Stat(path.Join(root, controller))
	here, err2 := os.Stat(mount)
	return root, err1 == nil && err2 == nil && os.SameFile(there, here)
}
