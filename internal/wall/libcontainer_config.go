//go:build linux

package wall

import (
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets libcontainer set device rules
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// containerConfig describes the container in libcontainer's words.
func containerConfig(c *Container) *configs.Config {
	caps := c.capabilities()
	if caps == nil {
		caps = capabilities.KnownCapabilities()
	}
	namespaces := configs.Namespaces{
		{Type: configs.NEWPID}, {Type: configs.NEWNS}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS},
	}
	if !c.HostIDs {
		namespaces = append(namespaces, configs.Namespace{Type: configs.NEWUSER})
	}
	if !c.HostNetwork {
		namespaces = append(namespaces, configs.Namespace{Type: configs.NEWNET})
	}
	conf := &configs.Config{
		Rootfs:     c.Rootfs,
		Readonlyfs: true,
		// Programs rely on private mounts, and pivot_root(2) demands them.
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		Namespaces:      namespaces,
		Hostname:        hostname,
		Capabilities: &configs.Capabilities{
			Bounding: caps, Effective: caps, Permitted: caps,
		},
		Cgroups:      &cgroups.Cgroup{Resources: &cgroups.Resources{}},
		NoNewKeyring: false,
		// Until the fork server is up, nothing else ends the boot when the host is killed.
		ParentDeathSignal: int(unix.SIGKILL),
		UIDMappings:       mapping(c.UIDs),
		GIDMappings:       mapping(c.GIDs),
		// Set even for root. Otherwise libcontainer opens the sources of bind mounts on a
		// thread of this process that it moves into the cell's mount namespace, and then
		// has the runtime end that thread. The first thread can't be ended (runtime.mexit):
		// if it was the one, /proc/self shows the cell from then on.
		RootlessEUID: !c.HostIDs,
	}
	for _, m := range c.mounts() {
		conf.Mounts = append(conf.Mounts, &configs.Mount{Device: m.kind, Source: m.source, Destination: m.destination, Flags: m.flags, Data: m.data})
	}
	for _, d := range deviceNodes {
		conf.Devices = append(conf.Devices, &devices.Device{Path: d.path, FileMode: 0o666, Rule: deviceRule(d)})
	}
	describeCgroup(conf, c)
	return conf
}

// describeCgroup says where PID 1's cgroup is, and what devices can be used in it.
func describeCgroup(conf *configs.Config, c *Container) {
	if c.Cgroup == "" {
		conf.RootlessCgroups = true
		conf.Cgroups.Rootless = true
		conf.Cgroups.Name = c.ID // with a Path, libcontainer would insist on it
		conf.Cgroups.Resources.Devices = []*devices.Rule{}
		return
	}
	conf.Cgroups.Path = c.Cgroup
	for _, list := range [][]device{deviceNodes, terminals} {
		for _, d := range list {
			rule := deviceRule(d)
			conf.Cgroups.Resources.Devices = append(conf.Cgroups.Resources.Devices, &rule)
		}
	}
}

func deviceRule(d device) devices.Rule {
	minor := d.minor
	if minor == anyMinor {
		minor = devices.Wildcard
	}
	return devices.Rule{Type: devices.CharDevice, Major: d.major, Minor: minor, Permissions: "rwm", Allow: true}
}

func mapping(extents []Extent) (list []configs.IDMap) {
	for _, e := range extents {
		list = append(list, configs.IDMap{ContainerID: e.Inside, HostID: e.Outside, Size: e.Size})
	}
	return list
}
