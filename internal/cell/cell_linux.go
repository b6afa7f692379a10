// Package cell makes and keeps cells: containers, made by package wall, whose PID 1 is the fork
// server and in which every run of this process is cloned.
package cell

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wall"
)

// ErrLost reports that the cell ended while it was in use.
var ErrLost = errors.New("the fork server has ended")

// ErrNested reports that this process is itself in a run.
var ErrNested = errors.New("this process is in a run, and runs can't be nested")

// Config is what differs between cells.
type Config struct {
	HostNetwork  bool
	HostIDs      bool   // no user namespace: root only
	CgroupParent string // "" to choose
	Runtime      string // of spec.Walls; "" for wall.Default
}

// Cell is a booted cell.
type Cell struct {
	config  Config
	wall    string // the name of what made the container
	state   *state
	ids     *ids
	client  *forkserver.Client
	porting sync.Mutex
	porter  *porter // rootless only; see livePorter
	stderr  *os.File
	process wall.Process // PID 1 or what stands for it, once it was started
	init    *os.File     // PID 1's pidfd, once it has greeted

	// Limits is where runs get their cgroups. It is nil if cgroups can't be used; LimitsErr
	// then says why.
	Limits    *limits.Cell
	LimitsErr error
	Tree      *limits.Tree
	uncounted []string

	doomed atomic.Bool      // PID 1 was seen to end
	closed atomic.Bool      // by Close, while it was alive
	done   chan struct{}    // closed when PID 1 has ended
	end    *os.ProcessState // how it ended, once done is closed
	once   sync.Once

	guests     guests
	templates  templates
	assembling sync.Mutex       // one template is assembled at a time
	ahead      *program.Program // the base that waits for its template: see AssembleAhead
	maps       idmaps
	networks   networks
	guards     guards

	mu      sync.Mutex
	closing bool           // no new run may enter
	busy    sync.WaitGroup // runs that have not returned their resources yet
}

// Boot makes a cell. It first removes what dead owners of cells have left behind. Its error is a
// *BootError.
func Boot(config Config) (*Cell, error) {
	w, err := config.wall()
	if err != nil {
		return nil, &BootError{Err: err}
	}
	c, err := bootNew(config, w)
	if err != nil {
		return nil, newBootError(w, err)
	}
	return c, nil
}

// wall returns what makes the container.
func (config *Config) wall() (wall.Wall, error) {
	name := config.Runtime
	if name == "" && mayHave(spec.DefaultRuntime) && spec.CheckRuntime(spec.DefaultRuntime, config.HostIDs) == nil {
		name = spec.DefaultRuntime
	}
	switch name {
	case "":
		return wall.Default(), nil
	case spec.Builtin:
		return wall.Builtin(), nil
	case spec.Libcontainer:
		if w := wall.Libcontainer(); w != nil {
			return w, nil
		}
		return nil, ErrNoLibcontainer
	}
	w, err := wall.Installed(name)
	switch {
	case err != nil:
		return nil, err
	case !mayHave(name):
		return nil, fmt.Errorf("%s %w", name, ErrRuntimeNeedsRoot)
	}
	return w, nil
}

// mayHave reports whether this process can have cells by an installed runtime. Root of a namespace,
// whom runtimes take for root, can't.
func mayHave(runtime string) bool {
	if os.Geteuid() != 0 {
		return wall.ForUsers(runtime)
	}
	highest := int(wall.HighestID(runtime))
	return asRoot() && exists(highest, highest)
}

// ErrRuntimeNeedsRoot reports that Config.Runtime takes root.
var ErrRuntimeNeedsRoot = errors.New("takes a process of root with CAP_SYS_ADMIN, in the machine's own user namespace")

// ErrNoLibcontainer reports that Config.Runtime is not in this program.
var ErrNoLibcontainer = errors.New("this program was built without cgo, so libcontainer is not in it")

func bootNew(config Config, w wall.Wall) (_ *Cell, err error) {
	if inRun() {
		return nil, ErrNested
	}
	if err := waitsForChildren(); err != nil {
		return nil, err
	}
	root, err := stateRoot()
	if err != nil {
		return nil, err
	}
	if err := sweep(root); err != nil {
		slog.Debug("sandbox: sweeping dead cells", "error", err)
	}
	c := &Cell{config: config, wall: w.Name(), done: make(chan struct{})}
	c.networks = networks{c: c, score: maxScore}
	if config.HostIDs {
		c.ids = hostIDs()
	} else if c.ids, err = chooseIDs(); err != nil {
		return nil, err
	}
	installed, _ := w.(wall.Runtime)
	if installed != nil {
		c.ids.oneExtent = installed.OneExtent()
	}
	if c.state, err = newState(root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.destroy()
		}
	}()
	if installed != nil {
		if err := c.state.noteRuntime(installed.Name()); err != nil {
			return nil, err
		}
	}
	if err := c.ids.open(root); err != nil {
		return nil, err
	}
	if err := c.makeCgroups(); err != nil {
		return nil, err
	}
	if w.Name() == spec.GVisor {
		c.guests.runtime, _ = w.(*wall.Command)
		return c, nil
	}
	if err := c.boot(w); err != nil {
		return nil, err
	}
	return c, nil
}

// waitsForChildren returns an error if SIGCHLD is ignored: the kernel then lets nobody wait for
// children (wait(2)), and libcontainer fails late and slowly.
func waitsForChildren() error {
	b, err := os.ReadFile("/proc/self/status")
	_, rest, ok := strings.Cut(string(b), "\nSigIgn:\t")
	var ignored uint64
	if _, scanErr := fmt.Sscanf(rest, "%x", &ignored); err != nil || !ok || scanErr != nil {
		return nil // not known
	}
	if ignored>>(unix.SIGCHLD-1)&1 != 0 {
		return errors.New("this process ignores SIGCHLD, so it can't wait for its children: undo that with signal.Notify(make(chan os.Signal, 1), syscall.SIGCHLD)")
	}
	return nil
}

// makeCgroups makes the parent of the cell's own cgroup and of the runs', if this process may. It
// writes the place down first, for a later sweep.
func (c *Cell) makeCgroups() error {
	tree, err := limits.Discover(c.config.CgroupParent)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.state.dir, cgroupName), []byte(tree.Path(c.state.id)), 0o600)
	}
	if err == nil {
		c.Limits, err = tree.NewCell(c.state.id, startKeeper)
	}
	if errors.Is(err, limits.ErrUnavailable) && c.config.CgroupParent == "" {
		c.LimitsErr = err
		slog.Debug("sandbox: no cgroups", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	c.Tree, c.uncounted = tree, c.Limits.Uncounted()
	return nil
}

// Uncounted names the fields of a run's usage that its cgroup does not count.
func (c *Cell) Uncounted() []string { return c.uncounted }

// Alive reports whether the cell can still take runs.
func (c *Cell) Alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Done is closed when the cell has ended.
func (c *Cell) Done() <-chan struct{} { return c.done }

// Dying reports whether the fork server has ended, even if nobody has waited for it yet.
func (c *Cell) Dying() bool {
	return !c.Alive() || c.doomed.Load() || c.client != nil && c.client.Gone()
}

// DiesNow reports whether a run ended unexpectedly because its cell does. It gives the cell a
// moment to end, in case that what has ended the run has yet to reach the fork server.
func (c *Cell) DiesNow() bool {
	if c.guests.runtime != nil {
		return c.Dying()
	}
	for range 100 {
		if c.Ending() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

// Ending is Dying, and true also if the fork server has been killed and is there yet.
func (c *Cell) Ending() bool {
	if c.client != nil && c.client.Ending() {
		c.doomed.Store(true)
	}
	return c.Dying()
}

// killed reports whether a signal from outside ended PID 1.
func (c *Cell) killed() bool { return !c.Alive() && c.end != nil && !c.end.Exited() }

// Lost returns the error of an operation that was under way when the cell ended. It gives PID 1 a
// moment to say why.
func (c *Cell) Lost() error {
	select {
	case <-c.done:
	case <-time.After(time.Second):
	}
	switch {
	case c.killed():
		return fmt.Errorf("%w: %v", ErrLost, c.end)
	case c.closed.Load():
		return fmt.Errorf("%w, by Close or Shutdown", ErrLost)
	}
	return fmt.Errorf("%w%s", ErrLost, c.complaint())
}

// Config returns what the cell was booted with.
func (c *Cell) Config() Config { return c.config }

// Wall returns the name of what made the container that the cell is.
func (c *Cell) Wall() string { return c.wall }

// Rootless reports whether the cell was made as for an ordinary user: by one, or by root without
// CAP_SYS_ADMIN.
func (c *Cell) Rootless() bool { return c.ids.rootless }

// SingleID reports whether all processes in the cell have the same id.
func (c *Cell) SingleID() bool { return c.ids.single() }

// WideIDs reports whether every run has all ids from 0 to 65535, so that a Tree may have an Owner
// with AllIDs.
func (c *Cell) WideIDs() bool { return c.ids.keepOwners() }

// Blocks returns how many runs can have ids of their own at the same time.
func (c *Cell) Blocks() int64 { return c.ids.blocks() }

// enter registers a run that Close must wait for. It returns false if the cell is ending.
func (c *Cell) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || !c.Alive() {
		return false
	}
	c.busy.Add(1)
	return true
}

// Close ends the cell with every run in it and removes everything that the cell made on the host.
func (c *Cell) Close(ctx context.Context) error {
	var err error
	c.once.Do(func() {
		c.closed.Store(!c.Dying())
		c.mu.Lock()
		c.closing = true
		c.mu.Unlock()
		c.guards.fire()
		if c.guests.runtime != nil {
			c.endGuests()
		} else {
			err = c.awaitInit(ctx)
		}
		c.busy.Wait()
		err = errors.Join(err, c.destroy())
	})
	return err
}

// awaitInit has PID 1 end, and kills it when ctx ends.
func (c *Cell) awaitInit(ctx context.Context) error {
	c.client.Close()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.kill()
	<-c.done
	return fmt.Errorf("waiting for the cell to end: %w", ctx.Err())
}

// goneIn is how long a wall has to remove what it made, once PID 1 has ended.
const goneIn = 10 * time.Second

// kill kills PID 1 and, if that has not greeted or what stands for it does not end, the latter.
func (c *Cell) kill() {
	if c.init != nil && unix.PidfdSendSignal(int(c.init.Fd()), unix.SIGKILL, nil, 0) == nil {
		time.AfterFunc(goneIn, func() { _ = c.process.Signal(unix.SIGKILL) })
		return
	}
	_ = c.process.Signal(unix.SIGKILL)
}

func (c *Cell) destroy() error {
	if c.process != nil { // even if the boot failed later
		c.kill()
		<-c.done
	}
	c.porting.Lock()
	if c.porter != nil {
		c.porter.close()
	}
	c.porting.Unlock()
	if c.client != nil {
		c.client.Close()
	}
	var err error
	if c.process != nil {
		err = c.process.Destroy()
	} else { // what a start that failed has left
		err = wall.Clean(c.wall, c.state.id, filepath.Join(c.state.dir, containerName))
	}
	c.maps.close()
	c.networks.close()
	c.ids.close()
	if c.init != nil {
		c.init.Close()
	}
	if c.stderr != nil {
		c.stderr.Close()
	}
	if c.Limits != nil {
		err = errors.Join(err, c.Limits.Delete())
	}
	if err != nil {
		c.state.release() // the directory stays: a later sweep finds the rest through it
		return err
	}
	return c.state.remove()
}
