//go:build linux

// Package wall makes the container that a cell is. Wall is what a cell needs of a container
// runtime: libcontainer, which no other package uses, the built-in one, which takes no cgo, or the
// command line of one that is installed (Command, with a file for each kind of command line).
// docs/WALLS.md compares them.
package wall

import "os"

// Wall makes containers with a container runtime.
type Wall interface {
	// Name returns the name by which users know it.
	Name() string

	// Start makes a container and starts its PID 1. After an error nothing of it is left. The
	// kernel kills PID 1 when the thread that calls Start ends, so the caller must be locked to
	// that thread until PID 1 has cleared its parent death signal.
	Start(c *Container) (Process, error)

	// Explain returns what the texts of an error say about why a cell could not be booted, and
	// whether the kernel refused something. It is meant for errors of Start, and for later ones
	// that contain what was written to Container.Stderr.
	Explain(err error) (why Why, denied bool)
}

// Process is PID 1 of a container, or the process that stands for it outside: a child of this
// process. Signal may be called while Wait waits.
type Process interface {
	Wait() (*os.ProcessState, error)
	Signal(sig os.Signal) error

	// Destroy removes what is left of the container. It must be called after Wait has returned.
	Destroy() error
}

// Container describes a container. It says what differs between cells; what all of them have, every
// Wall takes from content.go.
//
// All of them have pid, mount, IPC and UTS namespaces and a session keyring of their own. They stay
// in the host's cgroup namespace, where the fork server can clone runs into cgroups outside the
// container's own. Their root is read-only, their mounts are private, and PID 1 begins in "/".
type Container struct {
	ID     string // no other container on this machine has it
	Dir    string // for files of the Wall, which makes it; the caller removes it after Destroy
	Rootfs string // the container's root, empty; the Wall may make mount points in it
	Binds  []Bind // the loader and libraries of PID 1

	Args   []string   // PID 1's; Args[0] is its file in the container or /proc/self/fd/N
	Env    []string   // PID 1 has no other variables
	Files  []*os.File // PID 1's descriptors from 3 on; the caller closes them after Start
	Stderr *os.File   // PID 1's standard error and output; runtimes may complain there too

	HostNetwork bool     // no network namespace
	HostIDs     bool     // no user namespace: root only
	UIDs, GIDs  []Extent // the maps of the user namespace, if there is one

	// Cgroup is the path of the container's cgroup below the cgroup mounts. The Wall makes it,
	// lets it use no devices except for deviceNodes and terminals, puts PID 1 into it and
	// removes it. If it is empty the container has no cgroup from the Wall.
	Cgroup string

	// MakeCgroup, if it is not nil, makes Cgroup, without rules for devices, for a Wall whose
	// runtime stays in the cgroup where it is started. It returns Cgroup's directories.
	MakeCgroup func() ([]string, error)

	// Adopt, if it is not nil, is called when PID 1 exists and before it executes Args, to put
	// it into a cgroup. If it fails, Start does.
	Adopt func(pid int) error
}

// Bind is a file of the host that a container sees, read-only.
type Bind struct{ Source, Destination string }

// Extent is a line of a uid_map or gid_map.
type Extent struct{ Inside, Outside, Size int64 }

// Why is a cause of a failed boot for which there is a remedy.
type Why int

const (
	Other               Why = iota
	ChildTaken              // other code in this process waited for one of the boot's children
	ProgramUnreadable       // this program's own file
	IDsUnmapped             // the kernel refused the map of ids
	CapabilitiesLacking     // the cell's root can't have the ones it needs
	ProcUnmounted           // the cell's /proc can't be mounted
)
