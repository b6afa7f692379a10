//go:build linux

package e2e

import (
	"context"
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
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func TestTimeout(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	const limit = 300 * time.Millisecond
	mark := testkit.ALongTime()
	for _, script := range []string{
		"exec sleep " + mark,
		"trap '' TERM INT HUP; while :; do sleep " + mark + "; done",
		"setsid sh -c 'sleep " + mark + " & sleep " + mark + "' & sleep " + mark,
	} {
		result, err := runs.Shell(script, sandbox.WithTimeout(limit)).Run(testkit.Deadline(t))
		require.ErrorIs(t, err, sandbox.ErrTimeout)
		require.EqualError(t, err, "sandbox: timed out (signal: killed)")
		require.Equal(t, sandbox.TimedOut, result.Reason)
		require.Equal(t, -1, result.ExitCode)
		require.Equal(t, syscall.SIGKILL, result.Signal)
		require.GreaterOrEqual(t, result.Usage.Wall, limit)
		testkit.RequireGone(t, mark)
	}
	_, err := runs.Shell("exit 0", sandbox.WithTimeout(testkit.Patience)).Run(testkit.Deadline(t))
	require.NoError(t, err)
}

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	var stdout, stderr strings.Builder
	result, err := runs.Shell("yes | head -c 100000; sleep 1000", sandbox.WithOutputLimit(1234),
		sandbox.WithStdout(&stdout), sandbox.WithStderr(&stderr)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, sandbox.OutputExceeded, result.Reason)
	require.Equal(t, 1234, stdout.Len())
	require.Zero(t, stderr.Len())

	// Also if the command ends at once, and for both outputs together.
	stdout.Reset()
	_, err = runs.Shell("printf 12345; printf 67890 >&2", sandbox.WithOutputLimit(9),
		sandbox.WithStdout(&stdout), sandbox.WithStderr(&stderr)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, 9, stdout.Len()+stderr.Len())

	out, err := runs.Shell("printf 12345; printf 67890 >&2", sandbox.WithOutputLimit(10)).CombinedOutput(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, "1234567890", string(out))

	// Output to a file or to nowhere counts too.
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer file.Close()
	_, err = runs.Shell("yes", sandbox.WithOutputLimit(5000), sandbox.WithStdout(file)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	info, err := file.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 5000, info.Size())
	_, err = runs.Shell("yes >&2", sandbox.WithOutputLimit(5000)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	limit := sandbox.WithMemory(64 * sandbox.MiB)
	out, err := runs.Helper("alloc", "20").With(limit).Output(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, "allocated\n", string(out))

	result, err := runs.Helper("alloc", "100").With(limit).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Equal(t, sandbox.OutOfMemory, result.Reason)
	require.Equal(t, syscall.SIGKILL, result.Signal)
	require.Positive(t, result.Usage.OOMKills)
	if slices.Contains(result.Usage.Uncounted, "MemoryPeak") { // the pages of files that the command shares are in it then
		require.InDelta(t, 64*sandbox.MiB, result.Usage.MemoryPeak, 16*sandbox.MiB)
	} else {
		require.InDelta(t, 64*sandbox.MiB, result.Usage.MemoryPeak, 8*sandbox.MiB)
	}

	// The kernel kills a child of the shell, which then fails. On v2 it kills all processes.
	result, err = runs.Helper("alloc").With(limit, sandbox.WithCommand("sh", "-c", "/helper alloc 100; exit 7")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Equal(t, sandbox.OutOfMemory, result.Reason)
	require.Contains(t, []int{7, -1}, result.ExitCode)

	// Files in memory count.
	result, err = runs.Shell("head -c 100M /dev/zero >/tmp/file", limit).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Positive(t, result.Usage.OOMKills)
	require.Equal(t, "33554432", runs.Output(t, runs.Shell("head -c 32M /dev/zero >/tmp/file; stat -c %s /tmp/file", limit)))
}

// The least memory with which a program that does nothing runs. What the library itself needs is
// charged to the cell.
func TestLeastMemory(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	static := sandbox.New(sandbox.WithCommand("/true"), sandbox.WithReadOnlyBind(testkit.StaticTrue(t), "/true"))
	for name, s := range map[string]*sandbox.Sandbox{"a static program": static, "true": sandbox.New(sandbox.WithCommand("true"))} {
		limit := int64(64 * sandbox.KiB)
		for ; ; limit += 32 * sandbox.KiB {
			_, err := s.With(sandbox.WithMemory(limit)).Run(testkit.Deadline(t))
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
	testkit.Need(t, "cgroup pids")
	mark := testkit.ALongTime()
	bomb := "bomb() { bomb | bomb & }; bomb; for i in $(seq 100); do sleep " + mark + " & done; wait"
	for _, s := range []*sandbox.Sandbox{
		runs.Shell(bomb, sandbox.WithPIDs(20), sandbox.WithTimeout(time.Second)),
		runs.Shell(bomb, sandbox.WithTimeout(time.Second)), // the default limit
	} {
		result, err := s.Run(testkit.Deadline(t))
		require.Error(t, err)
		require.Contains(t, []sandbox.Reason{sandbox.TimedOut, sandbox.PIDsExceeded}, result.Reason)
		require.LessOrEqual(t, result.Usage.PIDsPeak, uint64(512))
		testkit.RequireGone(t, mark)
	}
	result, err := runs.Shell("(true) && (true)", sandbox.WithPIDs(1)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.PIDsExceeded, result.Reason)
	require.Positive(t, result.ExitCode)
	require.Positive(t, result.Usage.PIDsRefused)
	result, err = runs.Shell("mkfifo /tmp/f; while :; do { : </tmp/f; } & done").Run(testkit.Deadline(t)) // the default limit
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.PIDsExceeded, result.Reason)

	// The limit did not cause the result.
	result, err = runs.Shell("exit 3", sandbox.WithPIDs(5)).Run(testkit.Deadline(t))
	require.NotErrorIs(t, err, sandbox.ErrPIDLimit)
	require.Equal(t, sandbox.Exited, result.Reason)
	require.Zero(t, result.Usage.PIDsRefused)
	// Nor did it for a command that went on without the process.
	result, err = runs.Shell("(while :; do sleep "+mark+" & done); exit 0", sandbox.WithPIDs(8)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Positive(t, result.Usage.PIDsRefused)
	require.Equal(t, "5", runs.Output(t, runs.Shell("for i in $(seq 5); do echo; done | wc -l", sandbox.WithPIDs(4))))
}

func TestCPULimit(t *testing.T) {
	testkit.Need(t, "cgroup cpu")
	result, err := runs.Helper("spin", "400ms").With(sandbox.WithCPUs(0.2)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	used := result.Usage.UserCPU + result.Usage.SystemCPU
	require.Greater(t, used, 350*time.Millisecond) // the clock of cgroups is another
	require.Positive(t, result.Usage.Throttled)
	require.Greater(t, result.Usage.Wall, used*5/2, "0.2 CPUs take five times as long")
}

func TestCPUWeight(t *testing.T) {
	testkit.Need(t, "cgroup cpu")
	testkit.Need(t, "cgroup cpuset")
	heavy := runs.Start(t, runs.Helper("spin", "1h").With(sandbox.WithCPUSet("0"), sandbox.WithCPUWeight(2000)))
	light := runs.Start(t, runs.Helper("spin", "1h").With(sandbox.WithCPUSet("0"), sandbox.WithCPUWeight(100)))
	testkit.Eventually(t, "the heavy run has much more of the CPU", func() bool {
		h, err := heavy.Usage()
		require.NoError(t, err)
		l, err := light.Usage()
		require.NoError(t, err)
		return h.UserCPU+h.SystemCPU > 500*time.Millisecond && h.UserCPU+h.SystemCPU > 3*(l.UserCPU+l.SystemCPU)
	})
}

func TestCPUSet(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup cpuset")
	require.Equal(t, "0", runs.Output(t, runs.Helper("affinity").With(sandbox.WithCPUSet("0"))))
	testkit.Need(t, "2 CPUs")
	require.Equal(t, "1", runs.Output(t, runs.Helper("affinity").With(sandbox.WithCPUSet("1"))))
	require.Equal(t, "0\n1", runs.Output(t, runs.Helper("affinity").With(sandbox.WithCPUSet("0-1"))))
	_, err := runs.Shell("", sandbox.WithCPUSet("0,999")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, `sandbox: WithCPUSet: "0,999": there is no CPU 999`)
}

func TestCPUTime(t *testing.T) {
	testkit.Need(t, "CPU accounting")
	const limit = 300 * time.Millisecond
	for _, s := range []*sandbox.Sandbox{
		runs.Shell("while :; do :; done"),
		runs.Shell("(while :; do :; done) & (while :; do :; done) & wait"),
		runs.Shell("while :; do /bin/true; done"), // each of them is short
	} {
		result, err := s.With(sandbox.WithCPUTime(limit)).Run(testkit.Deadline(t))
		require.ErrorIs(t, err, sandbox.ErrCPUTime)
		require.Equal(t, sandbox.CPUTimedOut, result.Reason)
		used := result.Usage.UserCPU + result.Usage.SystemCPU
		require.GreaterOrEqual(t, used, limit)
		require.Less(t, used, limit+testkit.Patience/100)
	}
	result, err := runs.Shell("sleep 0.5", sandbox.WithCPUTime(testkit.Patience)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Less(t, result.Usage.UserCPU+result.Usage.SystemCPU, result.Usage.Wall)
}

func TestRlimits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "0\n1024", runs.Output(t, runs.Shell("ulimit -Hc; ulimit -Sn")))
	require.Equal(t, "100\n200\n8192\n64", runs.Output(t, runs.Shell("ulimit -Sn; ulimit -Hn; ulimit -Hs; ulimit -f",
		sandbox.WithRlimit("nofile", 100, 200), sandbox.WithRlimit("stack", 8<<20, 8<<20), sandbox.WithRlimit("fsize", 64*512, 1<<20))))
	_, err := runs.Shell("head -c 100000 /dev/zero >/tmp/x", sandbox.WithRlimit("fsize", 1000, 1000)).Run(testkit.Deadline(t))
	runs.ExitError(t, err)
	_, err = runs.Shell("", sandbox.WithRlimit("beer", 1, 2), sandbox.WithRlimit("cpu", 2, 1)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, `WithRlimit: "beer" is unknown`)
	require.ErrorContains(t, err, "WithRlimit: cpu: the soft limit 2 is above the hard limit 1")

	var own unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &own))
	_, err = runs.Shell("", sandbox.WithRlimit("nofile", own.Max+1, own.Max+1)).Run(testkit.Deadline(t))
	if err != nil { // with CAP_SYS_RESOURCE, which root may have, it works
		require.NotEmpty(t, runs.SetupError(t, err, "prlimit64").Hint)
	}
}

func TestSwap(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	_, err := runs.Shell("", sandbox.WithMemory(64*sandbox.MiB), sandbox.WithSwap(64*sandbox.MiB)).Run(testkit.Deadline(t))
	if err != nil {
		runs.SetupError(t, err, "WithSwap")
	}
	_, err = runs.Shell("", sandbox.WithSwap(sandbox.MiB)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithSwap: means nothing without WithMemory")
}

// All wrong options are named at once.
func TestWrongOptions(t *testing.T) {
	t.Parallel()
	_, err := sandbox.New(
		sandbox.WithEnv("no equals sign"), sandbox.WithDir("relative"), sandbox.WithTimeout(-1), sandbox.WithOutputLimit(-1),
		sandbox.WithMemory(64), sandbox.WithCPUs(1e9), sandbox.WithCPUWeight(10001), sandbox.WithCPUSet("all"), sandbox.WithPIDs(-1),
		sandbox.WithCPUTime(-1), sandbox.WithCgroupParent("a/b"), sandbox.WithHostname(""), sandbox.WithUser(-1, 70000),
		sandbox.WithNetwork(nil), sandbox.WithRootfs(sandbox.DirRootfs("relative")), sandbox.WithBind("/usr", "/proc/x"),
		sandbox.WithReadOnlyBind("relative", "/x"), sandbox.WithTmpfs("/y", -1), sandbox.WithFile("/z", nil, os.ModeSetuid),
		sandbox.WithWritableRoot(-1), sandbox.WithCapabilities("NET_ADMIN"),
	).Run(testkit.Deadline(t))
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
	testkit.Need(t, "cgroup pids")
	parent := fmt.Sprintf("/test-of-parent-%d", os.Getpid())
	for _, mount := range testkit.CgroupMounts() {
		dir := mount + parent
		require.NoError(t, os.Mkdir(dir, 0o755))
		defer func() { require.NoError(t, unix.Rmdir(dir), dir) }()
	}
	c, err := sandbox.NewCell(sandbox.CellCgroupParent(parent))
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	p := runs.Start(t, runs.Shell("sleep 1000", sandbox.WithCell(c)))
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/cgroup")
	require.NoError(t, err)
	require.Contains(t, string(b), ":"+parent+"/")
	_, err = runs.Shell("", sandbox.WithCell(c), sandbox.WithCgroupParent("/other")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithCell")
}

func init() {
	testkit.AddHelper("cell first", func([]string) error {
		defer sandbox.Shutdown(context.Background())
		c, err := sandbox.NewCell()
		if err != nil {
			return err
		}
		out, err := runs.Shell("ulimit -Hl", sandbox.WithCell(c)).Output(context.Background())
		fmt.Printf("%s", out)
		// Otherwise its cgroup stays until another process boots a cell.
		return errors.Join(err, c.Close())
	})
}

// A process that may lock little memory has cells, though on cgroup v2 libcontainer lifts that
// limit of it, and none of its runs may lock more.
func TestRootlessLittleLockedMemory(t *testing.T) {
	t.Parallel()
	cmd := testkit.HelperCommand(testkit.Deadline(t), "cell first")
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `ulimit -l 64; exec "$0" "$@"`, exe}, cmd.Args[1:]...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "64\n", string(out))
}
