//go:build linux

package sandbox_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// The command has the groups that it was given, and no others.
func TestGroups(t *testing.T) {
	t.Parallel()
	need(t, "root")
	s := shell("id -G", sandbox.WithGroups(10, 65533, 0))
	require.Equal(t, "1000 0 10 65533", output(t, s))
	require.Equal(t, "1000", output(t, s.With(sandbox.WithGroups())), "the last one counts")
	require.Equal(t, "7 10", output(t, s.With(sandbox.WithGroups(10), sandbox.WithUser(7, 7))))
	prepared := s.With(sandbox.WithPrepared(1))
	require.NoError(t, prepared.Prepare(t.Context()))
	require.Equal(t, "1000 0 10 65533", output(t, prepared))
	require.Equal(t, "1000 11", output(t, prepared.With(sandbox.WithGroups(11))), "what is prepared for others does not serve")
}

// Where a run has no ids but its user's, other groups are an error that says so; root of a
// container may have them all.
func TestRootlessGroups(t *testing.T) {
	t.Parallel()
	need(t, "an ordinary user")
	out, err := shell("id -G", sandbox.WithGroups(4242)).Output(t.Context())
	if os.Geteuid() == 0 && err == nil {
		require.Equal(t, "1000 4242\n", string(out))
		return
	}
	setupError(t, err, "sandbox: WithGroups: ", "run this program as root")
}
