//go:build linux

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Check reports where runs get their cgroups: docs/CGROUPS.md.
func TestRootlessPlace(t *testing.T) {
	t.Parallel()
	want, known := map[string]string{
		"host":            "runs below /sandbox, a directory of its own at the top",
		"guest":           "v2, runs below /sandbox, a directory of its own at the top",
		"systemd":         "v2, runs below /system.slice, a scope made by systemd",
		"systemd-service": "v2, runs below /system.slice, a scope made by systemd",
		"systemd-user":    "v2, runs below /user.slice/user-1000.slice/user@1000.service/app.slice, a scope made by this user's systemd",
	}[os.Getenv("SANDBOX_TEST_CONFIG")]
	for _, f := range sandbox.Check(testkit.Deadline(t)).Features {
		if strings.HasPrefix(f.Name, "cgroups") {
			t.Log(f.Name, f.Detail, f.Err, f.Remedy)
			if known && os.Getenv("SANDBOX_TEST_CONFIG") != "host" || f.Err == nil && os.Geteuid() == 0 {
				require.NoError(t, f.Err)
				require.Contains(t, f.Detail, want)
			}
			return
		}
	}
	require.Fail(t, "no word about cgroups")
}

// An ordinary user with a systemd of its own has limits without any preparation.
func TestRootlessScope(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "a user's own systemd")
	limited := sandbox.WithMemory(32 * sandbox.MiB)
	result, err := runs.Shell("tail /dev/zero", limited).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.Equal(t, sandbox.OutOfMemory, result.Reason)
	result, err = runs.Shell("while :; do :; done", sandbox.WithCPUTime(200*time.Millisecond), sandbox.WithCPUs(0.5), sandbox.WithPIDs(20), limited).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrCPUTime)
	require.Positive(t, result.Usage.Throttled)
	require.Positive(t, result.Usage.MemoryPeak)
	require.NotContains(t, result.Usage.Uncounted, "UserCPU")

	p := runs.Start(t, runs.Shell("while :; do :; done"))
	require.NoError(t, p.Pause())
	before, err := p.Usage()
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	after, err := p.Usage()
	require.NoError(t, err)
	spent := after.UserCPU + after.SystemCPU - before.UserCPU - before.SystemCPU
	require.Less(t, spent, 50*time.Millisecond, "a frozen task has still to leave its processor when the kernel calls it frozen")
	require.NoError(t, p.Resume())

	c, err := sandbox.NewCell()
	require.NoError(t, err)
	scope := cellGroup(runs.Start(t, runs.Shell("exec sleep 1000", sandbox.WithCell(c))).PID())
	require.Equal(t, ".scope", path.Ext(scope))
	require.DirExists(t, scope)
	require.NoError(t, c.Close())
	requireGoes(t, scope)
}

// When this process is killed, nothing of it stays: systemd removes a scope, and the next cell the
// rest.
func TestRootlessKilledHost(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	host := testkit.HelperCommand(context.Background(), "hold", mark)
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	pids := func() []int {
		return slices.DeleteFunc(testkit.Running(mark), func(pid int) bool { return pid == host.Process.Pid })
	}
	testkit.Eventually(t, "the run is there", func() bool { return len(pids()) > 0 })
	dir := ""
	for _, pid := range pids() {
		dir = cmp.Or(cellGroup(pid), dir)
	}
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "the run is gone", func() bool { return len(pids()) == 0 })
	if strings.HasSuffix(dir, ".scope") {
		requireGoes(t, dir)
	}
	c, err := sandbox.NewCell() // sweeps
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoDirExists(t, dir)
}

// runGroup matches the names of runs' cgroups, but not those of services that systemd-run makes.
var runGroup = regexp.MustCompile(`^run-[0-9]+$`)

// cellGroup returns the directory of the cgroup of a run's cell, or "" for a process that is not in
// a run.
func cellGroup(pid int) (dir string) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); runGroup.MatchString(path.Base(f[2])) {
			dir = filepath.Join("/sys/fs/cgroup", strings.Split(f[1], ",")[0], path.Dir(f[2]))
		}
	}
	return dir
}

func requireGoes(t *testing.T, dir string) {
	t.Helper()
	testkit.Eventually(t, dir+" goes", func() bool { _, err := os.Stat(dir); return err != nil })
}

// holdHelper is a host process whose run goes on until it is killed or, with a second argument,
// until its standard input ends.
func holdHelper(args []string) error {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	if len(args) > 1 {
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); end() }()
	}
	_, err := sandbox.New(sandbox.WithCommand("sleep", args[0])).Run(ctx)
	return errors.Join(err, sandbox.Shutdown(context.Background()))
}

// What this machine does not count is named, and a figure that is named is zero.
func TestRootlessUncounted(t *testing.T) {
	t.Parallel()
	result, err := runs.Shell("head -c 4M /dev/zero | tail -c 1 >/dev/null").Run(testkit.Deadline(t))
	require.NoError(t, err)
	u := result.Usage
	for name, value := range map[string]uint64{"PIDsPeak": u.PIDsPeak, "MemoryPeak": u.MemoryPeak, "UserCPU": uint64(u.UserCPU + u.SystemCPU)} {
		uncounted := strings.Contains(strings.Join(u.Uncounted, " "), name)
		switch {
		case !uncounted:
			require.Positive(t, value, name)
		case name == "PIDsPeak":
			require.Zero(t, value)
		default:
			require.Positive(t, value, "what the command itself used")
		}
	}
}
