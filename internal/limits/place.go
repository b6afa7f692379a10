//go:build linux

package limits

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"
)

// Reasons why runs are where they are, for Check.
const (
	whyNamed     = "as WithCgroupParent says"
	whyDelegated = "which was delegated to this process"
	whyBeside    = "beside this process's own cgroup, as this user owns the one above"
	whyTop       = "a directory of its own at the top"
)

// placeV2 decides where runs go, before it is known whether that works: where WithCgroupParent
// says, otherwise in what was delegated to this process, otherwise in a scope that systemd makes,
// otherwise at the top. docs/CGROUPS.md has the whole table.
func (t *Tree) placeV2(h hierarchy, parent string) error {
	if parent != "" {
		t.parent, t.why = parent, whyNamed
		return nil
	}
	own, err := pathV2(h, os.Getpid())
	if err != nil {
		return err
	}
	if dir := delegated(h.mount, own); dir != "" {
		t.parent, t.why = path.Join(dir, top), whyDelegated
		return nil
	}
	if t.manager = findManager(); t.manager != nil {
		t.why = fmt.Sprintf("a scope made by %v", t.manager)
		return nil
	}
	if os.Geteuid() == 0 {
		t.parent, t.why = "/"+top, whyTop
		return nil
	}
	// This process is in own, so no controllers can be enabled there. But the directory above
	// may be ours and empty.
	above := path.Dir(own)
	const remedy = "run as root, or where the user has a systemd of its own (a login, or loginctl enable-linger), " +
		"or in a subgroup of a delegated cgroup (Delegate=yes, and DelegateSubgroup= or sandbox.DelegateSubgroup), " +
		"or name a cgroup without processes that this user owns with WithCgroupParent"
	if own == "/" || !owned(path.Join(h.mount, above)) {
		return unavailable("uid %d may not make cgroups beside its own, %s; %s", os.Geteuid(), own, remedy)
	}
	t.parent, t.why = path.Join(above, top), whyBeside
	return nil
}

// pathV2 returns the cgroup of a process, below the mount.
func pathV2(h hierarchy, pid int) (string, error) {
	p, err := cgroup2.PidGroupPath(pid)
	if err != nil {
		return "", unavailable("/proc/%d/cgroup: %v", pid, err)
	}
	return path.Join("/", strings.TrimPrefix(p, strings.TrimSuffix(h.root, "/"))), nil
}

// delegated returns the nearest directory above own that systemd has delegated to the user of the
// processes in it and that has no processes itself, or "" if there is none. It does not return the
// subtree of a user's own systemd: that must be asked for a scope.
func delegated(mount, own string) string {
	for dir := own; dir != "/"; {
		dir = path.Dir(dir)
		full := path.Join(mount, dir)
		if !isDelegated(full) {
			continue
		}
		if strings.HasPrefix(path.Base(dir), "user@") || !owned(full) || occupied(full) != "" {
			return ""
		}
		return dir
	}
	return ""
}

// isDelegated looks for the marks that systemd leaves ("Control Group APIs and Delegation").
// Ordinary users can read only the second one, which systemd sets since version 251.
func isDelegated(dir string) bool {
	return slices.ContainsFunc([]string{"trusted.delegate", "user.delegate"}, func(name string) bool {
		var value [8]byte
		n, err := unix.Getxattr(dir, name, value[:])
		return err == nil && string(value[:n]) == "1"
	})
}

// owned reports whether this user may make cgroups in dir and move its processes between them:
// cgroups(7), "Delegation".
func owned(dir string) bool {
	return !slices.ContainsFunc([]string{"", "/cgroup.procs", "/cgroup.subtree_control"}, func(file string) bool {
		return unix.Faccessat(unix.AT_FDCWD, dir+file, unix.W_OK, unix.AT_EACCESS) != nil
	})
}

// Subgroup moves every process of this process's own cgroup into a child of it, so that other
// children can get controllers. It does nothing on v1 and at the top of v2.
func Subgroup(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	all, err := mounts()
	if err != nil {
		return err
	}
	if version(all) != "v2" {
		return nil
	}
	h := all[slices.IndexFunc(all, func(h hierarchy) bool { return h.v2 })]
	own, err := pathV2(h, os.Getpid())
	if err != nil {
		return err
	}
	dir := path.Join(h.mount, own)
	if occupied(dir) == "" || path.Base(own) == name && occupied(path.Dir(dir)) == "" {
		return nil
	}
	if why := writable(dir); why != "" {
		return unavailable("%s", why)
	}
	return subgroup(dir, name)
}

// subgroup moves the processes of a cgroup into a child of it. They may fork meanwhile.
func subgroup(dir, name string) error {
	child := path.Join(dir, name)
	if err := mkdir(child); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for range killPasses {
		pids, err := members(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := writeFile(child+"/cgroup.procs", fmt.Sprint(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("%s: new processes appear in it as fast as they are moved", dir)
}
