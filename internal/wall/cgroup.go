//go:build linux

package wall

import (
	"fmt"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // without it no device rules are set
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
)

// cgroupOf describes the container's cgroup in libcontainer's words: where it is, and what devices
// can be used in it.
func cgroupOf(c *Container) *cgroups.Cgroup {
	if c.Cgroup == "" {
		// With a Path, libcontainer would insist on it.
		return &cgroups.Cgroup{Name: c.ID, Rootless: true, Resources: &cgroups.Resources{Devices: []*devices.Rule{}}}
	}
	conf := &cgroups.Cgroup{Path: c.Cgroup, Resources: &cgroups.Resources{}}
	for _, list := range [][]device{deviceNodes, terminals} {
		for _, d := range list {
			rule := deviceRule(d)
			conf.Resources.Devices = append(conf.Resources.Devices, &rule)
		}
	}
	return conf
}

func deviceRule(d device) devices.Rule {
	minor := d.minor
	if minor == anyMinor {
		minor = devices.Wildcard
	}
	return devices.Rule{Type: devices.CharDevice, Major: d.major, Minor: minor, Permissions: "rwm", Allow: true}
}

// joinCgroup makes the container's cgroup as libcontainer does, by the same module, and puts a
// process into it. It returns nil if the container has none from the Wall.
func joinCgroup(c *Container, pid int) (cgroups.Manager, error) {
	if c.Cgroup == "" {
		return nil, nil
	}
	conf := cgroupOf(c)
	m, err := manager.New(conf)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", c.Cgroup, err)
	}
	if err = m.Apply(pid); err == nil {
		err = m.Set(conf.Resources)
	}
	if err != nil {
		err = fmt.Errorf("cgroup %s: %w", c.Cgroup, err)
	}
	return m, err
}
