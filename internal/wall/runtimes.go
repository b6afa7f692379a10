//go:build linux

package wall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// commandLine is that of a container runtime that is installed on this machine.
type commandLine struct {
	name    string // as CellRuntime has it
	program string // the command that starts a container in the foreground
	debian  string // the package that has it
	module  string // the module that has its client, if it has no command line
	pieces  bool   // a map of ids may have several extents
	users   bool   // ordinary users can start it too
	// highest is the id up to which it takes all in this process's user namespace: it uses some
	// of them, or those of the machine if a daemon starts its containers.
	highest int64

	// command returns the runtime's arguments for a container, and writes the files that they
	// name to Container.Dir.
	command func(r *commandLine, c *Container) ([]string, error)
	env     []string
	joins   bool // it leaves its cgroup to who starts it
	// hybrid changes the command for hybrid cgroups, and has the runtime leave its cgroup to
	// who starts it there. It is nil if the runtime can deal with them.
	hybrid func(args []string) []string
	// clean removes what it leaves outside of Container.Dir and of cgroups, at least if it is
	// killed. It is nil if that is nothing.
	clean func(id, dir string) error
}

// runtimes are those that spec.Runtimes names.
var runtimes = []commandLine{
	{name: "runc", program: "runc", debian: "runc", pieces: true, users: true, command: oci},
	{name: "crun", program: "crun", debian: "crun", pieces: true, command: oci, hybrid: crunHybrid},
	{name: "youki", program: "youki", pieces: true, command: oci},
	{name: "systemd-nspawn", program: "systemd-nspawn", debian: "systemd-container", highest: 1<<16 - 1, command: nspawn, env: nspawnEnv, joins: true, clean: nspawnClean},
	{name: "lxc", program: "lxc-start", debian: "lxc", pieces: true, highest: 1<<16 - 1, command: lxc, env: lxcEnv, clean: lxcClean},
	{name: "runsc", program: "runsc"}, // see gvisor.go
	{name: "docker", debian: "docker.io", highest: 1<<32 - 2, module: "github.com/cellkit/sandbox/docker"},
	{name: "libvirt", debian: "libvirt-daemon-system libvirt-daemon-driver-lxc", highest: 1<<32 - 2, module: "github.com/cellkit/sandbox/libvirt"},
}

func named(name string) *commandLine {
	i := slices.IndexFunc(runtimes, func(r commandLine) bool { return r.name == name })
	if i < 0 {
		return nil
	}
	return &runtimes[i]
}

// ForUsers reports whether ordinary users can have cells by a runtime.
func ForUsers(name string) bool {
	r := named(name)
	return r != nil && r.users
}

// HighestID returns the id up to which a runtime takes all in this process's user namespace.
func HighestID(name string) int64 {
	if r := named(name); r != nil {
		return r.highest
	}
	return 0
}

// Clean removes what a runtime has left of a container outside of the container's Dir and of
// cgroups. The container must have ended.
func Clean(runtime, id, dir string) error {
	r := named(runtime)
	if r == nil {
		return nil
	}
	clean := r.clean
	if r.module != "" {
		m, err := r.registered()
		if err != nil {
			return err
		}
		clean = m.Clean
	}
	if clean == nil {
		return nil
	}
	return clean(id, dir)
}

// MissingError reports that a runtime is not installed, its daemon not running, or its client not
// in this program.
type MissingError struct {
	Runtime string
	Debian  string // the package that has it, "" if Debian has none
	Daemon  bool   // it may be installed, but its daemon does not answer
	Module  string // the module that has its client, if this program does not have that
	Err     error
}

func (e *MissingError) Error() string {
	switch {
	case e.Module != "":
		return fmt.Sprintf("%s is not in this program, which does not import %s", e.Runtime, e.Module)
	case e.Daemon:
		return fmt.Sprintf("%s's daemon does not answer: %v", e.Runtime, e.Err)
	}
	return fmt.Sprintf("%s is not installed: %v", e.Runtime, e.Err)
}
func (e *MissingError) Unwrap() error { return e.Err }

// Remedy returns how to install the runtime.
func (e *MissingError) Remedy() string {
	switch {
	case e.Module != "":
		return fmt.Sprintf("import _ %q in the program; the command sandbox does without its size", e.Module)
	case e.Debian == "":
		return "install " + e.Runtime + ", which Debian has no package of"
	case e.Daemon:
		return "start it, or install it: on Debian, apt-get install " + e.Debian
	}
	return "install it: on Debian, apt-get install " + e.Debian
}

// Installed returns the Wall of a runtime that is installed on this machine. The error is a
// *MissingError if it is not.
func Installed(name string) (Runtime, error) {
	r := named(name)
	if r == nil {
		return nil, fmt.Errorf("no container runtime %q is known", name)
	}
	if r.module != "" {
		m, err := r.registered()
		if err != nil {
			return nil, err
		}
		return m.Open()
	}
	path, err := exec.LookPath(r.program)
	if err != nil && os.Geteuid() != 0 && r.users {
		// Debian has it where an ordinary user's PATH does not lead.
		if admin, adminErr := exec.LookPath(filepath.Join("/usr/sbin", r.program)); adminErr == nil {
			path, err = admin, nil
		}
	}
	if err != nil {
		return nil, &MissingError{Runtime: r.name, Debian: r.debian, Err: err}
	}
	return &Command{commandLine: r, path: path}, nil
}

// versionTimeout is far more than any runtime takes.
const versionTimeout = 10 * time.Second

// Version returns what the runtime's command says about its version, in a line.
func (w *Command) Version() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", w.path, err)
	}
	head, _ := io.ReadAll(io.LimitReader(out, 4<<10)) // what fails shows in Wait
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s --version: %w", w.path, err)
	}
	line, _, _ := strings.Cut(string(head), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "", errors.New(w.path + " --version prints nothing")
	}
	return line, nil
}
