//go:build linux

package e2e

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The command has the groups that it was given, and no others.
func TestGroups(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	s := runs.Shell("id -G", sandbox.WithGroups(10, 65533, 0))
	require.Equal(t, "1000 0 10 65533", runs.Output(t, s))
	require.Equal(t, "1000", runs.Output(t, s.With(sandbox.WithGroups())), "the last one counts")
	require.Equal(t, "7 10", runs.Output(t, s.With(sandbox.WithGroups(10), sandbox.WithUser(7, 7))))
	prepared := s.With(sandbox.WithPrepared(1))
	require.NoError(t, prepared.Prepare(t.Context()))
	require.Equal(t, "1000 0 10 65533", runs.Output(t, prepared))
	require.Equal(t, "1000 11", runs.Output(t, prepared.With(sandbox.WithGroups(11))), "what is prepared for others does not serve")
}

// If a run has no ids except its user's, other groups are an error that says so. Root of a
// container may have them all.
func TestRootlessGroups(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "an ordinary user")
	out, err := runs.Shell("id -G", sandbox.WithGroups(4242)).Output(t.Context())
	if os.Geteuid() == 0 && err == nil {
		require.Equal(t, "1000 4242\n", string(out))
		return
	}
	runs.SetupError(t, err, "sandbox: WithGroups: ", "run this program as root")
}
