//go:build linux

package e2e

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Limits of a live run are raised, lowered and lifted, seen inside, and enforced.
func TestUpdate(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "cgroup cpu")
	testkit.Need(t, "cgroup cpuset")
	p := session(t, append(runs.HelperOptions(), sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithCPUSet("0"))...)
	alloc := sandbox.WithCommand("/helper", testkit.HelperArgs("alloc", "100")...)
	_, err := execute(t, p, alloc).Wait()
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	p = session(t, append(runs.HelperOptions(), sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithCPUSet("0"))...)
	for _, step := range []struct {
		update []sandbox.Option
		seen   string
	}{
		{nil, "67108864\n100000 100000\n1"},
		{[]sandbox.Option{sandbox.WithMemory(256 * sandbox.MiB), sandbox.WithCPUs(0.5)}, "268435456\n50000 100000\n1"},
		{[]sandbox.Option{sandbox.WithMemory(128 * sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithCPUWeight(50), sandbox.WithPIDs(100)}, "134217728\n100000 100000\n1"},
		{[]sandbox.Option{sandbox.WithMemory(0), sandbox.WithIO(sandbox.IOLimit{Path: "/dev/null"})}, "9223372036854771712\n100000 100000\n1"},
		{[]sandbox.Option{sandbox.WithMemory(192 * sandbox.MiB)}, "201326592\n100000 100000\n1"},
	} {
		require.NoError(t, p.Update(step.update...))
		seen := strings.Replace(inRun(t, p, seenLimits+"; nproc"), "max", "9223372036854771712", 1)
		require.Equal(t, step.seen, seen)
	}
	_, err = execute(t, p, alloc).Wait()
	require.NoError(t, err)
	require.NoError(t, p.Update(sandbox.WithMemory(48*sandbox.MiB)))
	_, err = execute(t, p, alloc).Wait()
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// So are the CPUs, and swap where the kernel counts it.
func TestUpdateCPUSet(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "cgroup cpuset")
	testkit.Need(t, "2 CPUs")
	p := session(t, sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUSet("0"))
	for _, set := range []string{"0-1", "1", "0"} {
		require.NoError(t, p.Update(sandbox.WithCPUSet(set)))
		require.Contains(t, inRun(t, p, "cat /proc/self/status"), "\nCpus_allowed_list:\t"+set+"\n")
	}
	for _, size := range []int64{2 * sandbox.MiB, sandbox.MiB} {
		if err := p.Update(sandbox.WithSwap(size)); err != nil {
			runs.SetupError(t, err, "WithSwap")
		}
	}
}

// What the kernel refuses changes nothing, and kills nothing.
func TestUpdateRefused(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "cgroup pids")
	p := session(t, sandbox.WithMemory(64*sandbox.MiB), sandbox.WithPIDs(50))
	inRun(t, p, "head -c 40M /dev/zero >/tmp/file")
	err := p.Update(sandbox.WithPIDs(1), sandbox.WithMemory(16*sandbox.MiB))
	require.ErrorContains(t, runs.SetupError(t, err, "WithMemory").Err, "uses more than 16777216 bytes")
	require.Equal(t, "41943040", inRun(t, p, "(stat -c %s /tmp/file)"), "one process is not all that there may be, and nothing was killed")
	inRun(t, p, "rm /tmp/file")
	require.NoError(t, p.Pause())
	require.NoError(t, p.Update(sandbox.WithPIDs(2), sandbox.WithMemory(16*sandbox.MiB)), "while it is paused")
	require.NoError(t, p.Resume())
	x := execute(t, p, script("sleep 0 & sleep 0 & sleep 0 & wait; exit 1")...)
	_, err = x.Wait()
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
}

// The timeout of a run, and of a command in it, are what was said last, and so is the CPU time.
func TestRootlessUpdateTime(t *testing.T) {
	t.Parallel()
	p := session(t, sandbox.WithTimeout(500*time.Millisecond))
	require.NoError(t, p.Update(sandbox.WithTimeout(testkit.Patience)))
	x := execute(t, p, script("exec sleep 1000", sandbox.WithTimeout(testkit.Patience))...)
	time.Sleep(time.Second)
	require.NoError(t, x.Update(sandbox.WithTimeout(time.Millisecond)))
	_, err := x.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.ErrorIs(t, x.Update(), os.ErrProcessDone)

	if err := p.Update(sandbox.WithCPUTime(time.Hour)); err != nil { // there is no cgroup
		runs.SetupError(t, err, "WithCPUTime")
		require.ErrorContains(t, p.Update(sandbox.WithMemory(64*sandbox.MiB)), "sandbox: Update: WithMemory: ")
		require.NoError(t, p.Update(sandbox.WithTimeout(time.Millisecond)))
		_, err = p.Wait()
		require.ErrorIs(t, err, sandbox.ErrTimeout)
		return
	}
	execute(t, p, script("while :; do :; done")...)
	require.NoError(t, p.Update(sandbox.WithCPUTime(100*time.Millisecond)))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCPUTime)
	require.ErrorIs(t, p.Update(sandbox.WithMemory(64*sandbox.MiB)), os.ErrProcessDone)
}

// What is no limit, or not the command's, is named.
func TestRootlessUpdateWrong(t *testing.T) {
	t.Parallel()
	p := session(t, sandbox.WithHostname("box"))
	for name, opt := range map[string]sandbox.Option{
		"WithCommand": sandbox.WithCommand("x"), "WithEnv": sandbox.WithEnv("A=b"), "WithDir": sandbox.WithDir("/"), "WithHostname": sandbox.WithHostname("box"),
		"WithStdout": sandbox.WithStdout(os.Stdout), "WithOutputLimit": sandbox.WithOutputLimit(1), "WithRlimit": sandbox.WithRlimit("core", 0, 0),
		"WithCgroupParent": sandbox.WithCgroupParent("/x"), "WithSetID": sandbox.WithSetID(), "WithBind": sandbox.WithBind("/tmp", "/x"),
		"WithMemory": sandbox.WithMemory(-1), "WithCPUs": sandbox.WithCPUs(math.Inf(1)), "WithTimeout": sandbox.WithTimeout(-1),
	} {
		var option *sandbox.OptionError
		require.ErrorAs(t, p.Update(opt), &option, name)
		require.Equal(t, name, option.Option)
	}
	x := execute(t, p, script("exec sleep 1000")...)
	require.ErrorContains(t, x.Update(sandbox.WithMemory(sandbox.GiB)), "WithMemory: it belongs to the run")
}
