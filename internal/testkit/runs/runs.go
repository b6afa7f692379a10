//go:build linux

// Package runs holds what black-box tests do with package sandbox.
package runs

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Shell returns a sandbox that runs a script.
func Shell(script string, opts ...sandbox.Option) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand("/bin/sh", "-c", script)).With(opts...)
}

// Helper returns a sandbox that runs a helper program of the test binary.
func Helper(name string, args ...string) *sandbox.Sandbox {
	return HelperOf(sandbox.New(HelperOptions()...), name, args...)
}

// HelperOptions and HelperOf do the same as Helper in two steps, because prepared runs may differ
// only in their commands.
func HelperOptions() []sandbox.Option {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return []sandbox.Option{sandbox.WithReadOnlyBind(exe, "/helper"), sandbox.WithEnv(testkit.HelperEnv)}
}

// HelperOf makes a sandbox with HelperOptions run a helper program.
func HelperOf(s *sandbox.Sandbox, name string, args ...string) *sandbox.Sandbox {
	return s.With(sandbox.WithCommand("/helper", testkit.HelperArgs(name, args...)...))
}

// HostID is an id that no user has.
const HostID = 50123

// HostUser makes a sandbox run as that id of the host.
func HostUser(s *sandbox.Sandbox) *sandbox.Sandbox {
	return s.With(sandbox.WithoutUserNamespace(), sandbox.WithUser(HostID, HostID+1))
}

// Layers returns the root that consists of the directories as layers.
func Layers(dirs ...string) sandbox.Option {
	return sandbox.WithRootfs(sandbox.LayersRootfs(dirs...))
}

// Prepared returns a sandbox with n prepared runs.
func Prepared(t testing.TB, n int, opts ...sandbox.Option) *sandbox.Sandbox {
	t.Helper()
	s := sandbox.New(append(opts, sandbox.WithPrepared(n))...)
	require.NoError(t, s.Prepare(testkit.Deadline(t)))
	return s
}

// Output runs the sandbox, which must succeed, and returns its output without the space around it.
func Output(t testing.TB, s *sandbox.Sandbox) string {
	t.Helper()
	out, err := s.Output(testkit.Deadline(t))
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		require.NoError(t, err, "stdout: %s\nstderr: %s", out, exit.Stderr)
	}
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// Start starts the sandbox and makes sure that its run ends before the test does.
func Start(t testing.TB, s *sandbox.Sandbox) *sandbox.Process {
	t.Helper()
	p, err := s.Start(testkit.Deadline(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
	})
	return p
}

// StartPrepared starts the sandbox, whose run must be a prepared one: its process was there before.
func StartPrepared(t testing.TB, s *sandbox.Sandbox) *sandbox.Process {
	t.Helper()
	before := testkit.Processes()
	p := Start(t, s)
	require.Contains(t, before, p.PID(), "a fresh run")
	return p
}

// ExitError returns the error of a run that was started.
func ExitError(t testing.TB, err error) *sandbox.ExitError {
	t.Helper()
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.NotNil(t, exit.Result)
	return exit
}

// SetupError returns the error of a run that was not started. Its text must contain each of words.
func SetupError(t testing.TB, err error, words ...string) *sandbox.SetupError {
	t.Helper()
	var setup *sandbox.SetupError
	require.ErrorAs(t, err, &setup)
	require.NotEmpty(t, setup.Stage)
	for _, w := range words {
		require.ErrorContains(t, err, w)
	}
	return setup
}

// OneID reports whether all runs have the id of this process: an ordinary user's without
// subordinate ids.
func OneID(t testing.TB) bool {
	t.Helper()
	for _, f := range sandbox.Check(testkit.Deadline(t)).Features {
		if f.Name == "user ids of its own for every run" {
			return f.Err != nil
		}
	}
	require.Fail(t, "no word about ids")
	return false
}
