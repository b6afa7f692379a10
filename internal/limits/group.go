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

// Group is the cgroup of one run. Its methods are safe for concurrent use. It has no goroutine, and
// no open file except those of Keep.
type Group struct {
	path     string   // below the mounts
	dirs     []string // its directory in every hierarchy
	v2       string   // the only one of dirs on v2, else ""
	counters counters
	files    counterFiles
	freezer  freezer

	mu               sync.Mutex // held while the freezer's state changes
	freezing, killed bool
}

// counters reads what a run has used.
type counters interface {
	usage() (Usage, error)
	oomKills() (uint64, error)
	cpu() (time.Duration, error)
}

// Path returns the path of the group below the cgroup mounts.
func (g *Group) Path() string { return g.path }

// Add moves a process into the group. The process must be single-threaded and must not fork
// meanwhile, since it joins v1's hierarchies one after the other. If it has ended, errors.Is(err,
// unix.ESRCH).
func (g *Group) Add(pid int) error {
	value := strconv.Itoa(pid)
	for _, dir := range g.dirs {
		if err := writeFile(dir+"/cgroup.procs", value); err != nil {
			return err
		}
	}
	return nil
}

// Joins opens the files to which the first process of the run writes "0" to join the group by
// itself. There are none on v2, where a process can't join in that way.
//
// A process that moves another waits until no CPU is in the middle of a fork, which takes
// milliseconds where moves are rare. A process that moves itself does not wait:
// kernel/cgroup/cgroup.c, cgroup_procs_write_start.
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

// Usage reads what the run has used so far. After the run's end, and before Delete, that is all it
// has used. The kernel counts the peak of memory, on v2 since Linux 5.19; before that, MemoryPeak
// is the highest value that any call of Usage has seen. PIDsRefused counts what the run's own limit
// refused, and on v1, or before Linux 6.11, also what a limit above it refused:
// kernel/cgroup/pids.c, pids_event.
func (g *Group) Usage() (Usage, error) { return g.counters.usage() }

// Keep opens the files that Usage reads, eight at most, and keeps them open until Delete. Usage
// then takes a sixth of the time.
func (g *Group) Keep() {
	g.files.keep(func() { _, _ = g.Usage() }) // Usage tries again what can't be opened now
}

// OOMKills counts the processes of the run that the out-of-memory killer ended, because of the
// run's limit or because the machine had no memory left. The count is complete once the processes
// have been waited for. v2 ends all of the run at once and may then count the first one twice.
func (g *Group) OOMKills() (uint64, error) { return g.counters.oomKills() }

// CPU returns the user and system time so far. It reads one small file and is cheap enough to be
// polled.
func (g *Group) CPU() (time.Duration, error) { return g.counters.cpu() }

// Delete removes the group. It kills the processes that are still in it and waits for them, a few
// seconds at most.
func (g *Group) Delete() error {
	g.files.close()
	if err := removeDirs(func() []string { return g.dirs }, g.Kill); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.path, err)
	}
	return nil
}
