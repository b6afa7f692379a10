//go:build linux

package e2e

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A run whose user is root gives what is in a scratch to another user, as the entrypoints of
// database images do, and a later one finds it so. For any other user that is somebody else's, and
// what root kept is its own.
func TestScratchOwners(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	s := newScratch(t, sandbox.MiB)
	root := []sandbox.Option{sandbox.WithUser(0, 0), sandbox.WithScratch("/data", s), sandbox.WithDir("/data"),
		sandbox.WithCapabilities("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID")}
	const asOther = "setpriv --reuid 999 --regid 998 --clear-groups sh -c "
	out := runs.Output(t, runs.Shell("mkdir given kept; chown 999:998 given; "+asOther+"'umask 077; echo theirs >given/file; touch kept/file' 2>&1; echo mine >kept/file; chmod 600 kept/file", root...))
	require.Contains(t, out, "Permission denied")
	out = runs.Output(t, runs.Shell("stat -c '%u:%g %a %n' given given/file kept/file; "+asOther+"'cat given/file; echo more >>given/file'", root...))
	require.Equal(t, "999:998 755 given\n999:998 600 given/file\n0:0 600 kept/file\ntheirs", out)
	b, err := fs.ReadFile(s.FS(), "given/file")
	require.NoError(t, err)
	require.Equal(t, "theirs\nmore\n", string(b))

	for _, opts := range [][]sandbox.Option{nil, {sandbox.WithUser(999, 998)}, {sandbox.WithUser(0, 7)}} {
		opts = append(opts, sandbox.WithScratch("/data", s), sandbox.WithDir("/data"))
		out := runs.Output(t, runs.Shell("stat -c '%U:%G' given/file; cat kept/file; cat given/file 2>&1; touch given/x 2>&1; echo >own && rm own", opts...))
		require.Regexp(t, `^nobody:nogroup\nmine\ncat: given/file: Permission denied\ntouch: .*Permission denied$`, out)
	}

	dir := t.TempDir()
	require.NoError(t, s.CopyOut(dir+"/out"))
	require.Equal(t, owner(t, dir), owner(t, dir+"/out/given/file"))
}
