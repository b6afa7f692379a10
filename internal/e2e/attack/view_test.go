//go:build linux

package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A run can't change what it sees of its cgroup, whatever user it has, and can't see anything
// beyond that.
func TestAttackCgroupView(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "limits")
	limits := sandbox.WithMemory(256 * sandbox.MiB)
	s := attacker("cgroup").With(limits)
	require.NotEmpty(t, runs.Output(t, runs.Shell("find /sys/fs/cgroup -name cgroup.procs", limits)), "there is something to attack")
	runs.Start(t, sandbox.New(sandbox.WithCommand("sleep", "1000"), limits)) // a process to be found
	requireHeld(t, "cgroup", s)
	t.Run("as uid 0 with capabilities", func(t *testing.T) {
		requireHeld(t, "cgroup", s.With(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN", "CAP_KILL",
			"CAP_SYS_RESOURCE", "CAP_SYS_CHROOT", "CAP_MKNOD")))
	})
	t.Run("without a filter", func(t *testing.T) { requireHeld(t, "cgroup", s.With(sandbox.WithoutSeccomp())) })
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) { requireHeld(t, "cgroup", runs.HostUser(s)) })
	}
	requireControl(t, "cgroup")
}

func init() {
	writes := func(names ...string) func([]string) error {
		return func([]string) error { return eachGroupFile(names, openForWriting) }
	}
	list := []attack{
		{"write to any file", writes(), true},
		{"another limit", writes("memory.max", "memory.limit_in_bytes", "memory.high", "cpu.max", "cpu.cfs_quota_us", "cpuset.cpus", "pids.max"), false},
		{"another group", writes("cgroup.procs", "tasks", "cgroup.threads"), true},
		{"a freezer, a killer", writes("cgroup.kill", "cgroup.freeze", "freezer.state"), false},
		{"events that cost the kernel memory", writes("cgroup.event_control", "memory.pressure", "cpu.pressure", "memory.pressure_level"), false},
		{"a program that the kernel starts (CVE-2022-0492)", func([]string) error {
			return eachGroupFile([]string{"release_agent"}, func(string) error { return nil })
		}, false},
		{"a child group", func([]string) error { return eachGroup(makeChild) }, true},
		{"other groups", func([]string) error { return eachGroup(hasChild) }, true},
		{"other permissions", func([]string) error {
			return eachGroupFile([]string{"cgroup.procs"}, func(p string) error { return os.Chmod(p, 0o644) })
		}, true},
		{"processes that are not its own", func([]string) error { return eachGroupFile([]string{"cgroup.procs", "tasks"}, listsStrangers) }, false},
		{"a directory above", func([]string) error { return eachGroup(leadsOut) }, false},
		{"writable again", func([]string) error {
			return eachGroup(func(dir string) error { return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "") })
		}, false},
		{"uncovered", func([]string) error {
			return eachGroup(func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) })
		}, false},
		{"a file by its number", func([]string) error {
			return eachGroup(func(dir string) error {
				handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
				if err != nil {
					return err
				}
				fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return opened(unix.OpenByHandleAt(fd, handle, unix.O_RDONLY))
			})
		}, false},
	}
	addAttacks("cgroup", list)
}

// groups returns the directories in which a process finds cgroups: several on v1.
func groups() []string {
	dirs := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil {
		dirs, _ = filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
		for i, name := range dirs {
			dirs[i] = filepath.Dir(name)
		}
	}
	return dirs
}

// eachGroup returns nil as soon as try succeeds in one of the groups.
func eachGroup(try func(dir string) error) error {
	errs := errNothing
	for _, dir := range groups() {
		err := try(dir)
		if err == nil {
			return nil
		}
		errs = errors.Join(errs, err)
	}
	return errs
}

// eachGroupFile tries the files with these names, or all, in every group.
func eachGroupFile(names []string, try func(path string) error) error {
	return eachGroup(func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		errs := errNothing
		for _, e := range entries {
			if e.IsDir() || len(names) > 0 && !slices.Contains(names, e.Name()) {
				continue
			}
			err := try(filepath.Join(dir, e.Name()))
			if err == nil {
				return nil
			}
			errs = errors.Join(errs, err)
		}
		return errs
	})
}

func openForWriting(path string) error {
	return opened(unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))
}

func makeChild(dir string) error {
	child := fmt.Sprintf("%s/attack-%d", dir, os.Getpid())
	err := os.Mkdir(child, 0o755)
	if err == nil {
		err = os.Remove(child)
	}
	return err
}

func hasChild(dir string) error {
	found := errNothing
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != dir {
			found = nil
		}
		return nil
	})
	return found
}

// listsStrangers looks for processes outside of this pid namespace: on v1 by their pids, on v2 by
// the 0 that stands for them.
func listsStrangers(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(b)) {
		if _, err := os.Stat("/proc/" + pid); err != nil || pid == "0" {
			if again, err := os.ReadFile(path); err == nil && slices.Contains(strings.Fields(string(again)), pid) { // it has not ended
				return nil
			}
		}
		if _, err := strconv.Atoi(pid); err != nil {
			return err
		}
	}
	return errNothing
}

// leadsOut reports whether there is another group above one.
func leadsOut(dir string) error {
	if _, err := os.Stat(dir + "/../cgroup.procs"); err == nil {
		return nil
	}
	if _, err := os.Stat(dir + "/../../cgroup.procs"); err == nil {
		return nil
	}
	return errNothing
}
