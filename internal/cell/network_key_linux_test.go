package cell

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// A namespace has its key for TCP fast open before any run that may ask for it. Few kernels show it
// to a run, so the look of the attack tests does not tell.
func TestNetworkHasKey(t *testing.T) {
	c, err := Boot(Config{})
	require.NoError(t, err)
	defer c.Close(context.Background())
	n, err := c.networks.make()
	require.NoError(t, err)
	defer n.close()
	ns, err := n.Open()
	require.NoError(t, err)
	defer ns.Close()
	files, err := c.InNetwork(ns, func(b *program.Builder) []program.Slot {
		return []program.Slot{b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/sys/net/ipv4/tcp_fastopen_key"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC), program.Int(0))}
	})
	require.NoError(t, err)
	defer files[0].Close()
	key := make([]byte, 256)
	size, err := files[0].Read(key)
	require.NoError(t, err)
	require.Regexp(t, "[1-9a-f]", string(key[:size]))
}
