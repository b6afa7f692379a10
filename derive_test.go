package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// Sandboxes that are derived with With, and options that are given more than once.

// TestLaterValueMendsEarlier overrides a wrong value of each option that takes a single one.
func TestLaterValueMendsEarlier(t *testing.T) {
	s := New(
		WithCommand(""), WithDir("x"), WithTimeout(-1), WithOutputLimit(-1),
		WithMemory(-1), WithSwap(-1), WithCPUs(-1), WithCPUWeight(10001), WithCPUSet("x"), WithPIDs(-1), WithCPUTime(-1),
		WithRlimit("nofile", 2, 1), WithCgroupParent("x"),
		WithHostname(""), WithUser(-1, -1), WithNetwork(nil),
		WithRootfs(DirRootfs("x")), WithWritableRoot(-1),
	)
	require.NotEmpty(t, s.is.Spec.Check())
	mended := s.With(
		valid, WithDir("/x"), WithTimeout(1), WithOutputLimit(1),
		WithMemory(MiB), WithSwap(1), WithCPUs(0.5), WithCPUWeight(1), WithCPUSet("0"), WithPIDs(1), WithCPUTime(1),
		WithRlimit("nofile", 1, 2), WithCgroupParent("/x"),
		WithHostname("x"), WithUser(1, 1), WithNetwork(NetworkHost),
		WithRootfs(HostRootfs()), WithWritableRoot(1),
	)
	require.Empty(t, mended.is.Spec.Check())
	require.NotEmpty(t, s.is.Spec.Check(), "the receiver")
}

func TestLastValueWins(t *testing.T) {
	profile := &specs.LinuxSeccomp{}
	c := New(valid, WithCommand("a", "b"), WithDir("/a"), WithDir("/b"), WithMemory(MiB), WithMemory(2*MiB),
		WithRlimit("core", 1, 1), WithRlimit("core", 2, 3), WithUser(1, 1), WithUser(2, 3),
		WithoutSeccomp(), WithSeccomp(profile)).is.Spec
	require.Equal(t, []string{"a", "b"}, c.Command.Argv)
	require.Equal(t, "/b", c.Command.Dir)
	require.Equal(t, int64(2*MiB), c.Limits.Memory)
	require.Equal(t, map[string]spec.Rlimit{"core": {Soft: 2, Hard: 3}}, c.Command.Rlimits)
	require.Equal(t, [2]int{2, 3}, [2]int{c.Namespaces.UID, c.Namespaces.GID})
	require.Same(t, profile, c.Security.Seccomp)
	require.False(t, c.Security.NoSeccomp)

	c = New(WithSeccomp(profile), WithoutSeccomp()).is.Spec
	require.Nil(t, c.Security.Seccomp)
	require.True(t, c.Security.NoSeccomp)
}

// adding returns a change by every option that adds to what there is.
func adding(name string) []Option {
	return []Option{
		WithEnv("WHO="+name, name+"=1"), WithExtraFiles(os.NewFile(1<<20, name)), WithBind("/"+name, "/bind-"+name),
		WithReadOnlyBind("/"+name, "/ro-"+name), WithTmpfs("/tmp-"+name, 1), WithFile("/file-"+name, []byte(name), 0),
		WithCapabilities("CAP_" + name), WithIO(IOLimit{Path: "/" + name, ReadBytes: 1}), WithRlimit(name, 1, 1),
	}
}

// names returns what adding left in a description.
func names(c *spec.Spec) string {
	all := slices.Clone(c.Command.Env)
	for _, f := range c.Streams.Extra {
		all = append(all, f.Name())
	}
	for _, m := range c.Root.Mounts {
		all = append(all, fmt.Sprint(m.Source, ">", m.Dst))
	}
	all = append(all, c.Security.Capabilities...)
	for _, l := range c.Limits.IO {
		all = append(all, l.Path)
	}
	return fmt.Sprint(all, c.Command.Rlimits)
}

func TestWithLeavesReceiverUnchanged(t *testing.T) {
	// Several calls, so that slices have room to append to in place.
	base := New(valid).With(adding("a")...).With(adding("b")...).With(adding("c")...)
	before := names(&base.is.Spec)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			name := fmt.Sprint("derived", i)
			one := base.With(adding(name)...)
			want := New(valid).With(adding("a")...).With(adding("b")...).With(adding("c")...).With(adding(name)...)
			two := one.With(adding("x")...)
			if got := names(&one.is.Spec); got != names(&want.is.Spec) {
				t.Errorf("got %s\nwant %s", got, names(&want.is.Spec))
			}
			if got := names(&two.is.Spec); !strings.Contains(got, name) || !strings.Contains(got, "file-x") {
				t.Errorf("got %s", got)
			}
		})
	}
	all.Wait()
	require.Equal(t, before, names(&base.is.Spec))
}

// TestOptionsKeepNoReference changes what options were made from afterwards.
func TestOptionsKeepNoReference(t *testing.T) {
	args, env, data, caps := []string{"a"}, []string{"A=1"}, []byte("data"), []string{"CAP_KILL"}
	io := []IOLimit{{Path: "/a", ReadBytes: 1}}
	opts := []Option{WithFile("/f", data, 0)}
	data[0] = 'X'
	s := New(append(opts, WithCommand("c", args...), WithEnv(env...), WithCapabilities(caps...), WithIO(io...))...)
	args[0], env[0], caps[0], io[0].Path = "X", "X=1", "X", "X"
	require.Equal(t, []string{"c", "a"}, s.is.Spec.Command.Argv)
	require.Equal(t, []string{"A=1"}, s.is.Spec.Command.Env)
	require.Equal(t, spec.File{Data: "data"}, s.is.Spec.Root.Mounts[0].Source)
	require.Equal(t, []string{"CAP_KILL"}, s.is.Spec.Security.Capabilities)
	require.Equal(t, "/a", s.is.Spec.Limits.IO[0].Path)
}

func TestOptionsAreReusable(t *testing.T) {
	opts := append(adding("a"), valid, WithStdout(&bytes.Buffer{}))
	one, two := New(opts...), New(opts...)
	require.Equal(t, names(&one.is.Spec), names(&two.is.Spec))
	require.NotEqual(t, names(&one.is.Spec), names(&one.With(opts...).is.Spec))
}

// The zero Sandbox is that of New.
func TestZeroSandbox(t *testing.T) {
	var zero Sandbox
	_, err := zero.Explain()
	_, want := New().Explain()
	require.EqualError(t, err, want.Error())
	require.Empty(t, zero.With(WithCommand("true")).is.Spec.Check())
}
