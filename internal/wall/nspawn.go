//go:build linux

package wall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nspawnEnv keeps systemd-nspawn from what a cell does without: a cgroup namespace, a lock of the
// root that it would leave if it is killed, and mounts of v1 hierarchies, of which it demands those
// that the kernel has and this machine may not use (systemd's docs/ENVIRONMENT.md). LISTEN_FDS says
// how many descriptors it passes on. Others must not see that: runc takes it besides its
// --preserve-fds, and passed as many more, of its own.
var nspawnEnv = []string{"LISTEN_FDS=3", "SYSTEMD_NSPAWN_USE_CGNS=0", "SYSTEMD_NSPAWN_LOCK=0", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"}

// nspawn returns the arguments of systemd-nspawn. It needs no systemd that runs.
func nspawn(_ *commandLine, c *Container) ([]string, error) {
	if len(c.UIDs) != 1 || !slices.Equal(c.UIDs, c.GIDs) {
		return nil, errors.New("systemd-nspawn maps one range, the same of user and group ids")
	}
	args := []string{
		"--quiet", "--pipe", "--register=no", "--keep-unit", "--link-journal=no", "--settings=no",
		"--resolv-conf=off", "--timezone=off",
		"--system-call-filter=@keyring", // besides: each run has a keyring of its own
		"--machine=" + c.ID, "--hostname=" + hostname, "--directory=" + c.Rootfs, "--read-only",
		fmt.Sprintf("--private-users=%d:%d", c.UIDs[0].Outside, c.UIDs[0].Size), "--private-users-ownership=off",
	}
	// Without a cgroup namespace a mount of cgroup2 undoes the options of the host's own
	// (nsdelegate). systemd-nspawn makes none where one is: Finish lets go of that.
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			args = append(args, "--bind-ro="+dir+":/sys/fs/cgroup:norbind")
		}
	}
	if !c.HostNetwork {
		args = append(args, "--private-network")
	}
	for _, b := range c.Binds {
		args = append(args, "--bind-ro="+nspawnPath(b.Source)+":"+nspawnPath(b.Destination)+":norbind")
	}
	for _, e := range c.Env {
		args = append(args, "--setenv="+e)
	}
	return append(append(args, "--"), c.Args...), nil
}

// nspawnPath quotes a path of --bind: systemd-nspawn(1).
func nspawnPath(p string) string { return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(p) }

// nspawnClean removes the directory by which systemd-nspawn would take mounts for the container.
func nspawnClean(id, _ string) error {
	return os.RemoveAll(filepath.Join("/run/systemd/nspawn/propagate", id))
}
