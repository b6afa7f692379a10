package sandbox

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is not compiled can change without a new compilation: a service derives
// a sandbox for each request.
func TestDerivedSandboxesShareTheirPrograms(t *testing.T) {
	base := New(WithCommand("true"), WithEnv("A=1"), WithFile("/f", []byte("x"), 0o600), WithWritableRoot(MiB), WithRlimit("nofile", 9, 9))
	for name, o := range map[string]Option{
		"stdin": WithStdin(strings.NewReader("")), "stdout": WithStdout(&strings.Builder{}), "timeout": WithTimeout(time.Second),
		"memory": WithMemory(MiB), "output": WithOutputLimit(1), "same root": WithWritableRoot(MiB), "same command": WithCommand("true"),
	} {
		require.Same(t, base.plans, base.With(o).plans, name)
	}
	for name, o := range map[string]Option{
		"command": WithCommand("false"), "argument": WithCommand("true", "x"), "env": WithEnv("B=2"), "dir": WithDir("/"),
		"extra": WithExtraFiles(os.Stdin), "file": WithFile("/g", nil, 0), "bind": WithBind("/a", "/b"), "root": WithWritableRoot(2 * MiB),
		"rootfs": WithRootfs(DirRootfs("/x")), "rlimit": WithRlimit("nofile", 8, 9), "user": WithUser(1, 1), "network": WithNetwork(NetworkHost),
		"hostname": WithHostname("x"), "capability": WithCapabilities("CAP_CHOWN"), "seccomp": WithoutSeccomp(), "set-id": WithSetID(),
	} {
		require.NotSame(t, base.plans, base.With(o).plans, name)
	}
}
