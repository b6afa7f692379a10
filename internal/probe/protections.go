//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/spec"
)

// protections looks at a live run from outside, and reports for each protection whether it is in
// place. What keeps one from being set up is an error of the start, with its remedy; so for one
// that is missing here the only remedy is to report that.
func (p *prober) protections() []Feature {
	r, w, err := os.Pipe()
	if err != nil {
		return []Feature{{Name: "protections", Err: err}}
	}
	defer w.Close()
	defer r.Close()
	live, err := p.start("cat", func(c *spec.Spec) { c.Streams.Stdin = r })
	if err != nil {
		return nil // the feature "runs" says why
	}
	defer func() { _ = live.Kill(); _, _ = live.Wait() }()
	proc := fmt.Sprintf("/proc/%d", live.PID())
	status, err1 := os.ReadFile(proc + "/status")
	mounts, err2 := os.ReadFile(proc + "/mountinfo")
	if err := errors.Join(err1, err2); err != nil {
		return []Feature{{Name: "protections", Err: err}}
	}
	return []Feature{
		{Name: "no privileges", Detail: "no capability in any set, and none through exec", Err: privileged(string(status))},
		{Name: "seccomp", Detail: "the default filter; set-uid and set-gid bits refused, which WithSetID allows", Err: unfiltered(string(status))},
		{Name: "namespaces", Detail: "all of its own", Err: sharedNamespaces(proc, "/proc/self")},
		{Name: "read-only files", Detail: "but /tmp, /dev/shm and the home directory; no set-uid programs, no devices", Err: openMounts(string(mounts))},
		{Name: "covered kernel interfaces", Detail: "/proc read-only, what tells of the host covered", Err: uncovered(string(mounts), p.engine.Machine().Proc)},
	}
}

// privileged returns an error that says what privileges a process has or can get:
// proc_pid_status(5).
func privileged(status string) error {
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if v := hint.StatusField(status, set); strings.Trim(v, "0") != "" || v == "" {
			return fmt.Errorf("%s is %q", set, v)
		}
	}
	if v := hint.StatusField(status, "NoNewPrivs"); v != "1" {
		return fmt.Errorf("NoNewPrivs is %q", v)
	}
	return nil
}

func unfiltered(status string) error {
	if v := hint.StatusField(status, "Seccomp"); v != "2" {
		return fmt.Errorf("no seccomp filter is in force: Seccomp is %q", v)
	}
	return nil
}

// sharedNamespaces returns an error that names the namespaces that two processes have in common.
func sharedNamespaces(proc, other string) error {
	var shared []string
	for _, name := range []string{"mnt", "pid", "ipc", "uts", "user", "cgroup", "net"} {
		one, err := os.Readlink(proc + "/ns/" + name)
		if err != nil {
			return err
		}
		if two, err := os.Readlink(other + "/ns/" + name); err != nil {
			return err
		} else if one == two {
			shared = append(shared, name)
		}
	}
	if len(shared) > 0 {
		return fmt.Errorf("shared with the host: %s", strings.Join(shared, ", "))
	}
	return nil
}

// openMounts returns an error that names a mount that could be written to or has set-uid programs
// or devices, other than a run's own: proc_pid_mountinfo(5).
func openMounts(mountinfo string) error {
	writable := []string{"/tmp", "/dev/shm", spec.HomeDir, "/dev/pts"}
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 6 {
			return fmt.Errorf("mountinfo: %q", line)
		}
		point, flags := f[4], strings.Split(f[5], ",")
		// One of the devices that runs have, mounted over a file.
		node := strings.HasPrefix(point, "/dev/") && point != "/dev/shm" || strings.HasPrefix(point, "/proc/")
		switch {
		case !slices.Contains(flags, "nosuid"):
			return fmt.Errorf("%s is not nosuid", point)
		case !slices.Contains(flags, "ro") && !slices.Contains(writable, point):
			return fmt.Errorf("%s is writable", point)
		case !slices.Contains(flags, "nodev") && !node:
			return fmt.Errorf("%s is not nodev", point)
		}
	}
	return nil
}

// uncovered returns an error that names a path that nothing is mounted over.
func uncovered(mountinfo string, paths []host.ProcPath) error {
	points := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 {
			points[f[4]] = true
		}
	}
	for _, p := range paths {
		if !points[p.Path] {
			return fmt.Errorf("%s can be read", p.Path)
		}
	}
	return nil
}
