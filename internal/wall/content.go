//go:build linux

package wall

import (
	"slices"

	"golang.org/x/sys/unix"
)

// hostname is that of every container.
const hostname = "cell"

// capabilities returns the names of PID 1's capabilities, or nil if it has all of them. In its own
// user namespace it has all and outside none. Without a user namespace it has only a few, but these
// are valid on the host.
func (c *Container) capabilities() []string {
	if !c.HostIDs {
		return nil
	}
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_NET_RAW, 0, 0, 0); err != nil || has != 1 {
		return hostCapabilities
	}
	// For private networks: echo requests, many ports of UDP, and runs of several cells. In a
	// container this process may lack it, and the cell does without.
	return append(slices.Clip(hostCapabilities), "CAP_NET_RAW")
}

// hostCapabilities are the fork server's capabilities in a cell without a user namespace, where
// they are valid on the host: what it takes to set up a run.
var hostCapabilities = []string{
	// Namespaces, mounts, the loopback interface; to enter a mount namespace.
	"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT",
	// To become a run's user, and to end the run.
	"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL",
	// That user's files; overlayfs uses the capabilities of its mounter.
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP",
}

// device is a character device.
type device struct {
	path         string
	major, minor int64
}

const anyMinor = -1

// deviceNodes are all the devices in a cell, and so in a run. Everybody may read and write them.
// Their numbers are fixed: Documentation/admin-guide/devices.txt.
var deviceNodes = []device{
	{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7},
	{"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
}

// terminals are devices that may also be used: /dev/ptmx and those in a run's own /dev/pts.
var terminals = []device{{"", 5, 2}, {"", 136, anyMinor}}

// mount is a call of mount(2), where a path of the host is the source of a bind mount.
type mount struct {
	kind, source, destination string
	flags                     int
	data                      string
}

// mounts returns what is mounted on the root, in this order: of the host, no directory.
func (c *Container) mounts() []mount {
	list := []mount{
		// Nothing covers parts of it: the kernel lets a run mount its own /proc only if a
		// fully visible one exists (fs/namespace.c, mount_too_revealing).
		{"proc", "proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "tmpfs", "/dev", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=64k"},
		{"tmpfs", "cell", "/cell", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=1m"},
	}
	for _, b := range c.Binds {
		list = append(list, mount{"bind", b.Source, b.Destination, unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV, ""})
	}
	return list
}
