// Package cell makes the outer wall: a container, made by libcontainer, whose PID 1 is the fork
// server and in which every run of this process is cloned. It is the only package that uses
// libcontainer.
package cell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
)

func init() {
	// libcontainer starts "/proc/self/exe init". A user's own program may have an init
	// subcommand, so the argument alone is not enough.
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" && !forkserver.Privileged() {
		if os.Getenv("_LIBCONTAINER_LOGLEVEL") == logLevel { // not a container that the user's program makes itself
			// libcontainer sets the parent death signal only for the first of its three
			// processes. This is the third, which may wait forever to be told to go on.
			// If the parent is dead already, libcontainer finds its pipe closed.
			_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		}
		libcontainer.Init()
	}
}

// logLevel is libcontainer's default level in a different spelling, which marks the processes of a
// cell among those of other containers that this program starts.
const logLevel = "004"

// ErrLost reports that the cell ended while it was in use.
var ErrLost = errors.New("the fork server has ended")

// ErrNested reports that this process is itself in a run.
var ErrNested = errors.New("this process is in a run, and runs can't be nested")

// Config is what differs between cells.
type Config struct {
	HostNetwork  bool
	HostIDs      bool   // no user namespace: root only
	CgroupParent string // "" to choose
}

// Cell is a booted cell.
type Cell struct {
	config    Config
	state     *state
	ids       *ids
	client    *forkserver.Client
	container *libcontainer.Container
	porting   sync.Mutex
	porter    *porter // rootless only; see livePorter
	stderr    *os.File
	process   *libcontainer.Process

	// Limits is where runs get their cgroups. It is nil if cgroups can't be used; LimitsErr
	// then says why.
	Limits    *limits.Cell
	LimitsErr error
	Tree      *limits.Tree
	uncounted []string

	up   bool             // the fork server was started
	done chan struct{}    // closed when it has ended
	end  *os.ProcessState // how it ended, once done is closed
	once sync.Once

	templates templates
	staging   sync.Mutex // one template is assembled at a time
	maps      idmaps
	guards    guards

	mu      sync.Mutex
	closing bool           // no new run may enter
	busy    sync.WaitGroup // runs that have not returned their resources yet
}

// bootTimeout is far more than any boot has taken, even under emulation.
const bootTimeout = 60 * time.Second

// Boot makes a cell. It first removes what dead owners of cells have left behind. Its error is a
// *BootError.
func Boot(config Config) (*Cell, error) {
	c, err := bootNew(config)
	if err != nil {
		return nil, newBootError(err)
	}
	return c, nil
}

func bootNew(config Config) (_ *Cell, err error) {
	if !cgo {
		return nil, errors.New("this program was built without cgo, which the cell needs: build with CGO_ENABLED=1 and a C compiler")
	}
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
	c := &Cell{config: config, done: make(chan struct{})}
	if config.HostIDs {
		c.ids = hostIDs()
	} else if c.ids, err = chooseIDs(); err != nil {
		return nil, err
	}
	if c.state, err = newState(root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.destroy()
		}
	}()
	if err := c.ids.open(root); err != nil {
		return nil, err
	}
	if err := c.makeCgroups(); err != nil {
		return nil, err
	}
	if err := c.boot(); err != nil {
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
	if err != nil {
		if c.config.CgroupParent != "" {
			return err
		}
		c.LimitsErr = err
		slog.Debug("sandbox: no cgroups", "error", err)
		return nil
	}
	if err := os.WriteFile(filepath.Join(c.state.dir, cgroupName), []byte(tree.Path(c.state.id)), 0o600); err != nil {
		return err
	}
	c.Limits, err = tree.NewCell(c.state.id, startKeeper)
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

func (c *Cell) boot() error {
	bin, err := ownBinary()
	if err != nil {
		return err
	}
	defer bin.close()
	rootfs := filepath.Join(c.state.dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		return err
	}
	// Runs have other users than the cell's root and must be able to enter, whatever the umask.
	if err := os.Chmod(rootfs, 0o755); err != nil {
		return err
	}
	if !c.ids.rootless {
		// The cell's root makes its mount points here.
		if err := os.Chown(rootfs, int(c.ids.hostRange(c.ids.uid, 0).start), int(c.ids.hostRange(c.ids.gid, 0).start)); err != nil {
			return err
		}
	}
	cgroupPath := ""
	if c.Limits != nil && !c.ids.rootless { // only root has the hierarchies and device rules that libcontainer wants
		cgroupPath = c.Limits.Path()
	}
	if !c.ids.rootless {
		if err := bin.reach(filepath.Join(c.state.dir, "libraries")); err != nil {
			return err
		}
	}
	conf := containerConfig(c.state, c.ids, bin, c.config.HostNetwork, cgroupPath)
	// The id is also the name of a keyring, which without a user namespace belongs to the whole
	// host.
	if c.container, err = libcontainer.Create(filepath.Join(c.state.dir, "container"), c.state.id, conf); err != nil {
		return fmt.Errorf("describing the cell: %w", err)
	}
	conf.RootlessEUID = true // see containerConfig: Create refuses it without a user namespace
	client, control, err := forkserver.NewClient()
	if err != nil {
		return err
	}
	defer control.Close()
	c.client = client
	if err := c.start(bin, control); err != nil {
		return err
	}
	if c.Limits != nil {
		c.Limits.Settle()
	}
	if err := bin.seal(); err != nil {
		return err
	}
	if err := c.makePlaces(); err != nil {
		return fmt.Errorf("preparing the cell: %w", err)
	}
	if c.ids.rootless {
		_, err = c.livePorter()
	}
	return err
}

// start runs libcontainer's part of the boot on a thread of its own, because the parent death
// signal is sent when the thread that started the process ends. The fork server cancels the signal
// once it is up.
func (c *Cell) start(bin *binary, control *os.File) error {
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	c.stderr = os.NewFile(uintptr(fd), "fork server's stderr")
	c.process = &libcontainer.Process{
		// The third of ExtraFiles and up begin at 3: the control socket is 3.
		Args:       []string{fmt.Sprintf("/proc/self/fd/%d", forkserver.ControlFD+1), forkserver.Name},
		Env:        []string{forkserver.Env, "GOTRACEBACK=single", "GODEBUG=asyncpreemptoff=1", "LD_LIBRARY_PATH=" + bin.searchPath()},
		Cwd:        "/",
		Stdout:     c.stderr,
		Stderr:     c.stderr,
		ExtraFiles: []*os.File{control, bin.exe, c.ids.claims.file},
		LogLevel:   logLevel,
		Init:       true,
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.run()
		control.Close()
		if err == nil {
			c.up = true
			go c.reap()
			err = c.client.Hello(bootTimeout)
		}
		result <- err
	}()
	err = <-result
	if c.up && errors.Is(err, io.EOF) {
		if lost := c.Lost(); c.killed() {
			err = lost // the same error as later on
		}
	}
	if err != nil {
		reapStage(interpret(err).child)
		return fmt.Errorf("booting the cell: %w%s", err, c.complaint())
	}
	return nil
}

// run does what libcontainer's own Run does, except for the cgroup: a rootless cell does not get
// that from libcontainer.
func (c *Cell) run() error {
	if c.Limits == nil || !c.ids.rootless {
		return c.container.Run(c.process)
	}
	if err := c.container.Start(c.process); err != nil {
		return err
	}
	pid, err := c.process.Pid()
	if err == nil {
		err = c.Limits.Adopt(pid)
	}
	if err == nil {
		err = c.container.Exec()
	}
	if err != nil {
		_ = c.process.Signal(unix.SIGKILL)
		_, _ = c.process.Wait()
	}
	return err
}

// reapStage waits for libcontainer's second process, a child of this one (CLONE_PARENT), if that is
// the one that failed. libcontainer has not been told its process id yet and does not wait for it.
func reapStage(pid int) {
	if pid == 0 {
		return
	}
	for range 100 {
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil && err != unix.EINTR {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// reap waits for the fork server, a child of this process.
func (c *Cell) reap() {
	c.end, _ = c.process.Wait()
	close(c.done)
}

// complaint returns the end of what the fork server wrote to its standard error.
func (c *Cell) complaint() string {
	if c.stderr == nil {
		return ""
	}
	const most = 2048
	b := make([]byte, most)
	size, _ := c.stderr.Seek(0, io.SeekEnd)
	n, _ := c.stderr.ReadAt(b, max(0, size-most))
	if n == 0 {
		return ""
	}
	return ": " + string(b[:n])
}

// controllers is what program.CellControllers holds.
const controllers = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" +
	"cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n"

// makePlaces makes the files and directories that programs refer to.
func (c *Cell) makePlaces() error {
	b := program.NewBuilder()
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	for _, dir := range []string{program.CellRoot, program.CellChanges, program.CellStaging, program.CellEmpty, program.CellTemplates} {
		b.Mkdir(program.AtCWD, dir, 0o755)
	}
	b.CreateFile(program.AtCWD, program.CellControllers, []byte(controllers), 0o444)
	p, err := b.Program()
	if err != nil {
		return err
	}
	_, err = c.Task(p, nil)
	return err
}

// Alive reports whether the cell can still take runs.
func (c *Cell) Alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Dying reports whether the fork server has ended, even if nobody has waited for it yet.
func (c *Cell) Dying() bool { return !c.Alive() || c.client.Gone() }

// DiesNow reports whether a run ended unexpectedly because its cell does. It gives the cell a
// moment to end: a clone that is still being set up keeps the fork server's socket open.
func (c *Cell) DiesNow() bool {
	for range 100 {
		if c.Dying() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
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
	if c.killed() {
		return fmt.Errorf("%w: %v", ErrLost, c.end)
	}
	return fmt.Errorf("%w%s", ErrLost, c.complaint())
}

// Config returns what the cell was booted with.
func (c *Cell) Config() Config { return c.config }

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
		c.mu.Lock()
		c.closing = true
		c.mu.Unlock()
		c.guards.fire()
		c.client.Close()
		select {
		case <-c.done:
		case <-ctx.Done():
			err = fmt.Errorf("waiting for the cell to end: %w", ctx.Err())
			_ = c.process.Signal(unix.SIGKILL)
			<-c.done
		}
		c.busy.Wait()
		err = errors.Join(err, c.destroy())
	})
	return err
}

func (c *Cell) destroy() error {
	var errs []error
	if c.up { // even if the boot failed later
		_ = c.process.Signal(unix.SIGKILL)
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
	if c.container != nil {
		errs = append(errs, c.container.Destroy())
	}
	c.maps.close()
	c.ids.close()
	if c.stderr != nil {
		c.stderr.Close()
	}
	if c.Limits != nil {
		if err := c.Limits.Delete(); err != nil {
			c.state.release() // the directory stays: a later sweep finds the rest through it
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(append(errs, c.state.remove())...)
}
