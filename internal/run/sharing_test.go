//go:build linux

package run_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// What is not compiled can change without a new compilation: a service derives a sandbox for each
// request. And a prepared run serves any command.
func TestDerivedSandboxesShareTheirPrograms(t *testing.T) {
	base := made(sandbox.WithCommand("true"), sandbox.WithEnv("A=1"), sandbox.WithFile("/f", []byte("x"), 0o600), sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithRlimit("nofile", 9, 9), sandbox.WithPrepared(1))
	const plans, command, prepared = 1, 2, 4
	tests := []struct {
		name string
		opt  sandbox.Option
		same int
	}{
		{"stdin", sandbox.WithStdin(strings.NewReader("")), plans | command | prepared},
		{"stdout", sandbox.WithStdout(&strings.Builder{}), plans | command | prepared},
		{"timeout", sandbox.WithTimeout(time.Second), plans | command | prepared},
		{"wait delay", sandbox.WithWaitDelay(time.Second), plans | command | prepared},
		{"output", sandbox.WithOutputLimit(1), plans | command | prepared},
		{"same root", sandbox.WithWritableRoot(sandbox.MiB), plans | command | prepared},
		{"same command", sandbox.WithCommand("true"), plans | command | prepared},
		{"memory", sandbox.WithMemory(sandbox.MiB), plans | command},
		{"I/O", sandbox.WithIO(sandbox.IOLimit{Path: "/", ReadOps: 1}), plans | command},
		{"cell", sandbox.WithCell(&sandbox.Cell{}), plans | command},
		{"more", sandbox.WithPrepared(2), plans | command},
		{"command", sandbox.WithCommand("false"), plans | prepared},
		{"argument", sandbox.WithCommand("true", "x"), plans | prepared},
		{"env", sandbox.WithEnv("B=2"), plans | prepared},
		{"dir", sandbox.WithDir("/"), plans | prepared},
		{"extra", sandbox.WithExtraFiles(os.Stdin), plans | prepared},
		{"rlimit", sandbox.WithRlimit("nofile", 8, 9), plans | prepared},
		{"file", sandbox.WithFile("/g", nil, 0), 0}, // its content goes with the command
		{"file in memory", sandbox.WithFile("/tmp/g", nil, 0), plans | prepared},
		{"file in shared memory", sandbox.WithFile("/dev/shm/a/b", nil, 0), plans | prepared},
		{"file beside a mount point", withAll(sandbox.WithTmpfs("/tmp/a/b", sandbox.MiB), sandbox.WithFile("/tmp/a/c", nil, 0)), 0},
		{"file and mount", withAll(sandbox.WithTmpfs("/srv", sandbox.MiB), sandbox.WithFile("/srv/c", nil, 0)), 0},
		{"bind", sandbox.WithBind("/a", "/b"), command},
		{"root", sandbox.WithWritableRoot(2 * sandbox.MiB), command},
		{"rootfs", sandbox.WithRootfs(sandbox.DirRootfs("/x")), command},
		{"user", sandbox.WithUser(1, 1), command},
		{"network", sandbox.WithNetwork(sandbox.NetworkHost), command},
		{"hostname", sandbox.WithHostname("x"), command},
		{"capability", sandbox.WithCapabilities("CAP_CHOWN"), 0},
		{"seccomp", sandbox.WithoutSeccomp(), 0},
		{"set-id", sandbox.WithSetID(), 0},
		{"refusals", sandbox.WithRefusals(func(sandbox.Refusal) {}), 0},
	}
	for _, test := range tests {
		got, derived := 0, derive(base, test.opt)
		p, c, r := derived.Shares(base)
		for bit, same := range map[int]bool{plans: p, command: c, prepared: r} {
			if same {
				got |= bit
			}
		}
		require.Equal(t, test.same, got, test.name)
		require.True(t, derived.Prepares(), test.name)
	}
	require.False(t, derive(base, sandbox.WithPrepared(0)).Prepares())
	one := derive(base, sandbox.WithFile("/tmp/g", []byte("x"), 0o600))
	same := derive(base, sandbox.WithFile("/tmp/g", []byte("x"), 0o600))
	require.True(t, one.Spec.SameCommand(&same.Spec))
	for _, opt := range []sandbox.Option{sandbox.WithFile("/tmp/g", []byte("y"), 0o600), sandbox.WithFile("/tmp/g", []byte("x"), 0o644), sandbox.WithFile("/tmp/h", []byte("x"), 0o600)} {
		other := derive(base, opt)
		require.False(t, one.Spec.SameCommand(&other.Spec))
		p, _, _ := one.Shares(other)
		require.True(t, p)
	}
	limited := derive(base, sandbox.WithMemory(sandbox.MiB), sandbox.WithPIDs(9))
	_, _, r := limited.Shares(derive(limited, sandbox.WithMemory(sandbox.MiB), sandbox.WithPIDs(9)))
	require.True(t, r, "the same limits, given again")
}

// A mount may decide who makes a file that was given before it, and which of its directories are
// missing: then the command's program differs.
func TestMountsThatChangeFiles(t *testing.T) {
	for name, test := range map[string]struct{ file, mount sandbox.Option }{
		"the directory becomes root's": {sandbox.WithFile("/home/sandbox/.config/x", nil, 0), sandbox.WithReadOnlyBind("/srv", "/home/sandbox/.config/y")},
		"the place becomes memory":     {sandbox.WithFile("/data/f", nil, 0), sandbox.WithTmpfs("/data", 0)},
		"memory below memory":          {sandbox.WithFile("/tmp/a/f", nil, 0), sandbox.WithTmpfs("/tmp/a", 0)},
		"a directory of an image":      {sandbox.WithFile("/home/sandbox/a/f", nil, 0), withAll(sandbox.WithReadOnlyBind("/srv", "/home/sandbox/a/b"), imageDirs("/home/sandbox/a/c"))},
	} {
		a := made(sandbox.WithCommand("true"), test.file)
		b := derive(a, test.mount)
		plans, command, _ := a.Shares(b)
		require.False(t, plans, name)
		require.False(t, command, name)
	}
}

// Neither the order of mounts nor how their places are written keeps sandboxes from sharing runs.
func TestOrderOfMounts(t *testing.T) {
	base := made(sandbox.WithCommand("true"), sandbox.WithBind("/a", "/job/in"), sandbox.WithBind("/b", "/out"), sandbox.WithTmpfs("/job/tmp/", 0), sandbox.WithPrepared(1))
	for _, file := range []string{"/tmp/in", "/home/sandbox/in"} {
		s := derive(base, sandbox.WithFile(file, []byte("x"), 0o644))
		plans, command, prepared := base.Shares(s)
		require.True(t, plans, file)
		require.True(t, prepared, file)
		require.False(t, command, file)
	}
}

func withAll(opts ...sandbox.Option) sandbox.Option {
	return func(c *spec.Spec) {
		for _, opt := range opts {
			opt(c)
		}
	}
}

// Runs are prepared without the files that the run's user can make: only the command's program has
// their number and size.
func TestFilesThatGoWithTheCommand(t *testing.T) {
	tests := map[string]struct {
		opts []sandbox.Option
		want []string
	}{
		"default file systems": {[]sandbox.Option{sandbox.WithFile("/tmp/a/../b/c", nil, 0), sandbox.WithFile("/home/sandbox/d", nil, 0), sandbox.WithFile("/dev/shm/e", nil, 0)},
			[]string{"/dev/shm/e", "/home/sandbox/d", "/tmp/b/c"}},
		"the root":                       {[]sandbox.Option{sandbox.WithFile("/a", nil, 0), sandbox.WithFile("/etc/b", nil, 0), sandbox.WithFile("/tmpfile", nil, 0)}, nil},
		"a writable root":                {[]sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFile("/a", nil, 0), sandbox.WithFile("/tmp/b", nil, 0)}, []string{"/tmp/b"}},
		"a tmpfs":                        {[]sandbox.Option{sandbox.WithFile("/srv/a/b", nil, 0), sandbox.WithTmpfs("/srv", sandbox.MiB)}, []string{"/srv/a/b"}},
		"a tmpfs in a bind":              {[]sandbox.Option{sandbox.WithBind("/x", "/srv"), sandbox.WithTmpfs("/srv/a", sandbox.MiB), sandbox.WithFile("/srv/a/b", nil, 0)}, []string{"/srv/a/b"}},
		"a bind":                         {[]sandbox.Option{sandbox.WithBind("/x", "/tmp"), sandbox.WithFile("/tmp/b", nil, 0)}, nil},
		"the directory of a mount":       {[]sandbox.Option{sandbox.WithBind("/x", "/tmp/a/b"), sandbox.WithFile("/tmp/a/c", nil, 0), sandbox.WithFile("/tmp/a/d/e", nil, 0)}, nil},
		"beside that":                    {[]sandbox.Option{sandbox.WithBind("/x", "/tmp/a/b"), sandbox.WithFile("/tmp/c", nil, 0), sandbox.WithFile("/tmp/ab", nil, 0)}, []string{"/tmp/ab", "/tmp/c"}},
		"below another tmpfs":            {[]sandbox.Option{sandbox.WithTmpfs("/tmp/a/b", sandbox.MiB), sandbox.WithFile("/tmp/a/b/c/d", nil, 0)}, []string{"/tmp/a/b/c/d"}},
		"an image's directory":           {[]sandbox.Option{imageDirs("/tmp/app"), sandbox.WithFile("/tmp/app/a/b", nil, 0)}, []string{"/tmp/app/a/b"}},
		"below an image's":               {[]sandbox.Option{imageDirs("/tmp/a/b"), sandbox.WithFile("/tmp/a/b/c", nil, 0), sandbox.WithFile("/tmp/a/c", nil, 0)}, []string{"/tmp/a/b/c"}},
		"between two of an image":        {[]sandbox.Option{imageDirs("/tmp/a/b", "/tmp/a"), sandbox.WithFile("/tmp/a/c", nil, 0)}, []string{"/tmp/a/c"}},
		"an image's, with a mount in it": {[]sandbox.Option{imageDirs("/tmp/app"), sandbox.WithTmpfs("/tmp/app/a/b", sandbox.MiB), sandbox.WithFile("/tmp/app/c", nil, 0), sandbox.WithFile("/tmp/app/a/c", nil, 0)}, []string{"/tmp/app/c"}},
	}
	for name, test := range tests {
		var got []string
		for _, f := range made(test.opts...).Spec.Root.Layout(spec.Found{}).Files {
			got = append(got, f.Dst)
		}
		require.Equal(t, test.want, got, name)
	}
}

func imageDirs(dirs ...string) sandbox.Option { return func(c *spec.Spec) { c.Root.Dirs = dirs } }
