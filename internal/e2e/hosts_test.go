//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Live runs of different host processes have no host id in common, if runs have ids of their own.
func TestRootlessIDsOfSeveralHosts(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	const hosts = 4
	for range hosts {
		host := testkit.HelperCommand(context.Background(), "hold", mark, "until the input ends")
		in, err := host.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, host.Start())
		t.Cleanup(func() { in.Close(); _ = host.Wait() }) // it says that its run was cancelled
	}
	var commands []int // processes whose name has changed: not PID 1 of the run, nor the host
	testkit.Eventually(t, "all runs are there", func() bool {
		commands = commands[:0]
		for _, pid := range testkit.Running(mark) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "sleep\n" {
				commands = append(commands, pid)
			}
		}
		return len(commands) == hosts
	})
	single := runs.OneID(t)
	seen := map[string]bool{}
	for _, pid := range commands {
		for _, field := range []string{"Uid:", "Gid:"} {
			id := field + status(t, pid, field)[0]
			require.False(t, seen[id] && !single, "%s twice", id)
			seen[id] = true
		}
	}
	require.Equal(t, single, len(seen) < 2*hosts)
}
