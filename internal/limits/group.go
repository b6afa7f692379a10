//go:build linux

package limits

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the cgroup of one run. Its methods are safe for concurrent use. It holds no goroutine, and no file
// descriptor but those of Keep.
type Group struct {
	path     string   // below the mounts
	dirs     []string // its directory in every hierarchy
	v2       string   // the only one of dirs on v2, else ""
	counters counters
	files    counterFiles
	freezer  freezer

	mu               sync.Mutex // held while the freezer's state is changed
	freezing, killed bool
}

// counters reads what a run has used.
type counters interface {
	usage() (Usage, error)
	oomKills() (uint64, error)
	cpu() (time.Duration, error)
}

// Path is the path of the group below the cgroup mounts.
func (g *Group) Path() string { return g.path }

// Add moves a process into the group. It must be single-threaded and not fork meanwhile: v1's
// hierarchies are joined one after the other. errors.Is(err, unix.ESRCH): it is gone.
func (g *Group) Add(pid int) error {
	value := strconv.Itoa(pid)
	for _, dir := range g.dirs {
		if err := writeFile(dir+"/cgroup.procs", value); err != nil {
			return err
		}
	}
	return nil
}

// Joins opens what the first process of the run writes "0" to, to join the group by itself. There are none on v2, which
// has no such way.
//
// A process that moves another waits until no CPU is in the middle of a fork, which where it is rare takes milliseconds; one that moves
// itself does not: kernel/cgroup/cgroup.c, cgroup_procs_write_start.
func (g *Group) Joins() ([]*os.File, error) {
	if g.v2 != "" {
		return nil, nil
	}
	var files []*os.File
	for _, dir := range g.dirs {
		fd, err := open(dir+"/tasks", unix.O_WRONLY)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(fd), dir+"/tasks"))
	}
	return files, nil
}

// Usage reads what the run has used so far; after its end, and before Delete, that is all it has
// used. The peak of memory is the kernel's own; v2 has it since Linux 5.19, and before that
// MemoryPeak is the highest of what Usage found in use whenever it was called. PIDsRefused counts
// what the run's own limit refused, and on v1, or before Linux 6.11, also what a limit above it
// did: kernel/cgroup/pids.c, pids_event.
func (g *Group) Usage() (Usage, error) { return g.counters.usage() }

// Keep opens the files that Usage reads, eight at most, and keeps them open until Delete: it then
// takes a sixth of the time.
func (g *Group) Keep() {
	g.files.keep(func() { _, _ = g.Usage() }) // what can't be opened now, Usage tries again
}

// OOMKills counts the processes of the run that the out-of-memory killer ended, be it for the
// run's limit or because the machine had no memory left. It is complete once they are waited
// for. v2 ends all of the run at once, and may count the first one twice on that occasion.
func (g *Group) OOMKills() (uint64, error) { return g.counters.oomKills() }

// CPU is the user and system time so far: one small file, cheap enough to be polled.
func (g *Group) CPU() (time.Duration, error) { return g.counters.cpu() }

// Delete removes the group. What is still in it is killed and waited for, a few seconds at most.
func (g *Group) Delete() error {
	g.files.close()
	if err := removeDirs(g.dirs, g.Kill); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.path, err)
	}
	return nil
}
