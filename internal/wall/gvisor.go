//go:build linux

package wall

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// gVisor's kernel has no mount API by descriptors and sends none to the host, so no fork server can
// be PID 1 of a container of it. A cell of gVisor has no container: each of its runs is one.

// Guest is a run in a container of gVisor.
type Guest struct {
	ID    string   // no other container on this machine has it
	Dir   string   // for its files, which the caller has made and removes at the end
	Lower []string // directories of its root, the uppermost first: names in Dir, maybe of links
	// Writable is how many bytes of changes the root takes, 0 for a read-only one.
	Writable int64
	Mounts   []GuestMount

	Args, Env []string // of PID 1
	Hostname  string
	Seccomp   *specs.LinuxSeccomp // gVisor's kernel applies it, to PID 1 too; nil for none
	Control   *os.File            // PID 1's descriptor 3, beside a log and no input
	Gate      *os.File            // the container is made once a line can be read from it
}

// GuestMount is mounted in the root: a file or directory of the host, or an empty file system in
// memory, if Source is empty.
type GuestMount struct {
	Source, Destination string
	ReadOnly            bool
	Options             []string
}

// mostLower is how long a mount's options may be (fs/namespace.c, copy_mount_options), less what
// is not directories.
const mostLower = 4000

// guestLaunch is what PID 1 of the namespaces in which runsc is does: its end, which is that of all
// processes of gVisor for this run, is the end of runsc's own. The root is an overlay in a mount
// namespace that goes with them. Only runsc writes to it: it makes missing mount points.
const guestLaunch = `cd "$1" && read -r go <&"$3" && mount --make-rslave / && mount -t proc proc /proc && ` +
	`mount -t overlay -o "lowerdir=$2,upperdir=upper,workdir=work" overlay root && shift 3 && exec "$@"`

// StartGuest starts a container of gVisor with the command runsc. The kernel kills it when the
// thread that calls StartGuest ends.
func (w *Command) StartGuest(g *Guest) (*exec.Cmd, error) {
	lower := strings.Join(g.Lower, ":")
	if len(lower) > mostLower {
		return nil, fmt.Errorf("a root of %d directories is too much for one mount", len(g.Lower))
	}
	for _, dir := range []string{"root", "state", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(g.Dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(guestSpec(g))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(g.Dir, "config.json"), b, 0o600); err != nil {
		return nil, err
	}
	// runsc's own complaints, and PID 1's.
	log, err := os.OpenFile(g.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	const control, gate = 3, 4
	args := []string{"-c", guestLaunch, "sh", g.Dir, lower, fmt.Sprint(gate)}
	args = append(args, w.path, "--root="+filepath.Join(g.Dir, "state"), "--log="+g.log(), "--network=none", "--ignore-cgroups", "--oci-seccomp", g.overlay(),
		"run", "--bundle="+g.Dir, fmt.Sprintf("--pass-fd=%d:%d", control, control), g.ID)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{g.Control, g.Gate}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true, Pdeathsig: unix.SIGKILL}
	return cmd, cmd.Start()
}

func (g *Guest) log() string { return filepath.Join(g.Dir, "log") }

// Complaint returns the end of what runsc says about itself.
func (g *Guest) Complaint() string {
	const most = 2048
	f, err := os.Open(g.log())
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return ""
	}
	b := make([]byte, most) // what gVisor's processes write has no bound
	n, _ := f.ReadAt(b, max(0, info.Size()-most))
	return ": " + strings.TrimSpace(string(b[:n]))
}

func (g *Guest) overlay() string {
	if g.Writable == 0 {
		return "--overlay2=none"
	}
	return fmt.Sprintf("--overlay2=root:memory,size=%d", g.Writable)
}

// guestCapabilities are those that PID 1 has, in gVisor's kernel and nowhere else: what it takes to
// start commands as their user, and to send them signals.
var guestCapabilities = []string{"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"}

// guestSpec describes the container in the words of the OCI runtime specification.
func guestSpec(g *Guest) *specs.Spec {
	s := &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: g.Args, Env: g.Env, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities},
		},
		Root:     &specs.Root{Path: filepath.Join(g.Dir, "root"), Readonly: g.Writable == 0},
		Hostname: g.Hostname,
		Mounts:   []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro", "nosuid", "noexec", "nodev"}}},
		Linux: &specs.Linux{Seccomp: g.Seccomp, Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
	for _, m := range g.Mounts {
		mount := specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "nodev"}, m.Options...)}
		if m.Source != "" {
			mount.Type, mount.Source = "bind", m.Source
			mount.Options = append(mount.Options, "rbind", "rprivate")
		}
		if m.ReadOnly {
			mount.Options = append(mount.Options, "ro")
		}
		s.Mounts = append(s.Mounts, mount)
	}
	return s
}
