package cell

import (
	"cmp"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets libcontainer set device rules
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// containerConfig describes the outer wall. The cell gets every namespace, no host directory except
// for the files that this program's binary needs, all capabilities in its own user namespace and
// none outside. Without a user namespace it gets only a few capabilities, but these are valid on
// the host.
func containerConfig(s *state, i *ids, b *binary, hostNetwork bool, cgroupPath string) *configs.Config {
	caps := capabilities.KnownCapabilities()
	namespaces := configs.Namespaces{
		{Type: configs.NEWPID}, {Type: configs.NEWNS}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS},
	}
	uidMap, gidMap := mapping(i.extents(i.uid, int64(os.Geteuid()))), mapping(i.extents(i.gid, int64(os.Getegid())))
	if i.host {
		caps, uidMap, gidMap = hostCapabilities, nil, nil
	} else {
		namespaces = append(namespaces, configs.Namespace{Type: configs.NEWUSER})
	}
	if !hostNetwork {
		namespaces = append(namespaces, configs.Namespace{Type: configs.NEWNET})
	}
	c := &configs.Config{
		Rootfs:     filepath.Join(s.dir, "rootfs"),
		Readonlyfs: true,
		// Programs rely on private mounts, and pivot_root(2) demands them.
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		Namespaces:      namespaces,
		Hostname:        "cell",
		Mounts:          mounts(b),
		Devices:         deviceNodes(),
		Capabilities: &configs.Capabilities{
			Bounding: caps, Effective: caps, Permitted: caps,
		},
		Cgroups:      &cgroups.Cgroup{Resources: &cgroups.Resources{}},
		NoNewKeyring: false,
		// Until the fork server is up, nothing else ends the boot when the host is killed.
		ParentDeathSignal: int(unix.SIGKILL),
		UIDMappings:       uidMap,
		GIDMappings:       gidMap,
		// Set even for root. Otherwise libcontainer opens the sources of bind mounts on a
		// thread of this process that it moves into the cell's mount namespace, and then
		// has the runtime end that thread. The first thread can't be ended (runtime.mexit):
		// if it was the one, /proc/self shows the cell from then on.
		RootlessEUID: !i.host,
	}
	if cgroupPath != "" {
		c.Cgroups.Path = filepath.Join(cgroupPath, "cell")
		for _, d := range append(deviceNodes(), terminals...) {
			c.Cgroups.Resources.Devices = append(c.Cgroups.Resources.Devices, &d.Rule)
		}
	} else {
		c.RootlessCgroups = true
		c.Cgroups.Rootless = true
		c.Cgroups.Name = s.id // with a Path, libcontainer would insist on it
		c.Cgroups.Resources.Devices = []*devices.Rule{}
	}
	return c
}

// hostCapabilities are the fork server's capabilities in a cell without a user namespace, where
// they are valid on the host: what it takes to set up a run.
var hostCapabilities = []string{
	"CAP_SYS_ADMIN", "CAP_NET_ADMIN", // namespaces, mounts, the loopback interface
	"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL", // to become a run's user, and to end the run
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP", // that user's files; overlayfs uses its mounter's
}

// deviceNodes returns all the devices in a cell, and so in a run. Their numbers are fixed:
// Documentation/admin-guide/devices.txt.
func deviceNodes() (list []*devices.Device) {
	for _, d := range []struct {
		path         string
		major, minor int64
	}{
		{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7},
		{"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
	} {
		list = append(list, &devices.Device{Path: d.path, FileMode: 0o666, Rule: deviceRule(d.major, d.minor)})
	}
	return list
}

// terminals are devices that may also be used: /dev/ptmx and those in a run's own /dev/pts.
var terminals = []*devices.Device{{Rule: deviceRule(5, 2)}, {Rule: deviceRule(136, devices.Wildcard)}}

func deviceRule(major, minor int64) devices.Rule {
	return devices.Rule{Type: devices.CharDevice, Major: major, Minor: minor, Permissions: "rwm", Allow: true}
}

func mapping(extents []extent) (list []configs.IDMap) {
	for _, e := range extents {
		list = append(list, configs.IDMap{ContainerID: e.inside, HostID: e.outside, Size: e.size})
	}
	return list
}

func mounts(b *binary) []*configs.Mount {
	list := []*configs.Mount{
		// Nothing covers parts of it: the kernel lets a run mount its own /proc only if a
		// fully visible one exists (fs/namespace.c, mount_too_revealing).
		{Device: "proc", Source: "proc", Destination: "/proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{Device: "tmpfs", Source: "tmpfs", Destination: "/dev", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=64k"},
		{Device: "tmpfs", Source: "cell", Destination: "/cell", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=755,size=1m"},
	}
	bind := func(src, dst string) {
		list = append(list, &configs.Mount{Device: "bind", Source: src, Destination: dst,
			Flags: unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV})
	}
	if b.loader != "" {
		if real, err := filepath.EvalSymlinks(b.loader); err == nil {
			bind(cmp.Or(b.copies[real], real), b.loader)
		}
	}
	for _, l := range b.libs {
		if at := filepath.Join(filepath.Dir(l), neededAs(l)); at != b.loader {
			bind(cmp.Or(b.copies[l], l), at)
		}
	}
	return list
}
