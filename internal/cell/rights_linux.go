package cell

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// asRoot reports whether this process may clone the mounts that it sees, which takes CAP_SYS_ADMIN
// over its mount namespace. If not, the cell is made as for an ordinary user. Root in a container
// mostly lacks the capability, and root of a user namespace has it over its own mount namespace
// only. The function tries a clone, because the list of capabilities does not show which namespace
// they are valid for, or what a seccomp filter refuses.
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

// mayMapIDs reports whether this process may map ids that are not its own, including its id 0, into
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

// inRun reports whether this process is in a run: its PID 1 is a run's init.
func inRun() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == "sandbox-init"
}
