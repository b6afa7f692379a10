package queue

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// The helper fenced arms a fence that is over at once, and says how it still lives.
func init() {
	testkit.AddHelper("fenced", func([]string) error {
		f, err := newFence(true)
		if err != nil {
			return err
		}
		if err := f.hold("a", clockNow()); err != nil {
			return err
		}
		time.Sleep(5 * time.Second) // it is killed before
		return nil
	})
}

// The kernel kills a process whose fence is over, but PID 1 of a container, which is told so.
func TestFence(t *testing.T) {
	testkit.Need(t, "a whole machine's root") // for a pid namespace
	ctx := testkit.Deadline(t)
	for _, container := range []bool{false, true} {
		cmd := testkit.HelperCommand(ctx, "fenced")
		if container {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		}
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		if killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled(); container {
			require.False(t, killed)
			require.Contains(t, string(out), errInit.Error())
		} else {
			require.True(t, killed, "%s", out)
		}
	}
}
