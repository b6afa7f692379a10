//go:build linux

package wall

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// Builtin returns the Wall that takes neither an installed runtime nor cgo. Go code can't run
// between a clone and its exec, so what makes the container is a program, as what makes a run is: a
// list of system calls that a clone of this process executes. Nothing but PID 1 is executed.
func Builtin() Wall { return builtin{} }

type builtin struct{}

func (builtin) Name() string { return "builtin" }

// cloned is PID 1 of a container that this package made, and the container's cgroup, if any.
type cloned struct {
	*os.Process
	cgroup cgroups.Manager
}

func (p *cloned) Destroy() error {
	if p.cgroup == nil {
		return nil
	}
	return p.cgroup.Destroy()
}

// patience is how long PID 1 may take until it executes its file. The paths that it looks up are
// the host's and may be on a file system that hangs.
const patience = time.Minute

func (builtin) Start(c *Container) (Process, error) {
	p, err := bootProgram(c)
	if err != nil {
		return nil, err
	}
	conn, far, err := forkserver.NewConn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	process, err := cloneBoot(c, p, far)
	if err != nil {
		return nil, err
	}
	late := time.AfterFunc(patience, conn.Interrupt)
	defer late.Stop()
	for _, step := range []func(*Container) error{process.mapIDs, process.join} {
		if err == nil {
			err = step(c)
		}
		if err == nil {
			err = conn.Go()
		}
	}
	if e := follow(conn, p, err == nil); e != nil {
		err = e // it says why the clone is gone, if it is
	}
	if err != nil {
		_ = process.Kill()
		_, _ = process.Wait()
		return nil, errors.Join(err, process.Destroy())
	}
	return process, nil
}

// cloneBoot makes the clone, which waits until its ids are mapped, and closes its end of the socket
// here. The kernel copies the tables of this process's pages for it, once in a cell's life.
func cloneBoot(c *Container, p *program.Program, far *os.File) (*cloned, error) {
	defer far.Close()
	m, err := program.NewMachine()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	files := []int{int(far.Fd()), int(c.Stderr.Fd())}
	for _, f := range c.Files {
		files = append(files, int(f.Fd()))
	}
	if err := m.Load(p.Image(), files); err != nil {
		return nil, err
	}
	flags := uint64(unix.CLONE_NEWPID)
	if !c.HostIDs {
		flags |= unix.CLONE_NEWUSER
	}
	pid, pidfd, errno := m.Clone(flags)
	if errno != 0 {
		return nil, &callError{program.Call{Number: unix.SYS_CLONE3, Stage: "clone", Text: "clone3"}, errno}
	}
	defer unix.Close(pidfd)
	process, err := os.FindProcess(pid) // a child, so the pid is nobody else's before Wait
	return &cloned{Process: process}, err
}

// mapIDs maps the ids of the clone's user namespace.
func (p *cloned) mapIDs(c *Container) error {
	if c.HostIDs {
		return nil
	}
	return mapIDs(p.Pid, c.UIDs, c.GIDs)
}

// join puts the clone into its cgroup, while it makes its root: the kernel may wait for a grace
// period of RCU before (kernel/cgroup/cgroup.c, cgroup_attach_lock).
func (p *cloned) join(c *Container) (err error) {
	if c.Adopt != nil {
		if err := c.Adopt(p.Pid); err != nil {
			return err
		}
	}
	p.cgroup, err = joinCgroup(c, p.Pid)
	return err
}

// follow returns the error of the clone, if it reports one, and if wait is set waits until it has
// executed its file, which closes its end of the socket.
func follow(conn *forkserver.Conn, p *program.Program, wait bool) error {
	if !wait && conn.Quiet() {
		return nil
	}
	e, err := conn.Next()
	if e.File != nil {
		e.File.Close()
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("waiting for PID 1: %w", err)
	}
	return &callError{p.Call(int(e.Index)), unix.Errno(e.Errno)}
}

// callError is a system call of the clone that failed.
type callError struct {
	program.Call
	errno unix.Errno
}

func (e *callError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Stage, e.Text, e.errno) }
func (e *callError) Unwrap() error { return e.errno }

func (builtin) Explain(err error) (why Why, denied bool) {
	var call *callError
	var ids *mapError
	switch {
	case errors.As(err, &ids):
		return IDsUnmapped, false
	case !errors.As(err, &call):
		return Other, false
	case call.Purpose == program.OwnPlace:
		why = ProcUnmounted
	case call.Number == unix.SYS_CAPSET || call.Number == unix.SYS_CLONE3 && call.errno == unix.EPERM:
		why = CapabilitiesLacking // for clone3, if there is no user namespace
	}
	return why, call.errno == unix.EPERM || call.errno == unix.EACCES || call.errno == unix.ENOSYS
}
