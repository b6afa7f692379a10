//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/program"
)

// subject is one way to run a program to its end.
type subject struct {
	name  string
	run   func() error
	ready func() error // called before each run and not measured; may be nil
	alone bool         // only one at a time can run
}

const (
	own   = "sandbox"
	ahead = "sandbox, prepared"
)

// limits are the limits of all subjects that can have any.
var limits = []sandbox.Option{sandbox.WithMemory(256 * sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithPIDs(64)}

// sandboxed returns the sandbox that is measured.
func (p *place) sandboxed(argv []string, opts ...sandbox.Option) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand(argv[0], argv[1:]...), sandbox.WithReadOnlyBind(p.work, "/programs")).With(limits...).With(opts...)
}

// working returns the subjects that can run the workload here.
func (p *place) working(w workload) (list []subject) {
	host := p.onHost(w)
	s := p.sandboxed(w.argv)
	prepared := s.With(sandbox.WithPrepared(16))
	all := []subject{
		{name: "os/exec", run: func() error { return exec.Command(host[0], host[1:]...).Run() }},
		{name: "clone3 in C", run: p.floor(host)},
		{name: "clone3 alone", run: func() error { return bareClone(host) }},
		{name: ahead, run: func() error { _, err := prepared.Run(context.Background()); return err },
			ready: func() error { return prepared.Prepare(context.Background()) }},
		{name: own, run: func() error { _, err := s.Run(context.Background()); return err }},
		{name: "bubblewrap", run: p.command("bwrap", append([]string{"--unshare-all", "--uid", "1000", "--gid", "1000", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
			"--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--ro-bind", p.work, "/programs", "--proc", "/proc", "--dev", "/dev",
			"--tmpfs", "/tmp", "--tmpfs", "/home/sandbox"}, w.argv...)...)},
		{name: "nsjail", run: p.command("nsjail", append([]string{"-Mo", "-q", "--rlimit_as", "max", "-R", "/usr", "-R", "/lib", "-R", "/lib64", "-R", p.work + ":/programs", "-T", "/tmp", "--"}, w.argv...)...)},
		{name: "systemd-nspawn", alone: true, run: p.command("systemd-nspawn", append([]string{"--quiet", "--register=no", "--keep-unit", "--as-pid2", "--private-network", "--read-only",
			"--directory=" + p.root, "--bind-ro=/usr", "--bind-ro=" + p.work + ":/programs", "--"}, w.argv...)...)},
		{name: "libcontainer", run: p.libcontainer(w)},
		{name: "crun", run: p.runtime("crun", w)},
		{name: "runc", run: p.runtime("runc", w)},
	}
	for _, s := range all {
		if err := s.run(); err != nil {
			progress("left out: %s: %v", s.name, err)
			continue
		}
		list = append(list, s)
	}
	return list
}

func (p *place) command(name string, args ...string) func() error {
	return func() error {
		cmd := exec.Command(name, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w %s", err, strings.TrimSpace(stderr.String()))
		}
		return nil
	}
}

// spec returns the specification for OCI runtimes: runc's example, with the same root and limits as
// for all.
func (p *place) spec(w workload) *specs.Spec {
	s := specconv.Example()
	s.Version = "1.0.2" // older runtimes refuse newer ones
	s.Root = &specs.Root{Path: p.root, Readonly: true}
	s.Process.Terminal, s.Process.Args, s.Process.Cwd = false, w.argv, "/"
	bind := func(from, to string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"bind", "ro", "nosuid", "nodev"}}
	}
	s.Mounts = append(s.Mounts, bind("/usr", "/usr"), bind(p.work, "/programs"),
		specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/tmp"}, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/home/sandbox"})
	memory, quota, period, pids := int64(256*sandbox.MiB), int64(100000), uint64(100000), int64(64)
	s.Linux.Resources = &specs.LinuxResources{Devices: s.Linux.Resources.Devices, Memory: &specs.LinuxMemory{Limit: &memory},
		CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Pids: &specs.LinuxPids{Limit: &pids}}
	return s
}

var containers atomic.Int64

func containerName() string {
	return fmt.Sprintf("sandbox-bench-%d-%d", os.Getpid(), containers.Add(1))
}

// runtime runs a bundle with an OCI runtime's command line.
func (p *place) runtime(name string, w workload) func() error {
	bundle, err := os.MkdirTemp(filepath.Dir(p.root), name)
	if err == nil {
		var b []byte
		if b, err = json.Marshal(p.spec(w)); err == nil {
			err = os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o644)
		}
	}
	return func() error {
		if err != nil {
			return err
		}
		return p.command(name, "run", "--bundle", bundle, containerName())()
	}
}

// libcontainer makes a container for every run, in this process.
func (p *place) libcontainer(w workload) func() error {
	return func() error {
		id := containerName()
		conf, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: p.spec(w)})
		if err != nil {
			return err
		}
		c, err := libcontainer.Create(filepath.Join(filepath.Dir(p.root), "state"), id, conf)
		if err != nil {
			return err
		}
		proc := &libcontainer.Process{Args: w.argv, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/", Init: true}
		if err := c.Run(proc); err != nil {
			return firstError(err, c.Destroy())
		}
		_, err = proc.Wait()
		return firstError(err, c.Destroy())
	}
}

// bareClone measures what the kernel takes for the same namespaces and an exec, without mounts,
// limits or a filter: the library's own executor, directly from this process.
func bareClone(argv []string) error {
	b := program.NewBuilder()
	b.In(program.Command)
	b.Call("execve", unix.SYS_EXECVE, b.Str(argv[0]), b.Strings(argv), b.Strings([]string{"PATH=/usr/bin:/bin"}))
	prog, err := b.Program()
	if err != nil {
		return err
	}
	m, err := machines()
	if err != nil {
		return err
	}
	defer free(m)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if err := m.Load(prog.Image(), ends[1:]); err != nil {
		return err
	}
	pid, pidfd, errno := m.Clone(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUSER)
	if errno != 0 {
		return fmt.Errorf("clone3: %w", errno)
	}
	defer unix.Close(pidfd)
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("clone3 alone: exit status %d", status.ExitStatus())
	}
	return nil
}

var pool = make(chan *program.Machine, 64)

func machines() (*program.Machine, error) {
	select {
	case m := <-pool:
		return m, nil
	default:
		return program.NewMachine()
	}
}

func free(m *program.Machine) { pool <- m }
