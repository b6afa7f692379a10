//go:build linux

package limits

import (
	"errors"
	"path"
	"slices"
	"strings"
	"sync"
)

// Tree is the place on this machine where cells and their runs get their cgroups.
type Tree struct {
	version string
	parent  string      // path of the cells' directory below the mounts; with manager, known from NewCell on
	why     string      // the reason for this place
	manager *manager    // asked for a scope by NewCell; nil to make a directory
	all     []hierarchy // every hierarchy, because libcontainer makes a directory in each
	v1      map[string]string
	v2      string            // mount point; "" where the controllers are on v1
	missing map[string]string // controller: why it can't be used and what to do
	seen    []directory       // what Discover looked at

	mu   sync.Mutex
	made []string // directories above the cells that NewCell had to make
}

// Version returns "v1", "hybrid" (v1 controllers beside a v2 hierarchy without them) or "v2".
func (t *Tree) Version() string { return t.version }

// Place says where the cells' directories are, below the cgroup mounts, and why there.
func (t *Tree) Place() string { return t.parent + ", " + t.why }

// Path returns where NewCell will make the cell with that id. It is "" if systemd decides; then
// systemd also removes the cell when no process is left in it.
func (t *Tree) Path(id string) string {
	if t.manager != nil {
		return ""
	}
	return path.Join(t.parent, id)
}

// Missing says which limits of s can't be enforced here, why, and what to do about it. It names
// each by its option. It also refuses values that make no sense.
func (t *Tree) Missing(s Spec) error {
	errs := []error{s.check()}
	for _, n := range s.needs() {
		err := t.lacks(n.option, n.controller)
		if err == nil {
			err = t.lacksDetail(n, s)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// MissingCPUTime says why Group.CPU, which WithCPUTime needs, can't work here.
func (t *Tree) MissingCPUTime() error {
	if t.v2 != "" {
		return nil // cpu.stat needs no controller
	}
	return t.lacks(WithCPUTime, "cpuacct")
}

// MissingFreeze says why Group.Freeze can't work here.
func (t *Tree) MissingFreeze() error {
	if t.v2 != "" {
		return nil // since Linux 5.2
	}
	return t.lacks(Pause, "freezer")
}

// nameV1 is what v1 calls a controller.
func nameV1(controller string) string {
	if controller == "io" {
		return "blkio"
	}
	return controller
}

func (t *Tree) lacks(option Option, controller string) error {
	if t.v2 == "" {
		controller = nameV1(controller)
	}
	if why := t.missing[controller]; why != "" {
		return option.wrong("%s", why)
	}
	return nil
}

// lacksDetail returns an error for a file that is missing although its controller is there.
func (t *Tree) lacksDetail(n need, s Spec) error {
	if t.v2 == "" {
		controller := nameV1(n.controller)
		mount := t.v1[controller]
		if _, ok := containerdRoot(mount, controller); !ok {
			return n.option.wrong("the %s controller is mounted at %s; link it: ln -s %s %s", controller, mount,
				path.Base(mount), path.Join(path.Dir(mount), controller))
		}
		if n.option == WithSwap && !exists(mount+"/memory.memsw.limit_in_bytes") {
			return WithSwap.wrong("the kernel does not account swap (no memory.memsw.limit_in_bytes); boot with swapaccount=1")
		}
		if n.option == WithCPUs && !exists(mount+"/cpu.cfs_quota_us") {
			return WithCPUs.wrong("the kernel has no CPU quota (no cpu.cfs_quota_us); use one built with CONFIG_CFS_BANDWIDTH")
		}
	} else if n.option == WithSwap && !exists("/proc/swaps") {
		return WithSwap.wrong("the kernel has no swap (no /proc/swaps); use one built with CONFIG_SWAP")
	}
	if n.option == WithCPUSet {
		return t.lacksCPUs(s.CPUSet)
	}
	return nil
}

// lacksCPUs refuses CPUs that the parent does not have. v1 would fail with EINVAL or EACCES, but v2
// accepts any list and quietly uses those that exist.
func (t *Tree) lacksCPUs(list string) error {
	have, where := t.cpus()
	wanted, err := parseCPUs(list)
	if err != nil || where == "" {
		return nil // reported by check, or left to the kernel
	}
	for cpu := range wanted {
		if !have[cpu] {
			return WithCPUSet.wrong("%q: CPU %d is not among those that cgroups below %s may use (%s)",
				list, cpu, path.Dir(where), strings.Join(readWords(where), ""))
		}
	}
	return nil
}

// cpus returns the CPUs that the children of parent can have, and the file that says so.
func (t *Tree) cpus() (map[int]bool, string) {
	mount, names := t.v2, []string{"cpuset.cpus.effective"}
	if mount == "" {
		mount, names = t.v1["cpuset"], []string{"cpuset.effective_cpus", "cpuset.cpus"}
	}
	for dir := nearest(mount, t.parent); ; dir = path.Dir(dir) {
		for _, name := range names {
			have, err := parseCPUs(strings.Join(readWords(path.Join(dir, name)), ""))
			// A v1 directory that nobody initialized has none: look above it.
			if err == nil && len(have) > 0 {
				return have, path.Join(dir, name)
			}
		}
		if dir == mount || dir == "/" {
			return nil, ""
		}
	}
}

// dirs returns the directory of p in each v1 hierarchy of the given controllers, each once.
func (t *Tree) dirs(p string, controllers ...string) []string {
	var dirs []string
	for _, c := range controllers {
		if mount := t.v1[c]; mount != "" {
			if dir := path.Join(mount, p); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}
