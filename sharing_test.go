package sandbox

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
		{"file", WithFile("/g", nil, 0), command},
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
	limited := base.With(WithMemory(MiB), WithPIDs(9))
	require.Same(t, limited.prepared, limited.With(WithMemory(MiB), WithPIDs(9)).prepared, "the same limits, given again")
}
