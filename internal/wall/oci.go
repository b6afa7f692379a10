//go:build linux

package wall

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// oci returns the arguments of a runtime that has runc's command line, and writes the container's
// bundle.
func oci(_ *commandLine, c *Container) ([]string, error) {
	b, err := json.Marshal(ociSpec(c))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "config.json"), b, 0o600); err != nil {
		return nil, err
	}
	// Its own notes are in the bundle, and go with it.
	return []string{"--root", filepath.Join(c.Dir, "state"), "run", "--preserve-fds", fmt.Sprint(len(c.Files)), "--bundle", c.Dir, c.ID}, nil
}

// ociSpec describes the container in the words of the OCI runtime specification.
func ociSpec(c *Container) *specs.Spec {
	caps := c.capabilities()
	if caps == nil {
		// Not all that this kernel has: a runtime may refuse names that are newer than it
		// is. Private networks need raw sockets. A run's PID 1, which a further command
		// enters by, is not dumpable (ptrace(2)).
		caps = append(slices.Clip(hostCapabilities), "CAP_NET_RAW", "CAP_SYS_PTRACE")
	}
	s := &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: c.Args, Env: c.Env, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root:     &specs.Root{Path: c.Rootfs, Readonly: true},
		Hostname: hostname,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			Namespaces:        []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
			UIDMappings:       ociMapping(c.UIDs),
			GIDMappings:       ociMapping(c.GIDs),
			RootfsPropagation: "private",
		},
	}
	for _, b := range c.Binds {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: b.Destination, Type: "none", Source: b.Source, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	if !c.HostIDs {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	if !c.HostNetwork {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	everybody, zero := os.FileMode(0o666), uint32(0)
	for _, d := range deviceNodes {
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: d.path, Type: "c", Major: d.major, Minor: d.minor, FileMode: &everybody, UID: &zero, GID: &zero})
	}
	if c.Cgroup != "" {
		s.Linux.CgroupsPath = c.Cgroup
		s.Linux.Resources = &specs.LinuxResources{Devices: ociRules()}
	}
	return s
}

func ociRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, list := range [][]device{deviceNodes, terminals} {
		for _, d := range list {
			rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d.major, Access: "rwm"}
			if d.minor != anyMinor {
				rule.Minor = &d.minor
			}
			rules = append(rules, rule)
		}
	}
	return rules
}

func ociMapping(extents []Extent) (list []specs.LinuxIDMapping) {
	for _, e := range extents {
		list = append(list, specs.LinuxIDMapping{ContainerID: uint32(e.Inside), HostID: uint32(e.Outside), Size: uint32(e.Size)})
	}
	return list
}

// crunHybrid keeps hybrid cgroups out of crun's sight, which refuses to start beside them even if
// it is to leave cgroups alone: in a mount namespace of its own, an empty file system covers them.
func crunHybrid(args []string) []string {
	const hide = `mount -t tmpfs none /sys/fs/cgroup && exec "$@"`
	return append([]string{"unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", hide, "sh", args[0], "--cgroup-manager=disabled"}, args[1:]...)
}

// hybridCgroups reports whether v1 hierarchies are mounted beside a v2 one, where systemd puts
// both: systemd's src/basic/cgroup-util.c, cg_unified_cached.
func hybridCgroups() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup/unified", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}
