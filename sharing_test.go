package sandbox

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// What is not compiled can change without a new compilation: a service derives
// a sandbox for each request. And a run that is prepared serves whatever the command is.
func TestDerivedSandboxesShareTheirPrograms(t *testing.T) {
	base := New(WithCommand("true"), WithEnv("A=1"), WithFile("/f", []byte("x"), 0o600), WithWritableRoot(MiB), WithRlimit("nofile", 9, 9), WithPrepared(1))
	const plans, command, prepared = 1, 2, 4
	tests := []struct {
		name string
		opt  Option
		same int
	}{
		{"stdin", WithStdin(strings.NewReader("")), plans | command | prepared},
		{"stdout", WithStdout(&strings.Builder{}), plans | command | prepared},
		{"timeout", WithTimeout(time.Second), plans | command | prepared},
		{"wait delay", WithWaitDelay(time.Second), plans | command | prepared},
		{"output", WithOutputLimit(1), plans | command | prepared},
		{"same root", WithWritableRoot(MiB), plans | command | prepared},
		{"same command", WithCommand("true"), plans | command | prepared},
		{"memory", WithMemory(MiB), plans | command},
		{"I/O", WithIO(IOLimit{Path: "/", ReadOps: 1}), plans | command},
		{"cell", WithCell(&Cell{}), plans | command},
		{"more", WithPrepared(2), plans | command},
		{"command", WithCommand("false"), plans | prepared},
		{"argument", WithCommand("true", "x"), plans | prepared},
		{"env", WithEnv("B=2"), plans | prepared},
		{"dir", WithDir("/"), plans | prepared},
		{"extra", WithExtraFiles(os.Stdin), plans | prepared},
		{"rlimit", WithRlimit("nofile", 8, 9), plans | prepared},
		{"file", WithFile("/g", nil, 0), 0}, // its content goes with the command
		{"file in memory", WithFile("/tmp/g", nil, 0), plans | prepared},
		{"file in shared memory", WithFile("/dev/shm/a/b", nil, 0), plans | prepared},
		{"file beside a mount point", withAll(WithTmpfs("/tmp/a/b", MiB), WithFile("/tmp/a/c", nil, 0)), 0},
		{"file and mount", withAll(WithTmpfs("/srv", MiB), WithFile("/srv/c", nil, 0)), 0},
		{"bind", WithBind("/a", "/b"), command},
		{"root", WithWritableRoot(2 * MiB), command},
		{"rootfs", WithRootfs(DirRootfs("/x")), command},
		{"user", WithUser(1, 1), command},
		{"network", WithNetwork(NetworkHost), command},
		{"hostname", WithHostname("x"), command},
		{"capability", WithCapabilities("CAP_CHOWN"), 0},
		{"seccomp", WithoutSeccomp(), 0},
		{"set-id", WithSetID(), 0},
	}
	for _, test := range tests {
		got, derived := 0, base.With(test.opt)
		if derived.plans == base.plans {
			got |= plans
		}
		if derived.command == base.command {
			got |= command
		}
		if derived.prepared == base.prepared {
			got |= prepared
		}
		require.Equal(t, test.same, got, test.name)
		require.NotNil(t, derived.prepared, test.name)
	}
	require.Nil(t, base.With(WithPrepared(0)).prepared)
	one := base.With(WithFile("/tmp/g", []byte("x"), 0o600))
	same := base.With(WithFile("/tmp/g", []byte("x"), 0o600))
	require.True(t, one.config.SameCommand(&same.config))
	for _, opt := range []Option{WithFile("/tmp/g", []byte("y"), 0o600), WithFile("/tmp/g", []byte("x"), 0o644), WithFile("/tmp/h", []byte("x"), 0o600)} {
		other := base.With(opt)
		require.False(t, one.config.SameCommand(&other.config))
		require.Same(t, one.plans, other.plans)
	}
	limited := base.With(WithMemory(MiB), WithPIDs(9))
	require.Same(t, limited.prepared, limited.With(WithMemory(MiB), WithPIDs(9)).prepared, "the same limits, given again")
}

// A mount may decide by whom a file is made that was there before, and from where on its
// directories are missing: then the command's program is another one.
func TestMountsThatChangeFiles(t *testing.T) {
	for name, test := range map[string]struct{ file, mount Option }{
		"the directory becomes root's": {WithFile("/home/sandbox/.config/x", nil, 0), WithReadOnlyBind("/srv", "/home/sandbox/.config/y")},
		"the place becomes memory":     {WithFile("/data/f", nil, 0), WithTmpfs("/data", 0)},
		"memory below memory":          {WithFile("/tmp/a/f", nil, 0), WithTmpfs("/tmp/a", 0)},
		"a directory of an image":      {WithFile("/home/sandbox/a/f", nil, 0), withAll(WithReadOnlyBind("/srv", "/home/sandbox/a/b"), imageDirs("/home/sandbox/a/c"))},
	} {
		a := New(WithCommand("true"), test.file)
		b := a.With(test.mount)
		require.NotSame(t, a.plans, b.plans, name)
		require.NotSame(t, a.command, b.command, name)
	}
}

// Neither the order of mounts nor how their places are written keeps sandboxes from sharing runs.
func TestOrderOfMounts(t *testing.T) {
	base := New(WithCommand("true"), WithBind("/a", "/job/in"), WithBind("/b", "/out"), WithTmpfs("/job/tmp/", 0), WithPrepared(1))
	for _, file := range []string{"/tmp/in", "/home/sandbox/in"} {
		s := base.With(WithFile(file, []byte("x"), 0o644))
		require.Same(t, base.plans, s.plans, file)
		require.Same(t, base.prepared, s.prepared, file)
		require.NotSame(t, base.command, s.command, file)
	}
}

func withAll(opts ...Option) Option {
	return func(c *spec.Spec) {
		for _, opt := range opts {
			opt(c)
		}
	}
}

// Runs are prepared without the files that the run's user can make: their number and size is in no
// program but the command's.
func TestFilesThatGoWithTheCommand(t *testing.T) {
	tests := map[string]struct {
		opts []Option
		want []string
	}{
		"default file systems": {[]Option{WithFile("/tmp/a/../b/c", nil, 0), WithFile("/home/sandbox/d", nil, 0), WithFile("/dev/shm/e", nil, 0)},
			[]string{"/dev/shm/e", "/home/sandbox/d", "/tmp/b/c"}},
		"the root":                       {[]Option{WithFile("/a", nil, 0), WithFile("/etc/b", nil, 0), WithFile("/tmpfile", nil, 0)}, nil},
		"a writable root":                {[]Option{WithWritableRoot(MiB), WithFile("/a", nil, 0), WithFile("/tmp/b", nil, 0)}, []string{"/tmp/b"}},
		"a tmpfs":                        {[]Option{WithFile("/srv/a/b", nil, 0), WithTmpfs("/srv", MiB)}, []string{"/srv/a/b"}},
		"a tmpfs in a bind":              {[]Option{WithBind("/x", "/srv"), WithTmpfs("/srv/a", MiB), WithFile("/srv/a/b", nil, 0)}, []string{"/srv/a/b"}},
		"a bind":                         {[]Option{WithBind("/x", "/tmp"), WithFile("/tmp/b", nil, 0)}, nil},
		"the directory of a mount":       {[]Option{WithBind("/x", "/tmp/a/b"), WithFile("/tmp/a/c", nil, 0), WithFile("/tmp/a/d/e", nil, 0)}, nil},
		"beside that":                    {[]Option{WithBind("/x", "/tmp/a/b"), WithFile("/tmp/c", nil, 0), WithFile("/tmp/ab", nil, 0)}, []string{"/tmp/ab", "/tmp/c"}},
		"below another tmpfs":            {[]Option{WithTmpfs("/tmp/a/b", MiB), WithFile("/tmp/a/b/c/d", nil, 0)}, []string{"/tmp/a/b/c/d"}},
		"an image's directory":           {[]Option{imageDirs("/tmp/app"), WithFile("/tmp/app/a/b", nil, 0)}, []string{"/tmp/app/a/b"}},
		"below an image's":               {[]Option{imageDirs("/tmp/a/b"), WithFile("/tmp/a/b/c", nil, 0), WithFile("/tmp/a/c", nil, 0)}, []string{"/tmp/a/b/c"}},
		"between two of an image":        {[]Option{imageDirs("/tmp/a/b", "/tmp/a"), WithFile("/tmp/a/c", nil, 0)}, []string{"/tmp/a/c"}},
		"an image's, with a mount in it": {[]Option{imageDirs("/tmp/app"), WithTmpfs("/tmp/app/a/b", MiB), WithFile("/tmp/app/c", nil, 0), WithFile("/tmp/app/a/c", nil, 0)}, []string{"/tmp/app/c"}},
	}
	for name, test := range tests {
		var got []string
		for _, f := range New(test.opts...).config.Root.Layout(spec.Found{}).Files {
			got = append(got, f.Dst)
		}
		require.Equal(t, test.want, got, name)
	}
}

func imageDirs(dirs ...string) Option { return func(c *spec.Spec) { c.Root.Dirs = dirs } }
