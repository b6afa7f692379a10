//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// In a container that was started without the flags that a cell takes, the error names exactly
// these flags.
func TestContainerHint(t *testing.T) {
	c, err := sandbox.NewCell()
	if os.Getenv("SANDBOX_TEST_CONFIG") != "docker-default" {
		require.NoError(t, err)
		require.NoError(t, c.Close())
		return
	}
	setup := runs.SetupError(t, err)
	require.Equal(t, "cell", setup.Stage)
	require.Contains(t, setup.Hint, "--security-opt seccomp=unconfined")
	require.Contains(t, setup.Hint, "--security-opt systempaths=unconfined")
	require.Contains(t, setup.Hint, "seccompProfile: {type: Unconfined}, ")
	require.Contains(t, setup.Hint, "procMount: Unmasked")
	_, statErr := os.Stat("/sys/module/apparmor")
	require.Equal(t, statErr == nil, strings.Contains(setup.Hint, "--security-opt apparmor=unconfined"))
	t.Log(err, "\n", setup.Hint)
}

// A run within a run is an error that says so.
func TestRootlessNestedRun(t *testing.T) {
	t.Parallel()
	require.Contains(t, runs.Output(t, runs.Helper("nested")), "runs can't be nested")
}

// Root of a user namespace has no rights over the mounts that it sees, unless they are its own, nor
// over cgroups. Runs work in both cases.
func TestRootlessNestedNamespace(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "user namespaces")
	exe, err := os.Executable()
	require.NoError(t, err)
	for _, flags := range []string{"-Ur", "-Urm"} {
		cmd := exec.CommandContext(testkit.Deadline(t), "unshare", append([]string{flags, exe}, testkit.HelperArgs("nested")...)...)
		cmd.Env = append(os.Environ(), testkit.HelperEnv, "TMPDIR="+testkit.OpenDir(t), "XDG_RUNTIME_DIR=")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, "ran as 1000\n", string(out), flags)
	}
}
