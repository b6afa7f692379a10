//go:build linux

package limits

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Cell is the directory of one cell: the parent of libcontainer's own cgroup and of the runs'.
type Cell struct {
	tree *Tree
	path string

	mu      sync.Mutex
	enabled map[string]error // v2: controllers that were switched on for the runs, or why not
	swap    bool             // swap can be limited: memory.memsw.limit_in_bytes, memory.swap.max
	sockets bool             // v1: socket buffers can be limited: memory.kmem.tcp.limit_in_bytes
}

// NewCell makes the directory of a cell. The id must not be in use (errors.Is fs.ErrExist): it
// is the caller's to make it unique, and to Remove what a dead process left.
func (t *Tree) NewCell(id string) (*Cell, error) {
	if err := checkName(id); err != nil {
		return nil, fmt.Errorf("cell id %w", err)
	}
	c := &Cell{tree: t, path: path.Join(t.parent, id), enabled: map[string]error{}}
	made, err := c.makeDirs()
	if err != nil {
		// Not Delete: where the directory existed before, it is not ours.
		for _, dir := range made {
			_ = unix.Rmdir(dir)
		}
		_ = c.tidy()
		return nil, err
	}
	c.setUp()
	return c, nil
}

// makeDirs makes the directory of the cell in every hierarchy and returns what it made.
func (c *Cell) makeDirs() (made []string, err error) {
	t := c.tree
	for _, h := range t.all {
		err := t.makeDir(h.mount, c.path)
		if err == nil {
			made = append(made, path.Join(h.mount, c.path))
			continue
		}
		// libcontainer makes the directory in the hierarchies without controllers of ours too.
		// Made here, all of them have one owner; that it fails there is libcontainer's affair.
		if h.mount == t.v2 || len(t.dirs("/", h.v1...)) > 0 {
			return made, fmt.Errorf("cgroup %s: %w", c.path, err)
		}
	}
	return made, nil
}

func (c *Cell) setUp() {
	t := c.tree
	if t.v2 != "" {
		for _, controller := range usedV2 {
			if controller != "cpuset" { // few need it: Create enables it for the first who does
				_ = c.enable(controller) // Create reports it to those who need it
			}
		}
		c.swap = exists(path.Join(t.v2, c.path, "memory.swap.max"))
		return
	}
	if root, ok := containerdRoot(t.v1["cpuset"], "cpuset"); ok {
		// An empty cpuset takes no process, nor do its children get anything from it. This fills
		// it and those above it; whoever needs it hears from Create if it failed.
		_, _ = cgroup1.New(cgroup1.StaticPath(c.path), &specs.LinuxResources{}, cgroup1.WithHierarchy(
			func() ([]cgroup1.Subsystem, error) { return []cgroup1.Subsystem{cgroup1.NewCpuset(root)}, nil }))
	}
	memory := t.v1["memory"]
	c.swap = memory != "" && exists(memory+"/memory.memsw.limit_in_bytes")
	c.sockets = memory != "" && exists(memory+"/memory.kmem.tcp.limit_in_bytes")
}

// makeDir makes one directory below mount, and those above it that are not there. Those can
// vanish at any time: another process removes them when its own last cell ends.
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

// enable switches a v2 controller on for the children of the cell, all the way down. Each is
// switched on by itself, for one that can't be (cpu while a real-time process is in a child
// cgroup) would take the others with it.
func (c *Cell) enable(controller string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err, done := c.enabled[controller]; done {
		return err
	}
	if why := c.tree.missing[controller]; why != "" {
		c.enabled[controller] = errors.New(why)
		return c.enabled[controller]
	}
	child, err := cgroup2.Load(path.Join(c.path, "any"), cgroup2.WithMountpoint(c.tree.v2))
	if err == nil {
		err = child.ToggleControllers([]string{controller}, cgroup2.Enable)
	}
	c.enabled[controller] = err
	return err
}

// Path is the path of the cell below the cgroup mounts, such as "/sandbox/<id>". libcontainer
// uses it as the parent of its own cgroup, "cell".
func (c *Cell) Path() string { return c.path }

// Create makes <path>/<name> for one run and sets its limits. It fails if there is one already:
// its members and its counters would be somebody else's.
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
		return nil, errors.New("WithSwap: the kernel does not account swap; boot with swapaccount=1, or leave WithSwap out")
	}
	if c.tree.v2 != "" {
		return c.createV2(name, s)
	}
	return c.createV1(name, s)
}

// Delete kills every process below the cell and removes it. It takes a few seconds at most; the
// error then names what is left.
func (c *Cell) Delete() error {
	return errors.Join(removeTree(mountPoints(c.tree.all), c.path), c.tidy())
}

// tidy removes the directories above the cell that are ours and that nobody uses any more.
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

// checkName refuses what would leave the directory or meet one of the kernel's files.
func checkName(name string) error {
	if name == "" || strings.ContainsAny(name, "/.\x00\n") {
		return fmt.Errorf("%q: must be a file name without dots", name)
	}
	return nil
}
