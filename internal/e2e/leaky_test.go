//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// leaky is a container runtime that passes a directory of the host on to its containers, as runc
// did by mistake (CVE-2024-21626).
const leaky = `#!/bin/sh
exec 6<%[1]s 7<%[1]s
case $1 in --root)
	state=$2
	shift 5
	exec %[2]s --root "$state" run --preserve-fds 5 "$@"
esac
exec %[2]s "$@"
`

// holders returns those of the processes that have a file or directory open.
func holders(t *testing.T, path string, pids ...int) (have []int) {
	t.Helper()
	for _, pid := range pids {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		require.NoError(t, err)
		require.NotEmpty(t, fds)
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == path {
				have = append(have, pid)
			}
		}
	}
	return have
}

// A descriptor that a runtime leaks reaches neither PID 1 of the cell nor what is cloned from it.
func TestAttackLeakyRuntime(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "runc")
	runc, err := exec.LookPath("runc")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "runc"), fmt.Appendf(nil, leaky, dir, runc), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	_, in := newWalled(t, sandbox.CellRuntime("runc"))
	p := runs.Start(t, runs.Shell("exec sleep 1000", in))
	first := initOf(t, p.PID())
	inside := []int{first}
	for pid := p.PID(); pid != first; pid = testkit.Parent(t, pid) {
		inside = append(inside, pid)
	}
	require.Greater(t, len(inside), 2)
	require.Empty(t, holders(t, dir, inside...))
	require.NotEmpty(t, holders(t, dir, testkit.Parent(t, first)), "the runtime itself has it")
}
