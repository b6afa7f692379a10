//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

func init() {
	testkit.AddHelper("cpus", func([]string) error {
		fmt.Println(runtime.GOMAXPROCS(0))
		return nil
	})
}

// seenLimits prints the limits that a run sees: memory in bytes, and CPUs as quota and period, on
// v2 and on v1.
const seenLimits = `cd /sys/fs/cgroup; if [ -e cgroup.procs ]; then cat memory.max cpu.max; else
	cat memory/memory.limit_in_bytes; echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi`

// A run sees its own limits in every kind of root, as any user, and however it was started.
func TestRootlessLimitsAreSeen(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "limits")
	limits := sandbox.New(sandbox.WithMemory(96*sandbox.MiB), sandbox.WithCPUs(0.5))
	script := sandbox.WithCommand("sh", "-c", seenLimits)
	boxes := map[string]*sandbox.Sandbox{
		"default":        limits,
		"as uid 0":       limits.With(sandbox.WithUser(0, 0)),
		"prepared":       runs.Prepared(t, 1, sandbox.WithMemory(96*sandbox.MiB), sandbox.WithCPUs(0.5)),
		"with much else": limits.With(sandbox.WithPIDs(99), sandbox.WithoutSeccomp(), sandbox.WithTimeOffset(time.Second)),
		"an empty root":  emptyWithSh(t).With(sandbox.WithMemory(96*sandbox.MiB), sandbox.WithCPUs(0.5)),
		"a directory":    limits.With(sandbox.WithRootfs(sandbox.DirRootfs(shRoot(t, "/dev", "/proc", "/sys", "/tmp", "/home/sandbox")))),
	}
	if testkit.AsRoot() { // cpuset is not delegated to others
		boxes["with much else"] = boxes["with much else"].With(sandbox.WithCPUSet("0"))
	}
	if testkit.Kernel(5, 11) {
		boxes["a writable root"] = limits.With(sandbox.WithWritableRoot(sandbox.MiB))
		boxes["a directory without mount points"] = limits.With(sandbox.WithRootfs(sandbox.DirRootfs(shRoot(t))))
		boxes["a writable directory"] = limits.With(sandbox.WithRootfs(sandbox.DirRootfs(shRoot(t))), sandbox.WithWritableRoot(sandbox.MiB))
		boxes["layers"] = limits.With(sandbox.WithRootfs(sandbox.LayersRootfs(shRoot(t), testkit.OpenDir(t))))
	}
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		boxes["without a user namespace"] = runs.HostUser(limits)
	}
	for name, s := range boxes {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "100663296\n50000 100000", runs.Output(t, s.With(script)))
			require.Equal(t, "refused", runs.Output(t, s.With(sandbox.WithCommand("sh", "-c", "mkdir /sys/fs/cgroup/x 2>/dev/null || echo refused"))))
		})
	}
}

// A run without limits, or one that mounts something of its own at /sys, sees none, and a pool's
// runs see only the pool's.
func TestRootlessLimitsThatAreNotSeen(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "limits")
	list := `grep -c " - cgroup" /proc/self/mountinfo; true`
	require.Equal(t, "0", runs.Output(t, runs.Shell(list)))
	require.Equal(t, "0", runs.Output(t, runs.Shell(list, sandbox.WithMemory(64*sandbox.MiB), sandbox.WithTmpfs("/sys", sandbox.MiB))))
	require.Equal(t, "mine", runs.Output(t, runs.Shell("ls /sys/fs/cgroup", sandbox.WithMemory(64*sandbox.MiB), sandbox.WithFile("/sys/fs/cgroup/mine", nil, 0o644))))
	bare := testkit.BusyboxRoot(t, "/dev", "/proc", "/tmp", "/home/sandbox") // gets no layer with a mount point only for that
	require.Equal(t, "bin dev etc home proc tmp", runs.Output(t, sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(bare)), sandbox.WithMemory(64*sandbox.MiB),
		sandbox.WithCommand("sh", "-c", "cd / && echo *"))))
	for _, kv := range [][2]string{{"", "67108864\n100000 100000"}, {"own", "33554432\n100000 100000"}} {
		s := sandbox.New(sandbox.WithCommand("sh", "-c", seenLimits), sandbox.WithMemory(sandbox.GiB))
		if kv[0] != "" {
			s = s.With(sandbox.WithMemory(32 * sandbox.MiB))
		}
		jobs := pool.New(s, 1, pool.Memory(64*sandbox.MiB), pool.CPUs(1))
		var out strings.Builder
		_, err := jobs.Run(testkit.Deadline(t), sandbox.WithStdout(&out))
		require.NoError(t, err)
		require.NoError(t, jobs.Close(testkit.Deadline(t)))
		require.Equal(t, kv[1], strings.TrimSpace(out.String()))
	}
}

// Language runtimes use the limits that they see.
func TestRootlessRuntimesSeeLimits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "limits")
	limits := sandbox.New(sandbox.WithMemory(256*sandbox.MiB), sandbox.WithCPUs(1))
	t.Run("Go", func(t *testing.T) {
		want := min(runtime.NumCPU(), 2) // it never plans for less than two CPUs: runtime.adjustCgroupGOMAXPROCS
		require.Equal(t, strconv.Itoa(want), runs.Output(t, runs.Helper("cpus").With(sandbox.WithCPUs(1))))
	})
	t.Run("Java", func(t *testing.T) {
		testkit.Need(t, "java")
		java := limits.With(sandbox.WithCommand("java", "-XX:+PrintFlagsFinal", "-Xlog:os+container=debug", "-Xshare:auto", "-version"))
		out := runs.Output(t, java)
		m := regexp.MustCompile(`\bMaxHeapSize\s+= (\d+)`).FindStringSubmatch(out)
		require.NotNil(t, m, out)
		heap, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		require.LessOrEqual(t, heap, 128<<20, "half of the limit, as it is small")
		require.Regexp(t, `UseSerialGC\s+= true`, out, "with one CPU there is no other")
	})
	t.Run("Node", func(t *testing.T) {
		testkit.Need(t, "node")
		out := runs.Output(t, limits.With(sandbox.WithCommand("node", "-p", "process.constrainedMemory ? process.constrainedMemory() : 268435456")))
		require.Equal(t, "268435456", out)
	})
}

// The files by which programs count CPUs say the same as outside, in every root, and there are no
// others.
func TestRootlessSys(t *testing.T) {
	t.Parallel()
	cpus := "/sys/devices/system/cpu/"
	outside, err := exec.Command("cat", cpus+"online", cpus+"possible", cpus+"present", cpus+"kernel_max").Output()
	require.NoError(t, err)
	show := sandbox.WithCommand("sh", "-c", "cd "+cpus+"; cat online possible present kernel_max; find /sys -type f -o -type l; touch /sys/x 2>/dev/null && echo written; true")
	known := regexp.MustCompile(`^/sys/(devices/system/(cpu/(online|possible|present|kernel_max|cpu\d+/topology/\w+)|node/(online|possible|node\d+/cpu(list|map)))|kernel/mm/transparent_hugepage/(enabled|hpage_pmd_size))$`)
	boxes := map[string]*sandbox.Sandbox{
		"default":  sandbox.New(),
		"an image": sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(shRoot(t, "/dev", "/proc", "/sys/block/sda", "/tmp", "/home/sandbox")))),
		"empty":    emptyWithSh(t),
		"as uid 0": sandbox.New(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_DAC_OVERRIDE")),
	}
	if testkit.Kernel(5, 11) {
		boxes["writable"] = sandbox.New(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0))
		boxes["another image"] = sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(shRoot(t))))
	}
	for name, s := range boxes {
		t.Run(name, func(t *testing.T) {
			out := runs.Output(t, s.With(show))
			require.True(t, strings.HasPrefix(out, string(outside)), "%s", out)
			for _, path := range strings.Fields(strings.TrimPrefix(out, string(outside))) {
				require.Regexp(t, known, path)
			}
		})
	}
	here, err := exec.Command("sh", "-c", "getconf _NPROCESSORS_CONF; getconf _NPROCESSORS_ONLN; nproc; lscpu -p=CPU,CORE,SOCKET,NODE").Output()
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(here)), runs.Output(t, runs.Shell("getconf _NPROCESSORS_CONF; getconf _NPROCESSORS_ONLN; nproc; lscpu -p=CPU,CORE,SOCKET,NODE")))
	testkit.Need(t, "python3")
	require.Equal(t, strconv.Itoa(onlineCPUs(t)), runs.Output(t, sandbox.New(sandbox.WithCommand("/usr/bin/python3", "-c", "import os; print(os.cpu_count())"))))
}

func onlineCPUs(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("getconf", "_NPROCESSORS_ONLN").Output()
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	return n
}

// shRoot is a directory with a shell, its tools and the given mount points.
func shRoot(t *testing.T, dirs ...string) string {
	t.Helper()
	root := testkit.BusyboxRoot(t, dirs...)
	require.NoError(t, os.Symlink("busybox", root+"/bin/find"))
	return root
}

// emptyWithSh is a root with nothing but a shell and its tools.
func emptyWithSh(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	testkit.Need(t, "a static busybox")
	exe, err := exec.LookPath("busybox")
	require.NoError(t, err)
	s := sandbox.New(sandbox.WithRootfs(sandbox.EmptyRootfs()))
	for _, applet := range []string{"sh", "cat", "find", "touch", "mkdir"} {
		s = s.With(sandbox.WithReadOnlyBind(exe, "/bin/"+applet))
	}
	return s
}
