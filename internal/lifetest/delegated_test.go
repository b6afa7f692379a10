//go:build linux

package lifetest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestDelegated has an ordinary user who was given a directory in each hierarchy of cgroup v1.
func TestDelegated(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "cgroup v1") // internal/limits tests v2
	const uid = 1234
	name := fmt.Sprintf("sandbox-test-%d", os.Getpid())
	for _, controller := range strings.Fields("memory pids cpu cpuacct freezer blkio cpuset") {
		dir := path.Join(cgroupRoot, controller, name)
		if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
			continue // two controllers of one hierarchy
		} else {
			require.NoError(t, err)
		}
		defer unix.Rmdir(dir)
		if controller == "cpuset" { // with an empty cpuset it takes no process
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				data, err := os.ReadFile(path.Join(cgroupRoot, controller, file))
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path.Join(dir, file), data, 0))
			}
		}
		for _, file := range []string{"", "cgroup.procs", "tasks"} {
			require.NoError(t, os.Chown(path.Join(dir, file), uid, uid))
		}
	}
	home, err := os.MkdirTemp("", "sandbox-delegated")
	require.NoError(t, err)
	defer os.RemoveAll(home)
	require.NoError(t, os.Chown(home, uid, uid))
	cmd := testkit.HelperCommand(t.Context(), "delegated", "/"+name)
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, "HOME="+home, "TMPDIR="+home, "XDG_RUNTIME_DIR="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "fine\n", string(out))
	requireNothingLeft(t)
}

func delegated(args []string) error {
	ctx := context.Background()
	base := sandbox.New(sandbox.WithCgroupParent(args[0]), sandbox.WithCPUs(1), sandbox.WithCPUSet("0"), sandbox.WithPIDs(20))
	_, err := base.With(sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCommand("tail", "/dev/zero")).Run(ctx)
	if !errors.Is(err, sandbox.ErrOutOfMemory) {
		check(fmt.Errorf("WithMemory: %w", err))
	}
	_, err = base.With(sandbox.WithCPUTime(100*time.Millisecond), sandbox.WithCommand("sh", "-c", "while :; do :; done")).Run(ctx)
	if !errors.Is(err, sandbox.ErrCPUTime) {
		check(fmt.Errorf("WithCPUTime: %w", err))
	}
	// Each of the four is the run's own, although nothing limits the run in two of them: the
	// caller's may not be visible.
	seen, err := sandbox.New(sandbox.WithCgroupParent(args[0]), sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCommand("sh", "-c",
		"cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes; ls -d cpu cpuacct cpuset memory; find */ -mindepth 1 -type d")).Output(ctx)
	check(err)
	if got := strings.Join(strings.Fields(string(seen)), " "); got != "67108864 cpu cpuacct cpuset memory" {
		check(fmt.Errorf("what a run sees of its cgroups: %s", got))
	}
	check(sandbox.Shutdown(ctx))
	fmt.Println("fine")
	return nil
}
