package cell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/wall"
)

// bootTimeout is far more than any boot has taken, even under emulation.
const bootTimeout = 60 * time.Second

func (c *Cell) boot(w wall.Wall) error {
	bin, err := ownBinary()
	if err != nil {
		return err
	}
	defer bin.close()
	rootfs := c.rootfs()
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
		if err := bin.reach(filepath.Join(c.state.dir, "libraries")); err != nil {
			return err
		}
	}
	client, control, err := forkserver.NewClient()
	if err != nil {
		return err
	}
	defer control.Close()
	c.client = client
	if err := c.start(w, bin, control); err != nil {
		return err
	}
	if c.Limits != nil {
		c.Limits.Settle()
	}
	if err := bin.seal(); err != nil {
		return err
	}
	_, installed := w.(wall.Runtime)
	if err := c.makePlaces(installed); err != nil {
		return fmt.Errorf("preparing the cell: %w", err)
	}
	if c.ids.rootless {
		_, err = c.livePorter()
	}
	return err
}

// rootfs is the directory of the cell's root.
func (c *Cell) rootfs() string { return filepath.Join(c.state.dir, "rootfs") }

// start makes the container and its PID 1 on a thread of its own, because the parent death signal
// is sent when the thread that started the process ends. The fork server cancels the signal once it
// is up.
func (c *Cell) start(w wall.Wall, bin *binary, control *os.File) error {
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	c.stderr = os.NewFile(uintptr(fd), "fork server's stderr")
	container := c.describe(bin, control)
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		process, err := w.Start(container)
		control.Close()
		if err == nil {
			c.process = process
			greeted := make(chan struct{})
			go c.reap(greeted)
			c.init, err = c.client.Hello(bootTimeout)
			close(greeted)
		}
		result <- err
	}()
	err = <-result
	if c.process != nil && errors.Is(err, io.EOF) {
		if lost := c.Lost(); c.killed() {
			err = lost // the same error as later on
		}
	}
	if err != nil {
		return fmt.Errorf("booting the cell: %w%s", err, c.complaint())
	}
	return nil
}

// describe returns what the wall has to make.
func (c *Cell) describe(bin *binary, control *os.File) *wall.Container {
	w := &wall.Container{
		ID:     c.state.id,
		Dir:    filepath.Join(c.state.dir, containerName),
		Rootfs: c.rootfs(),
		Binds:  bin.binds(),
		// The control socket is descriptor 3, this program's own file the next one.
		Args:        []string{fmt.Sprintf("/proc/self/fd/%d", forkserver.ControlFD+1), forkserver.Name},
		Env:         []string{forkserver.Env, forkserver.NoThreadData, "GOTRACEBACK=single", goDebug, "LD_LIBRARY_PATH=" + bin.searchPath()},
		Files:       []*os.File{control, bin.exe, c.ids.claims.file},
		Stderr:      c.stderr,
		HostNetwork: c.config.HostNetwork,
		HostIDs:     c.ids.host,
	}
	if !c.ids.host {
		w.UIDs = mapping(c.ids.extents(c.ids.uid, int64(os.Geteuid())))
		w.GIDs = mapping(c.ids.extents(c.ids.gid, int64(os.Getegid())))
	}
	switch {
	case c.Limits == nil:
	case c.ids.rootless: // only root has the hierarchies and device rules libcontainer wants
		w.Adopt = c.Limits.Adopt
	default:
		w.Cgroup = filepath.Join(c.Limits.Path(), "cell")
		w.MakeCgroup = c.Limits.MakeOwn
	}
	return w
}

// goDebug has PID 1 send itself no signals, and, where a runtime shows it the host's cgroups, keep
// no file of them open.
const goDebug = "GODEBUG=asyncpreemptoff=1,containermaxprocs=0"

func mapping(extents []extent) (list []wall.Extent) {
	for _, e := range extents {
		list = append(list, wall.Extent{Inside: e.inside, Outside: e.outside, Size: e.size})
	}
	return list
}

// reap waits for the fork server, or for what stands for it: then that was killed and could not end
// the fork server, which goes too. By then it is known which process it is.
func (c *Cell) reap(greeted <-chan struct{}) {
	c.end, _ = c.process.Wait()
	<-greeted
	if c.init != nil && unix.PidfdSendSignal(int(c.init.Fd()), unix.SIGKILL, nil, 0) == nil {
		for ended := []unix.PollFd{{Fd: int32(c.init.Fd()), Events: unix.POLLIN}}; ; {
			if n, err := unix.Poll(ended, -1); n > 0 || err != unix.EINTR {
				break
			}
		}
	}
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
	if text := strings.TrimSpace(string(b[:n])); text != "" {
		return ": " + text
	}
	return ""
}

// controllers is what program.CellControllers holds.
const controllers = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" +
	"cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n"

// makePlaces makes the files and directories that programs refer to, in a container that has to be
// finished first if an installed runtime has made it.
func (c *Cell) makePlaces(installed bool) error {
	b := program.NewBuilder()
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	if installed {
		wall.Finish(b)
	}
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
