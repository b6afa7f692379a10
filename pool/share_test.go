//go:build linux

package pool_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

func TestCapacity(t *testing.T) {
	p := pool.New(sandbox.New(sandbox.WithMemory(32*sandbox.MiB), sandbox.WithCPUs(0.5)), 3, pool.Memory(64*sandbox.MiB), pool.CPUs(2))
	require.Equal(t, pool.Capacity{Runs: 3, Memory: 64 * sandbox.MiB, CPUs: 2, RunMemory: 32 * sandbox.MiB, RunCPUs: 0.5}, p.Capacity())
	require.Equal(t, pool.Capacity{Runs: 1}, pool.New(sandbox.New(), 1).Capacity())
}

// What shares a pool's limits is killed by them.
func TestShare(t *testing.T) {
	testkit.Need(t, "limits")
	p := pool.New(sandbox.New(), 1, pool.Memory(32*sandbox.MiB))
	ctx := testkit.Deadline(t)
	defer func() { require.NoError(t, p.Close(ctx)) }()
	grows := sandbox.New(sandbox.WithCommand("sh", "-c", "head -c 100000000 /dev/zero | tail -c 100000000 > /dev/null"))
	_, err := grows.Run(ctx)
	require.NoError(t, err)
	_, err = grows.With(p.Share()).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	none := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(t, none.Close(ctx)) }()
	_, err = grows.With(none.Share()).Run(ctx)
	require.NoError(t, err, "a pool without limits has none to share")
}
