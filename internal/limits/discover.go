//go:build linux

package limits

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// top is the directory that Discover chooses at the top of each hierarchy, or in a subtree that was
// delegated to this user.
const top = "sandbox"

// Discover finds the hierarchies of this machine and the place where runs go: parent, a path below
// the cgroup mounts such as "/jobs", or, if parent is "", a directory of its own. It changes
// nothing. The error wraps ErrUnavailable if there is no such place.
func Discover(parent string) (*Tree, error) {
	if parent != "" && (!path.IsAbs(parent) || path.Clean(parent) != parent || strings.HasPrefix(parent, "/sys/fs/cgroup")) {
		return nil, WithCgroupParent.wrong("%q: must be an absolute, clean path below the cgroup mount, such as \"/jobs\"", parent)
	}
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	if version(all) == "" {
		return nil, unavailable("no cgroup hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")
	}
	for tries := 0; ; tries++ {
		t := &Tree{version: version(all), all: all, v1: map[string]string{}, missing: map[string]string{}}
		if t.version == "v2" {
			err = t.discoverV2(parent)
		} else {
			err = t.discoverV1(parent)
		}
		// Meanwhile another process may have removed a directory that was looked at,
		// because its last cell has ended, and made it again. Then the result can't be
		// trusted.
		if slices.ContainsFunc(t.seen, func(d directory) bool { return inode(d.path) != d.inode || d.inode == 0 }) && tries < maxTries {
			continue
		}
		if err != nil {
			return nil, err
		}
		return t, nil
	}
}

// maxTries is far more often than others can come and go at the wrong moment.
const maxTries = 100

// nearest returns the existing directory in which the parent, or the first missing directory on the
// way to it, is made.
func (t *Tree) nearest(mount string) string {
	dir := nearest(mount, t.parent)
	t.seen = append(t.seen, directory{dir, inode(dir)})
	return dir
}

// directory is one of cgroups. Its inode is not soon that of another: fs/kernfs/dir.c.
type directory struct {
	path  string
	inode uint64
}

// inode returns that of what is at the path, or 0 if there is nothing.
func inode(path string) uint64 {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return 0
	}
	return s.Ino
}

func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnavailable, fmt.Sprintf(format, args...))
}

// discoverV1 uses the controllers that are mounted and writable. Without write access to some, only
// the limits that need those are missing.
func (t *Tree) discoverV1(parent string) error {
	t.parent, t.why = parent, whyNamed
	if parent == "" {
		t.parent, t.why = "/"+top, whyTop
	}
	for _, h := range t.all {
		for _, c := range h.v1 {
			if why := writable(t.nearest(h.mount)); why != "" {
				t.missing[c] = why
			} else {
				t.v1[c] = h.mount
			}
		}
	}
	for _, c := range used {
		if why := t.missing[c]; why != "" && len(t.v1) == 0 {
			return unavailable("%s", why) // one reason is enough: they are all alike
		}
		if t.v1[c] == "" && t.missing[c] == "" {
			t.missing[c] = fmt.Sprintf("the %s controller is not mounted; mount it: mount -t cgroup -o %s none /sys/fs/cgroup/%s, "+
				"or boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2", c, c, c)
		}
	}
	return nil
}

// discoverV2 uses the controllers that can be enabled for the children of the place.
func (t *Tree) discoverV2(parent string) error {
	h := t.all[slices.IndexFunc(t.all, func(h hierarchy) bool { return h.v2 })]
	t.v2, t.all = h.mount, []hierarchy{h} // libcontainer does not care about a stray v1 mount either
	if err := t.placeV2(h, parent); err != nil {
		return err
	}
	if t.manager != nil {
		return nil // only NewCell can find out
	}
	return t.offers(t.nearest(t.v2))
}

// offers finds the controllers that the children of dir can have.
func (t *Tree) offers(dir string) error {
	if why := writable(dir); why != "" {
		return unavailable("%s", why)
	}
	offered := t.offered(dir)
	if why := occupied(dir); why != "" {
		// Controllers that were enabled earlier work all the same, and so does what needs
		// no controller.
		offered = readWords(dir + "/cgroup.subtree_control")
		for _, c := range usedV2 {
			t.missing[c] = why
		}
	}
	for _, c := range usedV2 {
		if slices.Contains(offered, c) {
			delete(t.missing, c)
		} else if t.missing[c] == "" {
			t.missing[c] = fmt.Sprintf("%s/cgroup.controllers does not offer the %s controller; enable it in cgroup.subtree_control "+
				"of every directory above (systemd: Delegate=yes), and check that no v1 mount nor cgroup_disable= on the kernel's command line holds it", dir, c)
		}
	}
	return nil
}

// offered returns the controllers that dir has or can be given by those above it, as enable does:
// another process may have made dir just now, and enable them next.
func (t *Tree) offered(dir string) []string {
	has := readWords(dir + "/cgroup.controllers")
	for dir != t.v2 && dir != "/" {
		dir = path.Dir(dir)
		if occupied(dir) != "" || unix.Faccessat(unix.AT_FDCWD, dir+"/cgroup.subtree_control", unix.W_OK, unix.AT_EACCESS) != nil {
			break
		}
		has = append(has, readWords(dir+"/cgroup.controllers")...)
	}
	return has
}

// occupied says why no controller can be enabled for the children of dir: by v2's rule a cgroup has
// either processes or children with controllers. Only the root is exempt; it is the one directory
// without a cgroup.type file.
func occupied(dir string) string {
	if !exists(dir + "/cgroup.type") {
		return ""
	}
	// A threaded cgroup answers EOPNOTSUPP, which writable reports.
	if data, err := readFile(dir+"/cgroup.procs", nil); err == nil && len(data) > 0 {
		return dir + " has processes of its own, so its children get no controllers; " +
			"move them into a child of it (sandbox.DelegateSubgroup), or name a cgroup without processes with WithCgroupParent"
	}
	return ""
}

// writable says why dir can't have new children.
func writable(dir string) string {
	err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK, unix.AT_EACCESS)
	switch {
	case err == nil:
		if t := readWords(dir + "/cgroup.type"); len(t) > 0 && t[0] == "threaded" {
			return dir + " is a threaded cgroup; name one of type \"domain\" with WithCgroupParent"
		}
		return ""
	case errors.Is(err, unix.EROFS):
		return dir + " is mounted read-only; give this container a writable cgroup mount " +
			"(docker run --privileged, or --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup; docs/CONTAINERS.md)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Sprintf("uid %d may not make cgroups in %s; run as root, or name a directory that this user owns with WithCgroupParent", os.Geteuid(), dir)
	}
	return fmt.Sprintf("%s: %v", dir, err)
}
