//go:build linux && cgo

package wall

import (
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
		Cgroups:         cgroupOf(c),
		RootlessCgroups: c.Cgroup == "",
		NoNewKeyring:    false,
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
	return conf
}

func mapping(extents []Extent) (list []configs.IDMap) {
	for _, e := range extents {
		list = append(list, configs.IDMap{ContainerID: e.Inside, HostID: e.Outside, Size: e.Size})
	}
	return list
}
