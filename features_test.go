//go:build linux

package sandbox_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// need is the only way to skip a test: it does so where this machine lacks the
// feature, and fails where the machine's configuration is known to have it.
func need(t testing.TB, name string) {
	t.Helper()
	f, ok := features[name]
	require.True(t, ok, "no feature %q", name)
	if f.here() {
		return
	}
	config := os.Getenv("SANDBOX_TEST_CONFIG")
	if config == "host" && os.Geteuid() != 0 {
		config = "host-user" // an ordinary user's own machine
	}
	if knownIn(f.known, config) {
		require.FailNow(t, "missing feature", "%s: configuration %s is known to have it", name, config)
	}
	t.Skipf("needs %s", name)
}

// configurations are groups of those in internal/vmtest, for the table below.
var configurations = map[string]string{
	"ROOT":      "host guest systemd systemd-service linux-6.1 linux-5.10 linux-newest",
	"ROOT-5.11": "host guest systemd systemd-service linux-6.1 linux-newest", // root on Linux 5.11 or later
	"USER":      "host-user systemd-user linux-6.1-user",
	"NEW":       "host guest systemd systemd-service linux-newest", // root on Linux 6.3 or later
}

// knownIn tells whether known, names of configurations and of groups of them, contains config.
func knownIn(known, config string) bool {
	return slices.ContainsFunc(strings.Fields(known), func(name string) bool {
		return name == config || slices.Contains(strings.Fields(configurations[name]), config)
	})
}

// features are what tests may need: how to find out, without the help of this
// module, and which configurations of internal/vmtest have it.
var features = map[string]struct {
	here  func() bool
	known string
}{
	"root":                               {asRoot, "ROOT docker-cap docker-privileged"},
	"a machine for timing":               {func() bool { return asRoot() && !inGuest() && controller("cpu")() }, "host"},
	"a whole machine's root":             {wholeMachine, "ROOT"},
	"an ordinary user":                   {func() bool { return !asRoot() }, "USER docker"},
	"cgroup memory":                      {controller("memory"), "ROOT"},
	"cgroup pids":                        {controller("pids"), "ROOT"},
	"cgroup cpu":                         {controller("cpu"), "ROOT"},
	"cgroup cpuset":                      {controller("cpuset"), "ROOT"},
	"CPU accounting":                     {controller("cpuacct"), "ROOT"},
	"limits":                             {func() bool { return controller("memory")() || usersSystemd() }, "ROOT systemd-user"},
	"java":                               {command("java"), "ROOT USER"},
	"node":                               {command("node"), "ROOT USER"},
	"freezer":                            {controller("freezer"), "ROOT"},
	"block I/O limits":                   {func() bool { return (controller("blkio")() || controller("io")()) && onDisk("/var/tmp") }, "host"},
	"limits for loop devices":            {func() bool { return (controller("blkio")() || controller("io")()) && loopDevices() }, "ROOT"},
	"2 CPUs":                             {func() bool { var s unix.CPUSet; return unix.SchedGetaffinity(0, &s) == nil && s.Count() > 1 }, "ROOT USER"},
	"idmapped tmpfs":                     {kernelAsRoot(6, 3), "NEW"},
	"idmapped tmpfs or an ordinary user": {func() bool { return !asRoot() || kernelAsRoot(6, 3)() }, "NEW USER docker"},
	"files for several runs":             {kernel(5, 12), "ROOT-5.11 USER docker docker-cap"},
	"idmapped /usr":                      {func() bool { return kernelAsRoot(5, 19)() && onDisk("/usr") }, ""}, // the guest's is on 9p
	"overlayfs for runs":                 {kernel(5, 11), "ROOT-5.11 USER"},
	"gcc":                                {command("gcc"), "ROOT USER"},
	"python3":                            {command("python3"), "ROOT USER"},
	"a static busybox":                   {command("busybox"), "ROOT USER"},
	"root's power over networks":         {func() bool { return asRoot() && effective(unix.CAP_NET_ADMIN) }, "ROOT docker-privileged"},
	"a guest's sysctls":                  {func() bool { return os.Getenv("VM_GUEST") == "1" && os.Geteuid() == 0 }, "guest"},
	"a user's own systemd":               {usersSystemd, "systemd-user"},
	"no cgroups at hand":                 {func() bool { return !asRoot() && !controller("pids")() && !usersSystemd() }, "host-user linux-6.1-user docker"},
	"time namespaces":                    {func() bool { _, err := os.Stat("/proc/self/ns/time"); return err == nil }, "ROOT USER docker docker-cap docker-privileged"},
	"user namespaces":                    {command("unshare"), "ROOT USER docker docker-cap docker-privileged"},
}

// wholeMachine tells whether this process is root of a machine, and not of a container.
func wholeMachine() bool {
	return asRoot() && !strings.HasPrefix(os.Getenv("SANDBOX_TEST_CONFIG"), "docker")
}

// effective tells whether this process has a capability.
func effective(capability int) bool {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "\nCapEff:\t")
	var have uint64
	_, _ = fmt.Sscanf(rest, "%x", &have)
	return have>>capability&1 != 0
}

func command(name string) func() bool {
	return func() bool {
		_, err := exec.LookPath(name)
		return err == nil
	}
}

// usersSystemd tells whether this is a user on cgroup v2 with a manager of its own.
func usersSystemd() bool {
	_, err := os.Stat(os.Getenv("XDG_RUNTIME_DIR") + "/systemd/private")
	_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return os.Geteuid() != 0 && err == nil && v2 == nil
}

// onDisk tells whether a path is on ext4, xfs or btrfs.
func onDisk(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}, int64(st.Type))
}

// asRoot tells whether this process is root and has root's power over mounts, which it mostly has not in a container.
func asRoot() bool {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "\nCapEff:\t")
	var effective uint64
	_, _ = fmt.Sscanf(rest, "%x", &effective)
	return os.Geteuid() == 0 && effective>>unix.CAP_SYS_ADMIN&1 != 0
}

// kernel tells whether this is such a kernel or a later one.
func kernel(major, minor int) func() bool {
	return func() bool {
		var u unix.Utsname
		var have [2]int
		if unix.Uname(&u) == nil {
			_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1])
		}
		return have[0] > major || have[0] == major && have[1] >= minor
	}
}

// kernelAsRoot tells whether this is root on such a kernel or a later one.
func kernelAsRoot(major, minor int) func() bool {
	return func() bool { return asRoot() && kernel(major, minor)() }
}

// controller tells whether this process is root and a cgroup controller is there, mounted writable.
func controller(name string) func() bool {
	return func() bool {
		if os.Geteuid() != 0 {
			return false
		}
		for _, m := range mountPoints() {
			_, after, _ := strings.Cut(m, " - ")
			fields := strings.Fields(after) // type, source, options
			switch {
			case unix.Access(strings.Fields(m)[4], unix.W_OK) != nil:
			case len(fields) == 3 && fields[0] == "cgroup" && slices.Contains(strings.Split(fields[2], ","), name):
				return true
			case len(fields) == 3 && fields[0] == "cgroup2":
				b, _ := os.ReadFile(filepath.Join(strings.Fields(m)[4], "cgroup.controllers"))
				have := strings.Fields(string(b))
				builtIn := name == "cpuacct" || name == "freezer"
				if slices.Contains(have, name) || builtIn && slices.Contains(have, "memory") {
					return true
				}
			}
		}
		return false
	}
}
