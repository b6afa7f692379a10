//go:build linux

package wall

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is the Wall of a runtime's command line. The command stays in the foreground while the
// container is there, and removes it when PID 1 has ended, also if nobody waits for it any more.
type Command struct {
	*commandLine
	path string
}

// Name implements Wall.
func (w *Command) Name() string { return w.name }

// OneExtent reports whether the runtime maps ids by a single extent.
func (w *Command) OneExtent() bool { return !w.pieces }

// command is a runtime's command and the container that it has started.
type command struct {
	*exec.Cmd
	wall      *Command
	container *Container
}

// Start implements Wall. It returns before PID 1 is there: the fork server's greeting says when it
// is, and which process it is.
func (w *Command) Start(c *Container) (Process, error) {
	if err := os.Mkdir(c.Dir, 0o711); err != nil {
		return nil, err
	}
	if err := MountPoints(c.Rootfs, c.Binds); err != nil {
		return nil, fmt.Errorf("making mount points: %w", err)
	}
	args, err := w.command(w.commandLine, c)
	if err != nil {
		return nil, fmt.Errorf("describing it to %s: %w", w.name, err)
	}
	args = append([]string{w.path}, args...)
	joins := w.joins
	if w.hybrid != nil && hybridCgroups() {
		args, joins = w.hybrid(args), true
	}
	// In a shell, because a process's own pid is in what some runtimes want to know of the
	// descriptors that are for PID 1 (sd_listen_fds(3)), and has to be in its cgroup before it
	// has children.
	var join []string
	if joins && c.MakeCgroup != nil {
		dirs, err := c.MakeCgroup()
		if err != nil {
			return nil, fmt.Errorf("making its cgroup: %w", err)
		}
		for _, dir := range dirs {
			join = append(join, filepath.Join(dir, "cgroup.procs"))
		}
	}
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	defer open.Close()
	mark, err := lockMark(c.Dir)
	if err != nil {
		return nil, err
	}
	defer mark.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", launch, "sh"}, append(append(join, "--"), args...)...)...)
	cmd.Stdin = gate
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, w.env...)
	cmd.ExtraFiles = append(slices.Clip(c.Files), mark) // PID 1 closes it, if it gets it
	cmd.Stdout, cmd.Stderr = c.Stderr, c.Stderr
	// What a terminal sends to this process's group is not for the runtime, which would end the
	// container, or pass it on to PID 1.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if c.Adopt != nil { // with all that it starts
		err = c.Adopt(cmd.Process.Pid)
	}
	if err == nil {
		_, err = open.WriteString("\n")
	}
	if err != nil {
		open.Close() // and it ends
		_ = cmd.Wait()
		return nil, err
	}
	return &command{cmd, w, c}, nil
}

// launch enters the cgroups that come before "--", waits for a line, and becomes the command after
// it.
const launch = `while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift
read -r go || exit; export LISTEN_PID=$$; exec "$@" </dev/null`

// markName is a file in Container.Dir that the runtime's command keeps locked.
const markName = "working"

func lockMark(dir string) (*os.File, error) {
	f, err := os.Create(filepath.Join(dir, markName))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, os.NewSyscallError("flock", err)
	}
	return f, nil
}

// Working reports whether a runtime's command may be there yet, whose container has that Dir. It
// may then make again what is removed, such as the container's cgroup.
func Working(dir string) bool {
	f, err := os.Open(filepath.Join(dir, markName))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

func (p *command) Wait() (*os.ProcessState, error) {
	err := p.Cmd.Wait()
	return p.ProcessState, err
}

func (p *command) Signal(sig os.Signal) error { return p.Process.Signal(sig) }

func (p *command) Destroy() error { return Clean(p.wall.name, p.container.ID, p.container.Dir) }

// Explain implements Wall. The texts of runtimes are for people.
func (*Command) Explain(error) (Why, bool) { return Other, false }

// MountPoints makes what is mounted over in a container's root. All of it belongs to this process
// and is covered, or out of sight, once Finish has been executed.
func MountPoints(rootfs string, binds []Bind) error {
	// systemd-nspawn takes no directory without usr for a root.
	for _, dir := range []string{"cell", "dev", "etc", "proc", "run", "sys", "tmp", "usr"} {
		if err := os.Mkdir(filepath.Join(rootfs, dir), 0o755); err != nil {
			return err
		}
	}
	for _, b := range binds {
		at := filepath.Join(rootfs, b.Destination)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// plain returns an error if a text has a line break, which configurations in lines can't have.
func plain(texts ...string) error {
	for _, s := range texts {
		if strings.ContainsAny(s, "\n\x00") {
			return fmt.Errorf("%q has a line break", s)
		}
	}
	return nil
}
