//go:build linux

package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

func TestTimeout(t *testing.T) {
	t.Parallel()
	need(t, "root")
	const limit = 300 * time.Millisecond
	mark := aLongTime()
	for _, script := range []string{
		"exec sleep " + mark,
		"trap '' TERM INT HUP; while :; do sleep " + mark + "; done",
		"setsid sh -c 'sleep " + mark + " & sleep " + mark + "' & sleep " + mark,
	} {
		result, err := shell(script, sandbox.WithTimeout(limit)).Run(deadline(t))
		require.ErrorIs(t, err, sandbox.ErrTimeout)
		require.EqualError(t, err, "sandbox: timed out (signal: killed)")
		require.Equal(t, sandbox.TimedOut, result.Reason)
		require.Equal(t, -1, result.ExitCode)
		require.Equal(t, syscall.SIGKILL, result.Signal)
		require.GreaterOrEqual(t, result.Usage.Wall, limit)
		requireGone(t, mark)
	}
	_, err := shell("exit 0", sandbox.WithTimeout(patience)).Run(deadline(t))
	require.NoError(t, err)
}

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	need(t, "root")
	var stdout, stderr strings.Builder
	result, err := shell("yes | head -c 100000; sleep 1000", sandbox.WithOutputLimit(1234),
		sandbox.WithStdout(&stdout), sandbox.WithStderr(&stderr)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, sandbox.OutputExceeded, result.Reason)
	require.Equal(t, 1234, stdout.Len())
	require.Zero(t, stderr.Len())

	// Also if the command ends by itself at once, and for both outputs together.
	stdout.Reset()
	_, err = shell("printf 12345; printf 67890 >&2", sandbox.WithOutputLimit(9),
		sandbox.WithStdout(&stdout), sandbox.WithStderr(&stderr)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, 9, stdout.Len()+stderr.Len())

	out, err := shell("printf 12345; printf 67890 >&2", sandbox.WithOutputLimit(10)).CombinedOutput(deadline(t))
	require.NoError(t, err)
	require.Equal(t, "1234567890", string(out))

	// What goes to a file or nowhere counts too.
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer file.Close()
	_, err = shell("yes", sandbox.WithOutputLimit(5000), sandbox.WithStdout(file)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	info, err := file.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 5000, info.Size())
	_, err = shell("yes >&2", sandbox.WithOutputLimit(5000)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	need(t, "cgroup memory")
	limit := sandbox.WithMemory(64 * sandbox.MiB)
	out, err := helper("alloc", "20").With(limit).Output(deadline(t))
	require.NoError(t, err)
	require.Equal(t, "allocated\n", string(out))

	result, err := helper("alloc", "100").With(limit).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Equal(t, sandbox.OutOfMemory, result.Reason)
	require.Equal(t, syscall.SIGKILL, result.Signal)
	require.Positive(t, result.Usage.OOMKills)
	if slices.Contains(result.Usage.Uncounted, "MemoryPeak") { // the pages of files that the command shares are in it then
		require.InDelta(t, 64*sandbox.MiB, result.Usage.MemoryPeak, 16*sandbox.MiB)
	} else {
		require.InDelta(t, 64*sandbox.MiB, result.Usage.MemoryPeak, 8*sandbox.MiB)
	}

	// The kernel kills a child of the shell, which then fails; on v2 it kills all.
	result, err = helper("alloc").With(limit, sandbox.WithCommand("sh", "-c", "/helper alloc 100; exit 7")).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Equal(t, sandbox.OutOfMemory, result.Reason)
	require.Contains(t, []int{7, -1}, result.ExitCode)

	// Files in memory count.
	result, err = shell("head -c 100M /dev/zero >/tmp/file", limit).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Positive(t, result.Usage.OOMKills)
	require.Equal(t, "33554432", output(t, shell("head -c 32M /dev/zero >/tmp/file; stat -c %s /tmp/file", limit)))
}

// The least memory with which a program that does nothing runs. What the library itself needs is charged
// to the cell.
func TestLeastMemory(t *testing.T) {
	t.Parallel()
	need(t, "cgroup memory")
	static := sandbox.New(sandbox.WithCommand("/true"), sandbox.WithReadOnlyBind(staticTrue(t), "/true"))
	for name, s := range map[string]*sandbox.Sandbox{"a static program": static, "true": sandbox.New(sandbox.WithCommand("true"))} {
		limit := int64(64 * sandbox.KiB)
		for ; ; limit += 32 * sandbox.KiB {
			_, err := s.With(sandbox.WithMemory(limit)).Run(deadline(t))
			if err == nil {
				break
			}
			require.ErrorIs(t, err, sandbox.ErrOutOfMemory, "%s with %d bytes", name, limit)
		}
		t.Logf("%s runs with %d KiB", name, limit/sandbox.KiB)
		require.LessOrEqual(t, limit, int64(sandbox.MiB), name)
	}
}

func TestProcessLimit(t *testing.T) {
	t.Parallel()
	need(t, "cgroup pids")
	mark := aLongTime()
	bomb := "bomb() { bomb | bomb & }; bomb; for i in $(seq 100); do sleep " + mark + " & done; wait"
	for _, s := range []*sandbox.Sandbox{
		shell(bomb, sandbox.WithPIDs(20), sandbox.WithTimeout(time.Second)),
		shell(bomb, sandbox.WithTimeout(time.Second)), // the default limit
	} {
		result, err := s.Run(deadline(t))
		require.Error(t, err)
		require.Contains(t, []sandbox.Reason{sandbox.TimedOut, sandbox.PIDsExceeded}, result.Reason)
		require.LessOrEqual(t, result.Usage.PIDsPeak, uint64(512))
		requireGone(t, mark)
	}
	result, err := shell("(true) && (true)", sandbox.WithPIDs(1)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.PIDsExceeded, result.Reason)
	require.Positive(t, result.ExitCode)
	require.Positive(t, result.Usage.PIDsRefused)
	result, err = shell("mkfifo /tmp/f; while :; do { : </tmp/f; } & done").Run(deadline(t)) // the default limit
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.PIDsExceeded, result.Reason)

	// The limit had no part in it.
	result, err = shell("exit 3", sandbox.WithPIDs(5)).Run(deadline(t))
	require.NotErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.Exited, result.Reason)
	require.Zero(t, result.Usage.PIDsRefused)
	// Nor does it in a command that could do without.
	result, err = shell("(while :; do sleep "+mark+" & done); exit 0", sandbox.WithPIDs(8)).Run(deadline(t))
	require.NoError(t, err)
	require.Positive(t, result.Usage.PIDsRefused)
	require.Equal(t, "5", output(t, shell("for i in $(seq 5); do echo; done | wc -l", sandbox.WithPIDs(4))))
}

func TestCPULimit(t *testing.T) {
	need(t, "cgroup cpu")
	result, err := helper("spin", "400ms").With(sandbox.WithCPUs(0.2)).Run(deadline(t))
	require.NoError(t, err)
	used := result.Usage.UserCPU + result.Usage.SystemCPU
	require.GreaterOrEqual(t, used, 400*time.Millisecond)
	require.Positive(t, result.Usage.Throttled)
	require.Greater(t, result.Usage.Wall, used*5/2, "0.2 CPUs take five times as long")
}

func TestCPUWeight(t *testing.T) {
	need(t, "cgroup cpu")
	need(t, "cgroup cpuset")
	heavy := start(t, helper("spin", "1h").With(sandbox.WithCPUSet("0"), sandbox.WithCPUWeight(2000)))
	light := start(t, helper("spin", "1h").With(sandbox.WithCPUSet("0"), sandbox.WithCPUWeight(100)))
	eventually(t, "the heavy run has much more of the CPU", func() bool {
		h, err := heavy.Usage()
		require.NoError(t, err)
		l, err := light.Usage()
		require.NoError(t, err)
		return h.UserCPU+h.SystemCPU > 500*time.Millisecond && h.UserCPU+h.SystemCPU > 3*(l.UserCPU+l.SystemCPU)
	})
}

func TestCPUSet(t *testing.T) {
	t.Parallel()
	need(t, "cgroup cpuset")
	require.Equal(t, "0", output(t, helper("affinity").With(sandbox.WithCPUSet("0"))))
	need(t, "2 CPUs")
	require.Equal(t, "1", output(t, helper("affinity").With(sandbox.WithCPUSet("1"))))
	require.Equal(t, "0\n1", output(t, helper("affinity").With(sandbox.WithCPUSet("0-1"))))
	_, err := shell("", sandbox.WithCPUSet("0,999")).Run(deadline(t))
	require.ErrorContains(t, err, `sandbox: WithCPUSet: "0,999": there is no CPU 999`)
}

func TestCPUTime(t *testing.T) {
	need(t, "CPU accounting")
	const limit = 300 * time.Millisecond
	for _, s := range []*sandbox.Sandbox{
		shell("while :; do :; done"),
		shell("(while :; do :; done) & (while :; do :; done) & wait"),
		shell("while :; do /bin/true; done"), // each of them is short
	} {
		result, err := s.With(sandbox.WithCPUTime(limit)).Run(deadline(t))
		require.ErrorIs(t, err, sandbox.ErrCPUTime)
		require.Equal(t, sandbox.CPUTimedOut, result.Reason)
		used := result.Usage.UserCPU + result.Usage.SystemCPU
		require.GreaterOrEqual(t, used, limit)
		require.Less(t, used, limit+patience/100)
	}
	result, err := shell("sleep 0.5", sandbox.WithCPUTime(patience)).Run(deadline(t))
	require.NoError(t, err)
	require.Less(t, result.Usage.UserCPU+result.Usage.SystemCPU, result.Usage.Wall)
}

func TestRlimits(t *testing.T) {
	t.Parallel()
	need(t, "root")
	require.Equal(t, "0\n1024", output(t, shell("ulimit -Hc; ulimit -Sn")))
	require.Equal(t, "100\n200\n8192\n64", output(t, shell("ulimit -Sn; ulimit -Hn; ulimit -Hs; ulimit -f",
		sandbox.WithRlimit("nofile", 100, 200), sandbox.WithRlimit("stack", 8<<20, 8<<20), sandbox.WithRlimit("fsize", 64*512, 1<<20))))
	_, err := shell("head -c 100000 /dev/zero >/tmp/x", sandbox.WithRlimit("fsize", 1000, 1000)).Run(deadline(t))
	exitError(t, err)
	_, err = shell("", sandbox.WithRlimit("beer", 1, 2), sandbox.WithRlimit("cpu", 2, 1)).Run(deadline(t))
	require.ErrorContains(t, err, `WithRlimit: "beer" is unknown`)
	require.ErrorContains(t, err, "WithRlimit: cpu: the soft limit 2 is above the hard limit 1")

	var own unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &own))
	_, err = shell("", sandbox.WithRlimit("nofile", own.Max+1, own.Max+1)).Run(deadline(t))
	if err != nil { // with CAP_SYS_RESOURCE, which root may have, it works
		require.NotEmpty(t, setupError(t, err, "prlimit64").Hint)
	}
}

func TestSwap(t *testing.T) {
	t.Parallel()
	need(t, "cgroup memory")
	_, err := shell("", sandbox.WithMemory(64*sandbox.MiB), sandbox.WithSwap(64*sandbox.MiB)).Run(deadline(t))
	if err != nil {
		setupError(t, err, "WithSwap")
	}
	_, err = shell("", sandbox.WithSwap(sandbox.MiB)).Run(deadline(t))
	require.ErrorContains(t, err, "WithSwap: means nothing without WithMemory")
}

// Every wrong option is named, all of them at once.
func TestWrongOptions(t *testing.T) {
	t.Parallel()
	_, err := sandbox.New(
		sandbox.WithEnv("no equals sign"), sandbox.WithDir("relative"), sandbox.WithTimeout(-1), sandbox.WithOutputLimit(-1),
		sandbox.WithMemory(64), sandbox.WithCPUs(1e9), sandbox.WithCPUWeight(10001), sandbox.WithCPUSet("all"), sandbox.WithPIDs(-1),
		sandbox.WithCPUTime(-1), sandbox.WithCgroupParent("a/b"), sandbox.WithHostname(""), sandbox.WithUser(-1, 70000),
		sandbox.WithNetwork(99), sandbox.WithRootfs(sandbox.DirRootfs("relative")), sandbox.WithBind("/usr", "/proc/x"),
		sandbox.WithReadOnlyBind("relative", "/x"), sandbox.WithTmpfs("/y", -1), sandbox.WithFile("/z", nil, os.ModeSetuid),
		sandbox.WithWritableRoot(-1), sandbox.WithCapabilities("NET_ADMIN"),
	).Run(deadline(t))
	for _, option := range strings.Fields("WithCommand WithEnv WithDir WithTimeout WithOutputLimit WithMemory WithCPUs WithCPUWeight" +
		" WithCPUSet WithPIDs WithCPUTime WithCgroupParent WithHostname WithUser WithNetwork WithRootfs WithBind" +
		" WithReadOnlyBind WithTmpfs WithFile WithWritableRoot WithCapabilities") {
		require.ErrorContains(t, err, "sandbox: "+option+": ")
	}
	var exit *sandbox.ExitError
	require.False(t, errors.As(err, &exit))
}

// Limits in a cgroup of the caller's choice.
func TestCgroupParent(t *testing.T) {
	t.Parallel()
	need(t, "cgroup pids")
	parent := fmt.Sprintf("/test-of-parent-%d", os.Getpid())
	for _, mount := range cgroupMounts() {
		dir := mount + parent
		require.NoError(t, os.Mkdir(dir, 0o755))
		defer func() { require.NoError(t, unix.Rmdir(dir), dir) }()
	}
	c, err := sandbox.NewCell(sandbox.CellCgroupParent(parent))
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	p := start(t, shell("sleep 1000", sandbox.WithCell(c)))
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/cgroup")
	require.NoError(t, err)
	require.Contains(t, string(b), ":"+parent+"/")
	_, err = shell("", sandbox.WithCell(c), sandbox.WithCgroupParent("/other")).Run(deadline(t))
	require.ErrorContains(t, err, "WithCell")
}
