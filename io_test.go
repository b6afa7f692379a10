//go:build linux

package sandbox_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// At 4 MiB a second, 4 MiB that go past the page cache take about a second.
func TestIO(t *testing.T) {
	t.Parallel()
	need(t, "block I/O limits")
	dir, err := os.MkdirTemp("/var/tmp", "io")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(dir)) }()
	write := sandbox.New(sandbox.WithCommand("dd", "if=/dev/zero", "of=/io/file", "bs=256k", "count=16", "oflag=direct"), sandbox.WithBind(dir, "/io"))

	limited := write.With(sandbox.WithIO(sandbox.IOLimit{Path: dir, WriteBytes: 4 * sandbox.MiB}))
	res, err := limited.Run(deadline(t))
	require.NoError(t, err)
	require.Greater(t, res.Usage.Wall, 600*time.Millisecond)
	require.GreaterOrEqual(t, res.Usage.WriteBytes, uint64(4*sandbox.MiB))

	few := write.With(sandbox.WithIO(sandbox.IOLimit{Path: dir, WriteOps: 16}))
	res, err = few.Run(deadline(t))
	require.NoError(t, err)
	require.Greater(t, res.Usage.Wall, 600*time.Millisecond)
}

func TestIORefused(t *testing.T) {
	t.Parallel()
	for path, why := range map[string]string{"/proc": "does not lie on a single block device", "/no/such/place": "no such file"} {
		_, err := shell("", sandbox.WithIO(sandbox.IOLimit{Path: path, ReadOps: 1})).Run(deadline(t))
		require.ErrorContains(t, err, "WithIO: "+path)
		require.ErrorContains(t, err, why)
	}
}
