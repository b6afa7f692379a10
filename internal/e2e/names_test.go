//go:build linux

package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// TestRootlessNames requires that a run's name files are its own, whatever the directories have at
// these places.
func TestRootlessNames(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "user namespaces")
	complete := []string{"/proc", "/dev", "/dev/shm", "/tmp", "/home/sandbox", "/etc"}
	const script = `cat /etc/hosts /etc/hostname /etc/resolv.conf`
	const own = "127.0.0.1 localhost\n127.0.0.1 box\n::1 localhost\nbox\n# no network\noptions timeout:1 attempts:1"
	for name, test := range map[string]struct {
		root func(t *testing.T) string
		opts []sandbox.Option
		want string
	}{
		"files of the directory": {func(t *testing.T) string {
			root := testkit.BusyboxRoot(t, complete...)
			for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
				testkit.WriteFile(t, root+"/etc/"+f, "of the directory\n", 0o644)
			}
			return root
		}, nil, own},
		"nothing": {func(t *testing.T) string {
			testkit.Need(t, "overlayfs for runs")
			return testkit.BusyboxRoot(t, complete...)
		}, nil, own},
		"no mount points": {func(t *testing.T) string { return testkit.BusyboxRoot(t) }, nil, own},
		"links": {func(t *testing.T) string {
			root := testkit.BusyboxRoot(t)
			require.NoError(t, testkit.Mkdirs(root, "/private/etc"))
			require.NoError(t, os.Symlink("/private/etc", root+"/etc"))
			require.NoError(t, os.Symlink("/nowhere/hosts", root+"/private/etc/hosts"))
			require.NoError(t, os.Symlink("../../../../../etc/hostname", root+"/private/etc/hostname"))
			return root
		}, nil, own},
		"a file that is an option's": {func(t *testing.T) string { return testkit.BusyboxRoot(t) },
			[]sandbox.Option{sandbox.WithFile("/etc/hosts", []byte("the option's\n"), 0o644)}, "the option's\nbox\n# no network\noptions timeout:1 attempts:1"},
		"a directory that is an option's": {func(t *testing.T) string { return testkit.BusyboxRoot(t) },
			[]sandbox.Option{sandbox.WithTmpfs("/etc", sandbox.MiB), sandbox.WithFile("/etc/hosts", []byte("x\n"), 0o644), sandbox.WithFile("/etc/hostname", nil, 0o644), sandbox.WithFile("/etc/resolv.conf", nil, 0o644)}, "x"},
		"writable": {func(t *testing.T) string { return testkit.BusyboxRoot(t) }, []sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB)}, own},
	} {
		t.Run(name, func(t *testing.T) {
			root := test.root(t)
			for kind, rootfs := range map[string]sandbox.Rootfs{"DirRootfs": sandbox.DirRootfs(root), "LayersRootfs": sandbox.LayersRootfs(root)} {
				if strings.HasPrefix(kind, "Layers") {
					testkit.Need(t, "overlayfs for runs")
				}
				s := runs.Shell(script, sandbox.WithRootfs(rootfs), sandbox.WithHostname("box")).With(test.opts...)
				require.Equal(t, test.want, runs.Output(t, s), kind)
			}
		})
	}
	t.Run("the host's network", func(t *testing.T) {
		resolv, err := os.ReadFile("/etc/resolv.conf")
		require.NoError(t, err)
		s := runs.Shell("cat /etc/resolv.conf", sandbox.WithNetwork(sandbox.NetworkHost))
		want := strings.TrimSpace(string(resolv))
		require.Equal(t, want, runs.Output(t, s))
		require.Equal(t, want, runs.Output(t, s.With(sandbox.WithRootfs(sandbox.DirRootfs(testkit.BusyboxRoot(t))))))
	})
}
