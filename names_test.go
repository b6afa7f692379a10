//go:build linux

package sandbox_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// TestRootlessNames has the run's names in directories, whatever they have at these places.
func TestRootlessNames(t *testing.T) {
	t.Parallel()
	need(t, "user namespaces")
	complete := []string{"/proc", "/dev", "/dev/shm", "/tmp", "/home/sandbox", "/etc"}
	const script = `cat /etc/hosts /etc/hostname /etc/resolv.conf`
	const own = "127.0.0.1 localhost box\n::1 localhost\nbox\n# no network"
	for name, test := range map[string]struct {
		root func(t *testing.T) string
		opts []sandbox.Option
		want string
	}{
		"files of the directory": {func(t *testing.T) string {
			root := busyboxRoot(t, complete...)
			for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
				writeFile(t, root+"/etc/"+f, "of the directory\n", 0o644)
			}
			return root
		}, nil, own},
		"nothing": {func(t *testing.T) string {
			need(t, "overlayfs for runs")
			return busyboxRoot(t, complete...)
		}, nil, own},
		"no mount points": {func(t *testing.T) string { return busyboxRoot(t) }, nil, own},
		"links": {func(t *testing.T) string {
			root := busyboxRoot(t)
			require.NoError(t, mkdirs(root, "/private/etc"))
			require.NoError(t, os.Symlink("/private/etc", root+"/etc"))
			require.NoError(t, os.Symlink("/nowhere/hosts", root+"/private/etc/hosts"))
			require.NoError(t, os.Symlink("../../../../../etc/hostname", root+"/private/etc/hostname"))
			return root
		}, nil, own},
		"a file that is an option's": {func(t *testing.T) string { return busyboxRoot(t) },
			[]sandbox.Option{sandbox.WithFile("/etc/hosts", []byte("the option's\n"), 0o644)}, "the option's\nbox\n# no network"},
		"a directory that is an option's": {func(t *testing.T) string { return busyboxRoot(t) },
			[]sandbox.Option{sandbox.WithTmpfs("/etc", sandbox.MiB), sandbox.WithFile("/etc/hosts", []byte("x\n"), 0o644), sandbox.WithFile("/etc/hostname", nil, 0o644), sandbox.WithFile("/etc/resolv.conf", nil, 0o644)}, "x"},
		"writable": {func(t *testing.T) string { return busyboxRoot(t) }, []sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB)}, own},
	} {
		t.Run(name, func(t *testing.T) {
			root := test.root(t)
			for kind, rootfs := range map[string]sandbox.Rootfs{"DirRootfs": sandbox.DirRootfs(root), "LayersRootfs": sandbox.LayersRootfs(root)} {
				if strings.HasPrefix(kind, "Layers") {
					need(t, "overlayfs for runs")
				}
				s := shell(script, sandbox.WithRootfs(rootfs), sandbox.WithHostname("box")).With(test.opts...)
				require.Equal(t, test.want, output(t, s), kind)
			}
		})
	}
	t.Run("the host's network", func(t *testing.T) {
		resolv, err := os.ReadFile("/etc/resolv.conf")
		require.NoError(t, err)
		s := shell("cat /etc/resolv.conf", sandbox.WithNetwork(sandbox.NetworkHost))
		want := strings.TrimSpace(string(resolv))
		require.Equal(t, want, output(t, s))
		require.Equal(t, want, output(t, s.With(sandbox.WithRootfs(sandbox.DirRootfs(busyboxRoot(t))))))
	})
}
