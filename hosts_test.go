//go:build linux

package sandbox_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Live runs of different host processes have no host id in common, wherever runs have ids of their own.
func TestRootlessIDsOfSeveralHosts(t *testing.T) {
	t.Parallel()
	mark := aLongTime()
	usedHelpers.Store("hold", true)
	const hosts = 4
	for range hosts {
		host := exec.Command("/proc/self/exe", "hold", mark, "until the input ends")
		host.Env = append(os.Environ(), helperEnv+"=1")
		in, err := host.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, host.Start())
		t.Cleanup(func() { in.Close(); _ = host.Wait() }) // it says that its run was cancelled
	}
	var commands []int // processes whose name has changed: not PID 1 of the run, nor the host
	eventually(t, "all runs are there", func() bool {
		commands = commands[:0]
		for _, pid := range running(mark) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "sleep\n" {
				commands = append(commands, pid)
			}
		}
		return len(commands) == hosts
	})
	single := oneID(t)
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
