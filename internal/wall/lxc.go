//go:build linux

package wall

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// lxcEnv hides newuidmap from LXC, which would use it where it is installed. It refuses root what
// /etc/subuid does not grant, and root needs nobody's leave.
var lxcEnv = []string{"PATH=/nonexistent"}

// lxc returns the arguments of lxc-start, and writes the container's configuration:
// lxc.container.conf(5).
func lxc(_ *commandLine, c *Container) ([]string, error) {
	var conf lxcConf
	conf.set("lxc.rootfs.path", "dir:"+c.Rootfs)
	conf.set("lxc.rootfs.options", "ro")
	conf.set("lxc.uts.name", hostname)
	conf.set("lxc.console.path", "none")
	conf.set("lxc.tty.max", "0")
	conf.set("lxc.pty.max", "0")
	conf.set("lxc.autodev", "1")
	conf.set("lxc.mount.auto", "proc:rw")
	// Runs are cloned into cgroups that are not below the container's.
	network, keep := "empty", "cgroup"
	if c.HostNetwork {
		network, keep = "none", "cgroup net"
	}
	conf.set("lxc.net.0.type", network)
	if _, err := os.Stat("/proc/self/ns/time"); err == nil {
		keep += " time" // nobody asks for one of the cell's own
	}
	conf.set("lxc.namespace.keep", keep)
	conf.set("lxc.init.cmd", strings.Join(c.Args, " "))
	for _, e := range c.Env {
		conf.set("lxc.environment", e)
	}
	for kind, list := range map[string][]Extent{"u": c.UIDs, "g": c.GIDs} {
		for _, e := range list {
			conf.set("lxc.idmap", fmt.Sprintf("%s %d %d %d", kind, e.Inside, e.Outside, e.Size))
		}
	}
	for _, b := range c.Binds {
		conf.set("lxc.mount.entry", lxcPath(b.Source)+" "+lxcPath(strings.TrimPrefix(b.Destination, "/"))+" none bind,ro,nosuid,nodev 0 0")
	}
	if _, err := os.Stat("/sys/module/apparmor"); err == nil {
		// Its own would refuse a run's mounts.
		conf.set("lxc.apparmor.profile", "unconfined")
	}
	lxcCgroup(&conf, c)
	if err := plain(conf.values...); err != nil {
		return nil, err
	}
	file := filepath.Join(c.Dir, "config")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		return nil, err
	}
	return []string{"--foreground", "--name", c.ID, "--lxcpath", c.Dir, "--rcfile", file}, nil
}

// lxcCgroup puts the container into its cgroup, and LXC's own process beside it.
func lxcCgroup(conf *lxcConf, c *Container) {
	if c.Cgroup == "" {
		return
	}
	at := strings.TrimPrefix(c.Cgroup, "/")
	conf.set("lxc.cgroup.dir.container", at)
	conf.set("lxc.cgroup.dir.monitor", at+"-lxc")
	conf.set("lxc.cgroup.dir.monitor.pivot", at+"-pivot")
	for _, version := range []string{"cgroup", "cgroup2"} {
		conf.set("lxc."+version+".devices.deny", "a")
		for _, list := range [][]device{deviceNodes, terminals} {
			for _, d := range list {
				minor := fmt.Sprint(d.minor)
				if d.minor == anyMinor {
					minor = "*"
				}
				conf.set("lxc."+version+".devices.allow", fmt.Sprintf("c %d:%s rwm", d.major, minor))
			}
		}
	}
}

// lxcConf is a configuration: a line for each value.
type lxcConf struct {
	strings.Builder
	values []string
}

func (f *lxcConf) set(key, value string) {
	f.values = append(f.values, value)
	fmt.Fprintf(f, "%s = %s\n", key, value)
}

// lxcPath quotes a path in a line of fstab(5).
func lxcPath(p string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`).Replace(p)
}

// lxcClean removes the lock that LXC leaves for each container.
func lxcClean(_, dir string) error { return lxcUnlock("/run/lxc/lock", dir) }

// lxcUnlock removes the directory with a container's lock and that of its cell. Those above stay:
// another LXC may be making its own in them, which it does one after the other (mkdir_p).
func lxcUnlock(locks, dir string) error {
	return os.RemoveAll(filepath.Join(locks, filepath.Dir(dir)))
}
