package sandbox

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/host"
)

// Each probe passes for a run, and tells where the protection is missing.
func TestRootlessProtections(t *testing.T) {
	ctx := context.Background()
	features := protections(ctx)
	require.Len(t, features, 5)
	for _, f := range features {
		require.NoError(t, f.Err, f.Name)
	}

	read := func(pid int, name string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		require.NoError(t, err)
		return string(b)
	}
	live := func(opts ...Option) int {
		p, err := New(WithCommand("sleep", "1000")).With(opts...).Start(ctx)
		require.NoError(t, err)
		t.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() })
		return p.PID()
	}
	capable := live(WithCapabilities("CAP_CHOWN"))
	require.ErrorContains(t, privileged(read(capable, "status")), "Cap")
	require.NoError(t, unfiltered(read(capable, "status")))
	require.ErrorContains(t, privileged("\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t0\n"), "NoNewPrivs")
	require.ErrorContains(t, unfiltered(read(live(WithoutSeccomp()), "status")), "no seccomp filter")
	require.ErrorContains(t, sharedNamespaces(fmt.Sprintf("/proc/%d", live(WithNetwork(NetworkHost))), "/proc/self"), "net")
	require.ErrorContains(t, openMounts(read(live(WithTmpfs("/data", MiB)), "mountinfo")), "/data is writable")
	self := read(os.Getpid(), "mountinfo")
	require.Error(t, openMounts(self))
	require.ErrorContains(t, uncovered(self, []host.ProcPath{{Path: "/proc/kcore"}}), "/proc/kcore can be read")
}
