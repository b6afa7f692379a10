//go:build linux

package testkit

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit/matrix"
)

// Need skips the test if this machine lacks the feature, and fails it if the machine's
// configuration is known to have that. It is the only way to skip a test.
func Need(t testing.TB, name string) {
	t.Helper()
	f, ok := features[name]
	require.True(t, ok, "no feature %q", name)
	if f.here() {
		return
	}
	if c, ok := matrix.Named(configuration()); ok && knownIn(f.known, c) {
		require.FailNow(t, "missing feature", "%s: configuration %s is known to have it", name, c.Name)
	}
	t.Skipf("needs %s", name)
}

// configuration returns the name of the configuration in which the tests run, or "" if vmtest did
// not start them.
func configuration() string {
	name := os.Getenv("SANDBOX_TEST_CONFIG")
	if name == "host" && os.Geteuid() != 0 {
		return "host-user" // an ordinary user's own machine
	}
	return name
}

// groups are names for sets of configurations, used in the table below. With a version behind it,
// such as ROOT-5.11, a group is limited to those whose kernel is that one or a later one.
var groups = map[string]func(matrix.Configuration) bool{
	"ROOT":  matrix.Configuration.Root,
	"USER":  matrix.Configuration.User,
	"HERE":  func(c matrix.Configuration) bool { return !c.Guest() },
	"GUEST": matrix.Configuration.Guest,
}

// knownIn reports whether known, names of configurations and of groups of them, contains c.
func knownIn(known string, c matrix.Configuration) bool {
	return slices.ContainsFunc(strings.Fields(known), func(name string) bool {
		group, version, _ := strings.Cut(name, "-")
		is, ok := groups[group]
		if !ok {
			return name == c.Name
		}
		var major, minor int
		_, _ = fmt.Sscanf(version, "%d.%d", &major, &minor)
		return is(c) && c.Since(major, minor)
	})
}

type feature struct {
	here  func() bool
	known string
}

// features are what tests may need: a check that does not use this module, and the configurations
// of internal/vmtest that have it.
var features = map[string]feature{
	"root":                           {AsRoot, "ROOT docker-cap docker-privileged"},
	"a machine for timing":           {func() bool { return AsRoot() && !InGuest && Controller("cpu") }, "host"},
	"time to build programs":         {func() bool { return !InGuest && found("go")() }, "host"},
	"a machine that is not emulated": {func() bool { return !InGuest }, "HERE"},
	"Debian's archive": {func() bool {
		return slices.Contains([]string{"", "host"}, configuration()) && AsRoot() && found("mmdebstrap")()
	}, "host"},
	"umoci":                   {found("umoci"), "host"},
	"musl":                    {found("musl-gcc"), "host"}, // Debian's musl-tools
	"a whole machine's root":  {WholeMachine, "ROOT"},
	"an ordinary user":        {func() bool { return !AsRoot() }, "USER docker"},
	"cgroup v1":               {func() bool { return exists("/sys/fs/cgroup/memory") }, ""},
	"cgroup v2":               {mountedV2, "host"}, // maybe beside v1
	"cgroup memory":           {controller("memory"), "ROOT"},
	"cgroup pids":             {controller("pids"), "ROOT"},
	"cgroup cpu":              {controller("cpu"), "ROOT"},
	"cgroup cpuset":           {controller("cpuset"), "ROOT"},
	"cgroup io":               {blockIO, "ROOT"},
	"CPU accounting":          {controller("cpuacct"), "ROOT"},
	"limits":                  {func() bool { return Controller("memory") || usersSystemd() }, "ROOT systemd-user"},
	"java":                    {found("java"), "ROOT USER"},
	"node":                    {found("node"), "ROOT USER"},
	"freezer":                 {controller("freezer"), "ROOT"},
	"block I/O limits":        {func() bool { return blockIO() && onDisk("/var/tmp") }, "host"},
	"limits for loop devices": {func() bool { return blockIO() && loopDevices() }, "ROOT"},
	"disks for file systems": {func() bool {
		return WholeMachine() && Kernel(5, 12) && loopDevices() && found("mkfs.ext4")() && onDisk("/var/tmp")
	}, "host"},
	"/dev/fuse":                          {func() bool { return exists("/dev/fuse") }, "ROOT"},
	"2 CPUs":                             {func() bool { var s unix.CPUSet; return unix.SchedGetaffinity(0, &s) == nil && s.Count() > 1 }, "ROOT USER"},
	"idmapped tmpfs":                     {kernelAsRoot(6, 3), "ROOT-6.3"},
	"idmapped tmpfs or an ordinary user": {func() bool { return !AsRoot() || Kernel(6, 3) }, "ROOT-6.3 USER docker"},
	"ranges of ports by socket":          {kernel(6, 3), "ROOT-6.3 USER-6.3"},
	"files for several runs":             {kernel(5, 12), "ROOT-5.12 USER docker docker-cap"},
	"idmapped /usr":                      {func() bool { return AsRoot() && Kernel(5, 19) && onDisk("/usr") }, ""}, // the guest's is on 9p
	"overlayfs for runs":                 {kernel(5, 11), "ROOT-5.11 USER"},
	"root's mounts of overlayfs":         {kernelAsRoot(5, 11), "ROOT-5.11 docker-cap docker-privileged"},
	"files that hide others":             {layered(true), "GUEST-6.6"}, // its tmpfs; elsewhere it depends
	"extended attributes for users":      {layered(false), "GUEST-6.6"},
	"runc":                               {found("runc"), "host"},
	"crun":                               {found("crun"), "host"},
	// See docs/WALLS.md.
	"no filter but each run's own": {func() bool { return Wall != "systemd-nspawn" }, ""},
	"systemd-nspawn":               {found("systemd-nspawn"), "host"},
	"lxc":                          {found("lxc-start"), "host"},
	"gcc":                          {found("gcc"), "ROOT USER"},
	"PostgreSQL":                   {postgres, ""}, // none installs its 50 MB
	// docker.io, libvirt-daemon: CI's machine has none.
	"Docker's daemon":            {dockerDaemon, ""},
	"libvirt's daemon":           {func() bool { return answers("/run/libvirt/virtlxcd-sock") || answers("/run/libvirt/libvirt-sock") }, ""},
	"SANDBOX_COMPOSE_SHAPES=all": {func() bool { return os.Getenv("SANDBOX_COMPOSE_SHAPES") == "all" }, ""},
	"SANDBOX_POSTGRES=50":        {func() bool { return os.Getenv("SANDBOX_POSTGRES") != "" }, ""},
	// docs/WALLS.md has how to build it.
	"runsc":                       {found("runsc"), ""},
	"nginx":                       {found("nginx"), ""},
	"redis-server":                {found("redis-server"), ""},
	"etcd":                        {found("etcd"), ""},
	"RabbitMQ":                    {func() bool { return exists("/usr/lib/rabbitmq/bin/rabbitmq-server") }, ""},
	"python3":                     {found("python3"), "ROOT USER"},
	"a static busybox":            {found("busybox"), "ROOT USER"},
	"root's power over networks":  {func() bool { return AsRoot() && Effective(unix.CAP_NET_ADMIN) }, "ROOT docker-privileged"},
	"root's power over processes": {func() bool { return AsRoot() && Effective(unix.CAP_SYS_PTRACE) }, "ROOT docker-privileged"},
	"a guest's sysctls":           {func() bool { return InGuest && os.Geteuid() == 0 }, "guest"},
	"a clock of its own":          {func() bool { return InGuest && os.Geteuid() == 0 }, "guest"},
	"a user's own systemd":        {usersSystemd, "systemd-user"},
	"no cgroups at hand":          {func() bool { return !AsRoot() && !Controller("pids") && !usersSystemd() }, "host-user linux-6.1-user docker"},
	"time namespaces":             {func() bool { return exists("/proc/self/ns/time") }, "ROOT USER docker docker-cap docker-privileged"},
	// By SO_NETNS_COOKIE.
	"network namespaces that can be told apart": {kernel(5, 14), "ROOT-5.14 USER-5.14 docker docker-cap docker-privileged"},
	"ping":       {pings, "ROOT"}, // elsewhere net.ipv4.ping_group_range says
	"nft_tproxy": {tproxy, ""},    // a module of the kernel
	"a module nft_tproxy to unload": {func() bool {
		return InGuest && AsRoot() && exec.Command("/sbin/modprobe", "-n", "nft_tproxy").Run() == nil
	}, ""},
	"no way to ping":  {func() bool { return !pings() }, "host-user"},
	"IPv6":            {func() bool { return len(Loopbacks()) > 1 }, ""}, // machines and containers may have it switched off
	"user namespaces": {func() bool { return exec.Command("unshare", "-Ur", "true").Run() == nil }, "ROOT USER docker docker-cap docker-privileged"},
}

// WholeMachine reports whether this process is root of a machine rather than of a container.
func WholeMachine() bool {
	return AsRoot() && !strings.HasPrefix(os.Getenv("SANDBOX_TEST_CONFIG"), "docker")
}

// Effective reports whether this process has a capability.
func Effective(capability int) bool {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "\nCapEff:\t")
	var have uint64
	_, _ = fmt.Sscanf(rest, "%x", &have)
	return have>>capability&1 != 0
}

// AsRoot reports whether this process is root and has root's power over mounts, which it usually
// lacks in a container.
func AsRoot() bool { return os.Geteuid() == 0 && Effective(unix.CAP_SYS_ADMIN) }

// Kernel reports whether this machine's kernel is that one or a later one.
func Kernel(major, minor int) bool {
	var u unix.Utsname
	var have [2]int
	if unix.Uname(&u) == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1])
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}

func kernel(major, minor int) func() bool { return func() bool { return Kernel(major, minor) } }

func kernelAsRoot(major, minor int) func() bool {
	return func() bool { return AsRoot() && Kernel(major, minor) }
}

// Controller reports whether this process is root and a cgroup controller is mounted writable.
func Controller(name string) bool {
	if os.Geteuid() != 0 {
		return false
	}
	for _, m := range MountPoints() {
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

func controller(name string) func() bool { return func() bool { return Controller(name) } }

// mountedV2 reports whether there is a hierarchy of cgroup v2, with or without controllers.
func mountedV2() bool {
	return slices.ContainsFunc(MountPoints(), func(m string) bool { return strings.Contains(m, " - cgroup2 ") })
}

// blockIO reports whether the block I/O of runs can be limited.
func blockIO() bool { return Controller("blkio") || Controller("io") }

// found returns a check for a program with that name.
func found(name string) func() bool {
	return func() bool {
		_, err := exec.LookPath(name)
		return err == nil
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// usersSystemd reports whether this is a user on cgroup v2 with a systemd of its own.
func usersSystemd() bool {
	return os.Geteuid() != 0 && exists(os.Getenv("XDG_RUNTIME_DIR")+"/systemd/private") && exists("/sys/fs/cgroup/cgroup.controllers")
}

// onDisk reports whether a path is on ext4, xfs or btrfs.
func onDisk(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}, int64(st.Type))
}

// tproxy reports whether the kernel has nft_tproxy, as far as it shows what it was built with, or
// as a module.
func tproxy() bool {
	built, _ := exec.Command("zcat", "/proc/config.gz").Output()
	return bytes.Contains(built, []byte("CONFIG_NFT_TPROXY=y")) || exec.Command("/sbin/modprobe", "-n", "nft_tproxy").Run() == nil
}

// pings reports whether this process may ping.
func pings() bool {
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_RAW} {
		if s, err := unix.Socket(unix.AF_INET, kind, unix.IPPROTO_ICMP); err == nil {
			unix.Close(s)
			return true
		}
	}
	return false
}

// Loopbacks returns the addresses of the loopback interface: of IPv4 and, if it has that, of IPv6.
func Loopbacks() []string {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return []string{"127.0.0.1"}
	}
	l.Close()
	return []string{"127.0.0.1", "::1"}
}

// loopDevices reports whether there are loop devices. It asks for the module that makes them.
func loopDevices() bool {
	_ = exec.Command("modprobe", "loop").Run()
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// layered returns a check whether a directory for temporary files supports what overlayfs stores in
// files: user attributes and, if asked for, the devices that hide files of lower layers.
func layered(whiteouts bool) func() bool {
	return func() bool {
		dir, err := os.MkdirTemp("", "sandbox-test-")
		if err != nil {
			return false
		}
		defer os.RemoveAll(dir)
		return unix.Setxattr(dir, "user.test", nil, 0) == nil &&
			(!whiteouts || unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0) == nil)
	}
}

// dockerDaemon reports whether a daemon answers where the module docker asks.
func dockerDaemon() bool {
	path, isPath := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	if !isPath {
		path = "/var/run/docker.sock"
	}
	return answers(path)
}

// answers reports whether a daemon listens at a socket.
func answers(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func postgres() bool {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	return found != nil
}
