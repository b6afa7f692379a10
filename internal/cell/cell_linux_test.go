package cell

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// A cell that could not look for its cgroups for want of descriptors is not one without cgroups, in
// which runs would be without the limits that they have by default.
func TestCgroupsWithoutDescriptors(t *testing.T) {
	c := &Cell{state: &state{id: "none", dir: t.TempDir()}}
	var err error
	testkit.WithDescriptors(t, 0, func() { err = c.makeCgroups() })
	require.ErrorIs(t, err, unix.EMFILE)
	require.NoError(t, c.LimitsErr)
}
