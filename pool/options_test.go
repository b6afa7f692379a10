package pool

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// TestWrongOptions checks that everything that is wrong with a pool is reported at once.
func TestWrongOptions(t *testing.T) {
	p := New(sandbox.New(sandbox.WithCommand("true")), 0, Queue(-1))
	_, err := p.Run(t.Context())
	all, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok)
	require.Len(t, all.Unwrap(), 2)
	for i, want := range []string{"pool.New: 0 is not a positive number of runs", "pool.Queue: -1 is negative"} {
		var wrong *fault.OptionError
		require.ErrorAs(t, all.Unwrap()[i], &wrong)
		require.EqualError(t, wrong, "sandbox: "+want)
	}
	require.NoError(t, p.Close(t.Context()))
}

// TestZeroIsNoLimit takes limits away that were set, and leaves out an option that is nil.
func TestZeroIsNoLimit(t *testing.T) {
	p := New(sandbox.New(), 1, Memory(1<<20), CPUs(0.5), nil, Memory(0), CPUs(0))
	require.Equal(t, config{queue: defaultQueue}, p.conf)
	require.False(t, p.shared.IsLimited())
}
