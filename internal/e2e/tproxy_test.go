//go:build linux

package e2e

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// More ports than there may be listeners, on a kernel that has no nft_tproxy, nor can load it: the
// error names the option, and what helps.
func TestPrivateWithoutTproxy(t *testing.T) { // not in parallel: it is of the whole machine
	testkit.Need(t, "a module nft_tproxy to unload")
	few := newNetwork(t, sandbox.AllowCIDR("127.0.0.1", sandbox.TCPRange(1, 200)))
	fits := sandbox.New(sandbox.WithCommand("true"), sandbox.WithNetwork(few.As("client")))
	_, err := fits.Run(context.Background()) // which loads what any private network takes
	require.NoError(t, err)
	testkit.SetSysctl(t, "kernel/modprobe", "/bin/false")
	testkit.Eventually(t, "no namespace uses it any more", func() bool {
		err := unix.DeleteModule("nft_tproxy", 0)
		return err == nil || errors.Is(err, unix.ENOENT)
	})
	n := newNetwork(t, sandbox.AllowCIDR("127.0.0.1", sandbox.TCP()))
	_, err = fits.With(sandbox.WithNetwork(n.As("client"))).Run(context.Background())
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, "NewNetwork", wrong.Option)
	require.ErrorContains(t, err, "65535 different ports are allowed, and more than 200 take a kernel with nft_tproxy: load it (modprobe nft_tproxy) or allow fewer")
	_, err = fits.Run(context.Background())
	require.NoError(t, err)
	for _, f := range sandbox.Check(testkit.Deadline(t)).Features {
		if f.Name == "all ports on private networks" {
			require.ErrorContains(t, f.Err, "modprobe nft_tproxy")
			return
		}
	}
	require.Fail(t, "Check has no row for it")
}
