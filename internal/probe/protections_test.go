//go:build linux

package probe

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/spec"
)

// Each probe passes for a run, and fails if the protection is missing.
func TestRootlessProtections(t *testing.T) {
	ctx := context.Background()
	p := &prober{ctx: ctx, engine: run.NewEngine()}
	t.Cleanup(func() { require.NoError(t, p.engine.Shutdown(context.Background())) })
	features := p.protections()
	require.Len(t, features, 5)
	for _, f := range features {
		require.NoError(t, f.Err, f.Name)
	}

	read := func(pid int, name string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		require.NoError(t, err)
		return string(b)
	}
	live := func(set func(*spec.Spec)) int {
		r, err := p.start("sleep", func(c *spec.Spec) {
			c.Command.Argv = append(c.Command.Argv, "1000")
			set(c)
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = r.Kill(); _, _ = r.Wait() })
		return r.PID()
	}
	capable := live(func(c *spec.Spec) { c.Security.Capabilities = []string{"CAP_CHOWN"} })
	require.ErrorContains(t, privileged(read(capable, "status")), "Cap")
	require.NoError(t, unfiltered(read(capable, "status")))
	require.ErrorContains(t, privileged("\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t0\n"), "NoNewPrivs")
	require.ErrorContains(t, unfiltered(read(live(func(c *spec.Spec) { c.Security.NoSeccomp = true }), "status")), "no seccomp filter")
	require.ErrorContains(t, sharedNamespaces(fmt.Sprintf("/proc/%d", live(func(c *spec.Spec) { c.Namespaces.Network = spec.NetworkHost })), "/proc/self"), "net")
	require.ErrorContains(t, openMounts(read(live(func(c *spec.Spec) { c.Root.Mounts = []spec.Mount{{Dst: "/data", Source: spec.Tmpfs{Size: mib}}} }), "mountinfo")), "/data is writable")
	self := read(os.Getpid(), "mountinfo")
	require.Error(t, openMounts(self))
	require.ErrorContains(t, uncovered(self, []host.ProcPath{{Path: "/proc/kcore"}}), "/proc/kcore can be read")
}
