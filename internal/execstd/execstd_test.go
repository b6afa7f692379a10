//go:build linux

package execstd_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	adapter "github.com/cellkit/sandbox/internal/execstd/exec"
	"github.com/cellkit/sandbox/internal/execstd/shim"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// leftOut are the tests that can't pass, and why.
var leftOut = map[string]string{
	"TestWaitInterrupt/Exit-hang": "what a command leaves in the background ends with its run, and so does its output",
}

// ownFiles are those of os/exec's tests that test functions which are not of its API.
var ownFiles = []string{"env_test.go"}

// changes are what the tests import, what they get instead, and what they assume of the process in
// which they are: that it has no files open, while libcontainer keeps some, close-on-exec.
var changes = strings.NewReplacer(
	"haveUnexpectedFDs = true", "haveUnexpectedFDs = false",
	`"os/exec/internal/fdtest"`, `fdtest "github.com/cellkit/sandbox/internal/execstd/shim"`,
	`"internal/poll"`, `poll "github.com/cellkit/sandbox/internal/execstd/shim"`,
	`"internal/testenv"`, `testenv "github.com/cellkit/sandbox/internal/execstd/shim"`,
	`"internal/syscall/unix"`, `unix "github.com/cellkit/sandbox/internal/execstd/shim"`,
	`"os/exec"`, `"github.com/cellkit/sandbox/internal/execstd/exec"`,
)

// cancels is how tests have a signal sent at the end of the context, for which there is
// WithStopSignal.
const cancels = "cmd.Cancel = func() error {\n\t\t\treturn cmd.Process.Signal(interrupt)\n\t\t}"

// TestStandardLibrary builds and runs the tests of os/exec in the toolchain at hand.
func TestStandardLibrary(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "time to build programs")
	testkit.Need(t, "a whole machine's root")
	dir := testkit.OpenDir(t)
	overlay := rewritten(t, dir)
	std, adapted := filepath.Join(dir, "std.test"), filepath.Join(dir, "exec.test")
	build(t, "test", "-c", "-o", std, "os/exec")
	build(t, "test", "-c", "-o", adapted, "-overlay", overlay, "./exec")

	var skip []string
	for name := range leftOut {
		skip = append(skip, "^"+strings.ReplaceAll(name, "/", "$/^")+"$")
	}
	slices.Sort(skip)
	cmd := exec.CommandContext(testkit.Deadline(t), adapted, "-test.v", "-test.skip", strings.Join(skip, "|"))
	cmd.Dir = dir
	cache := filepath.Join(dir, "cache")
	require.NoError(t, os.Mkdir(cache, 0o755))
	cmd.Env = append(cmd.Environ(), shim.HelperEnv+"="+std, adapter.CacheEnv+"="+goEnv(t, "GOCACHE"), "GOCACHE="+cache, "GOROOT="+goEnv(t, "GOROOT"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "--- SKIP")
	for _, name := range []string{"TestWaitInterrupt", "TestCancelErrors", "TestExtraFiles", "TestStdinClose"} {
		require.Contains(t, string(out), "--- PASS: "+name+" ")
	}
}

// rewritten copies the tests into dir, and returns the overlay that puts them into package exec.
func rewritten(t *testing.T, dir string) string {
	files, err := filepath.Glob(filepath.Join(goEnv(t, "GOROOT"), "src/os/exec/*_test.go"))
	require.NoError(t, err)
	replace := map[string]string{}
	signals := 0
	for _, file := range files {
		name := filepath.Base(file)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		signals += bytes.Count(text, []byte(cancels))
		text = bytes.ReplaceAll(text, []byte(cancels), []byte("cmd.StopSignal = interrupt"))
		testkit.WriteFile(t, filepath.Join(dir, name), changes.Replace(string(text)), 0o644)
		if to, err := filepath.Abs(filepath.Join("exec", name)); err == nil && !slices.Contains(ownFiles, name) {
			replace[to] = filepath.Join(dir, name)
		}
	}
	require.Equal(t, 1, signals, "places where a test has a signal sent")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	overlay := filepath.Join(dir, "overlay.json")
	testkit.WriteFile(t, overlay, string(text), 0o644)
	return overlay
}

func build(t *testing.T, args ...string) {
	out, err := exec.CommandContext(testkit.Deadline(t), "go", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func goEnv(t *testing.T, name string) string {
	out, err := exec.Command("go", "env", name).Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}
