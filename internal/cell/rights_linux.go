package cell

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// asRoot tells whether a cell is made the way of root: this process may clone the mounts that it sees, which takes
// CAP_SYS_ADMIN over its mount namespace. Root in a container mostly has not got that, and root of a user namespace
// has it over its own mount namespace only; their cells are those of ordinary users. It is tried,
// as reading the capabilities would not tell over what they are, nor what a seccomp filter refuses.
func asRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.EPERM && err != unix.ENOSYS
}

// mayMapIDs tells whether this process may map ids that are not its own, its id 0 among them, into
// a new user namespace: user_namespaces(7).
func mayMapIDs() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	const needed = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETFCAP
	return data[0].Effective&needed == needed
}

// inRun tells whether this process is in a run: its PID 1 is a run's.
func inRun() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == "sandbox-init"
}
