//go:build linux

package limits

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Cell is the directory of one cell: the parent of libcontainer's own cgroup and of the runs'
// cgroups.
type Cell struct {
	tree *Tree
	path string
	unit string // the scope, if systemd made it

	mu      sync.Mutex
	enabled map[string]error // v2: by directory and controller, why it can't be enabled there, or nil
	pools   map[string]bool  // the pools that exist
	swap    bool             // swap can be limited: memory.memsw.limit_in_bytes, memory.swap.max
	sockets bool             // v1: socket buffers can be limited: memory.kmem.tcp.limit_in_bytes
	release func()           // ends the scope's first process
	home    map[string]bool  // v1: controllers for which the cell's first process is in the cell's cgroup
}

// A Keeper starts a process that only waits for its release.
type Keeper func() (pid int, release func(), err error)

// NewCell makes the directory of a cell. If the id is in use, errors.Is(err, fs.ErrExist): the
// caller must make it unique, and must Remove what a dead process left. The keeper is for systemd,
// which makes no scope without a process; Settle releases it.
func (t *Tree) NewCell(id string, keeper Keeper) (*Cell, error) {
	if err := checkName(id); err != nil {
		return nil, fmt.Errorf("cell id %w", err)
	}
	c := &Cell{tree: t, path: path.Join(t.parent, id), enabled: map[string]error{}, pools: map[string]bool{}, release: func() {}}
	if t.manager != nil {
		if err := c.makeScope("sandbox-"+id+".scope", keeper); err != nil {
			return nil, unavailable("%v did not make a scope: %v; name a cgroup with WithCgroupParent", t.manager, err)
		}
		return c, nil
	}
	made, err := c.makeDirs()
	if err != nil {
		// Not Delete: a directory that existed before is not ours.
		for _, dir := range made {
			_ = unix.Rmdir(dir)
		}
		_ = c.tidy()
		return nil, err
	}
	c.setUp()
	return c, nil
}

// keeping is the child of a scope that the keeper is moved into: a cgroup with processes of its own
// can't give its children controllers.
const keeping = "keeper"

// makeScope asks systemd to make the directory of the cell.
func (c *Cell) makeScope(unit string, keeper Keeper) error {
	t := c.tree
	pid, release, err := keeper()
	if err != nil {
		return err
	}
	c.unit, c.release = unit, release
	if c.path, err = t.manager.startScope(unit, pid); err == nil {
		t.parent = path.Dir(c.path)
		err = subgroup(path.Join(t.v2, c.path), keeping) // with the processes it has forked
	}
	if err == nil {
		err = t.offers(path.Join(t.v2, c.path))
	}
	if err != nil {
		release() // the scope goes with its last process
		return err
	}
	c.setUp()
	return nil
}

// Adopt moves the process that becomes PID 1 of the cell into the cell's own cgroup, if
// libcontainer does not. It removes the cgroup, named after the cell's id, that libcontainer has
// made for the process beside this process's cgroup. On v1 the process stays where it is.
func (c *Cell) Adopt(pid int) error {
	if c.tree.v2 == "" {
		return nil
	}
	was, err := pathV2(c.tree.all[0], pid)
	if err != nil {
		return err
	}
	if err := c.adopt(pid); err != nil {
		return err
	}
	if strings.Contains(path.Base(c.path), path.Base(was)) {
		_ = unix.Rmdir(path.Join(c.tree.v2, was)) // if this fails, libcontainer removes it at the end
	}
	return nil
}

func (c *Cell) adopt(pid int) error {
	dir := path.Join(c.tree.v2, c.path, "cell")
	if err := mkdir(dir); err != nil {
		return err
	}
	err := writeFile(dir+"/cgroup.procs", strconv.Itoa(pid))
	if err != nil && c.unit != "" && !errors.Is(err, unix.ESRCH) {
		return c.tree.manager.attach(c.unit, "cell", pid)
	}
	return err
}

// MakeOwn makes the cell's own cgroup, as libcontainer would, and returns its directory in each
// hierarchy. There are no rules for devices in it.
func (c *Cell) MakeOwn() (dirs []string, err error) {
	t := c.tree
	for _, h := range t.all {
		dir := path.Join(h.mount, c.path, "cell")
		if err := mkdir(dir); err == nil {
			dirs = append(dirs, dir)
		} else if h.mount == t.v2 || len(t.dirs("/", h.v1...)) > 0 { // as in makeDirs
			return nil, fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	if t.v2 == "" {
		c.fillCPUSet(path.Join(c.path, "cell"))
	}
	return dirs, nil
}

// Settle releases the keeper: the cell has a process of its own now. Its first run is next.
func (c *Cell) Settle() {
	c.release()
	c.findHome()
	if c.unit != "" {
		_ = unix.Rmdir(path.Join(c.tree.v2, c.path, keeping)) // if this fails, Delete removes it
	}
	if c.tree.v2 != "" {
		c.hasten() // for the first run's command, which on v1 moves itself
	}
}

// makeDirs makes the directory of the cell in every hierarchy and returns the directories it made.
func (c *Cell) makeDirs() (made []string, err error) {
	t := c.tree
	for _, h := range t.all {
		err := t.makeDir(h.mount, c.path)
		if err == nil {
			made = append(made, path.Join(h.mount, c.path))
			continue
		}
		// libcontainer also makes the directory in the hierarchies without controllers that
		// we use. If it is made here, all of them have one owner. If this fails there,
		// libcontainer deals with it.
		if h.mount == t.v2 || len(t.dirs("/", h.v1...)) > 0 {
			return made, fmt.Errorf("cgroup %s: %w", c.path, err)
		}
	}
	return made, nil
}

func (c *Cell) setUp() {
	t := c.tree
	if t.v2 != "" {
		c.enableAll(c.path)
		c.swap = exists(path.Join(t.v2, c.path, "memory.swap.max"))
		c.hasten()
		return
	}
	c.hasten()
	c.fillCPUSet(c.path)
	if cpuset := t.v1["cpuset"]; cpuset != "" {
		// LXC does not fill those that it makes. If this fails, it reports that.
		_ = writeFile(path.Join(cpuset, c.path, "cgroup.clone_children"), "1")
	}
	memory := t.v1["memory"]
	c.swap = memory != "" && exists(memory+"/memory.memsw.limit_in_bytes")
	c.sockets = memory != "" && exists(memory+"/memory.kmem.tcp.limit_in_bytes")
}

// hasten has the kernel begin what would else be waited for when a process is moved into one of the
// cell's cgroups: since Linux 6.0, unless cgroups are mounted with favordynmods, a grace period of
// RCU, milliseconds, if nobody has moved a process shortly before (kernel/rcu/sync.c,
// rcu_sync_enter). Meanwhile no cgroup can be made, so what is made comes first.
func (c *Cell) hasten() {
	if i := slices.IndexFunc(c.tree.all, func(h hierarchy) bool { return h.v2 }); i >= 0 {
		go func() { _ = requestMove(path.Join(c.tree.all[i].mount, c.path)) }()
		runtime.Gosched() // at once: the other threads may be busy for milliseconds
	}
}

// requestMove asks for this thread to be moved into a cgroup of v2, which this process is not in.
// The kernel takes the lock that every move takes, and then refuses: no thread leaves the domain of
// its process (kernel/cgroup/cgroup.c, cgroup_attach_permissions).
func requestMove(dir string) error {
	runtime.LockOSThread() // else it may end, and its number be another's
	defer runtime.UnlockOSThread()
	return writeFile(dir+"/cgroup.threads", strconv.Itoa(unix.Gettid()))
}

// fillCPUSet fills the cpuset of a directory and of those above it, on v1: a cgroup with an empty
// cpuset takes no process and gives its children no CPUs. If it fails, Create reports that to runs
// that need the cpuset.
func (c *Cell) fillCPUSet(p string) {
	if root, ok := containerdRoot(c.tree.v1["cpuset"], "cpuset"); ok {
		_, _ = cgroup1.New(cgroup1.StaticPath(p), &specs.LinuxResources{}, cgroup1.WithHierarchy(
			func() ([]cgroup1.Subsystem, error) { return []cgroup1.Subsystem{cgroup1.NewCpuset(root)}, nil }))
	}
}

// Uncounted names the fields of Usage that have no counter here, because the controller is missing
// or the kernel too old.
func (c *Cell) Uncounted() (names []string) {
	t := c.tree
	for _, f := range []struct{ field, controller, v1, v2 string }{
		{"UserCPU", "cpuacct", "cpuacct.usage", "cpu.stat"},
		{"SystemCPU", "cpuacct", "cpuacct.usage", "cpu.stat"},
		{"MemoryPeak", "memory", "memory.max_usage_in_bytes", "memory.peak"},
		{"ReadBytes", "blkio", "blkio.throttle.io_service_bytes", "io.stat"},
		{"WriteBytes", "blkio", "blkio.throttle.io_service_bytes", "io.stat"},
		{"PIDsPeak", "pids", "pids.peak", "pids.peak"},
		{"PIDsRefused", "pids", "pids.events", "pids.events"},
		{"OOMKills", "memory", "memory.oom_control", "memory.events"},
	} {
		mount, file := t.v2, f.v2
		if t.v2 == "" {
			mount, file = t.v1[f.controller], f.v1
		}
		if mount == "" || !exists(path.Join(mount, c.path, file)) {
			names = append(names, f.field)
		}
	}
	return names
}

// makeDir makes one directory below mount, and those above it that are missing. Those can vanish at
// any time: another process removes them when its own last cell ends.
func (t *Tree) makeDir(mount, p string) error {
	var err error
	for range 100 {
		if err = mkdir(path.Join(mount, p)); !gone(err) || p == "/" {
			return err
		}
		above := path.Dir(p)
		switch err := t.makeDir(mount, above); {
		case err == nil:
			t.mu.Lock()
			t.made = append(t.made, path.Join(mount, above))
			t.mu.Unlock()
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	return err
}

// enableAll enables the v2 controllers that runs in the directory may need, except cpuset, which
// few need: Create enables that for the first that does. It records failures for the runs that need
// the controller.
func (c *Cell) enableAll(p string) {
	for _, controller := range usedV2 {
		if controller != "cpuset" {
			_ = c.enable(p, controller)
		}
	}
}

// enable enables a v2 controller for the children of a directory, in each directory from the top
// down. Each controller is enabled by itself, because one that can't be (cpu while a real-time
// process is in a child cgroup) would make the others fail, too.
func (c *Cell) enable(p, controller string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := p + " " + controller
	if err, done := c.enabled[key]; done {
		return err
	}
	if why := c.tree.missing[controller]; why != "" {
		c.enabled[key] = errors.New(why)
		return c.enabled[key]
	}
	child, err := cgroup2.Load(path.Join(p, "any"), cgroup2.WithMountpoint(c.tree.v2))
	if err == nil {
		err = child.ToggleControllers([]string{controller}, cgroup2.Enable)
	}
	c.enabled[key] = err
	return err
}

// Path returns the path of the cell below the cgroup mounts, such as "/sandbox/<id>". libcontainer
// uses it as the parent of its own cgroup, "cell".
func (c *Cell) Path() string { return c.path }

// Create makes <path>/<name> for one run and sets its limits. It fails if the directory exists: its
// members and its counters would be another run's.
func (c *Cell) Create(name string, s Spec) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("cgroup name %w", err)
	}
	if name == "cell" {
		return nil, errors.New("cgroup name \"cell\" is the cell's own")
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	for _, n := range s.needs() {
		if err := c.tree.lacks(n.option, n.controller); err != nil {
			return nil, err
		}
	}
	if s.Memory > 0 && s.Swap > 0 && !c.swap {
		return nil, WithSwap.wrong("the kernel does not account swap; boot with swapaccount=1, or leave WithSwap out")
	}
	if c.tree.v2 != "" {
		return c.createV2(name, s)
	}
	return c.createV1(name, s)
}

// Joins returns how many files Group.Joins will open for such a group.
func (c *Cell) Joins(s Spec) int {
	if c.tree.v2 != "" {
		return 0
	}
	return len(c.tree.dirs(c.path, c.controllersV1(s)...))
}

// Delete kills every process below the cell and removes it. It takes a few seconds at most; the
// error names what is left then.
func (c *Cell) Delete() error {
	c.release()
	return errors.Join(removeTree(mountPoints(c.tree.all), c.path), c.tidy())
}

// tidy removes the directories above the cell that this library made and that nobody uses any more.
func (c *Cell) tidy() error {
	t := c.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	var busy []string
	for _, dir := range slices.Backward(t.made) { // the deepest was made last
		if unix.Rmdir(dir) == unix.EBUSY {
			busy = append(busy, dir) // has other cells
		}
	}
	slices.Reverse(busy)
	t.made = busy
	return removeTop(mountPoints(t.all), c.path)
}

// checkName refuses names that would leave the directory or that are names of the kernel's files.
func checkName(name string) error {
	if name == "" || strings.ContainsAny(name, "/.\x00\n") {
		return fmt.Errorf("%q: must be a file name without dots", name)
	}
	return nil
}
