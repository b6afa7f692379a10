package cell

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// A guest that enters when its cell has ended all of them would be waited for, and never killed.
func TestGuestTooLate(t *testing.T) {
	c := &Cell{done: make(chan struct{}), state: &state{dir: t.TempDir()}}
	require.True(t, c.enter())
	c.endGuests()
	_, err := c.enterGuest(func() {})
	require.ErrorIs(t, err, ErrLost)
}

// What an image has where guests have this program, and its list of libraries for every process,
// does not get into this program, which is root with capabilities there.
func TestGuestImage(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	c := &Cell{state: &state{dir: t.TempDir()}}
	own, args, err := c.OwnInGuest()
	require.NoError(t, err)
	image := t.TempDir()
	for _, dir := range []string{guestPlace, "/etc", "/proc"} {
		require.NoError(t, os.Mkdir(filepath.Join(image, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(image, guestPlace, "theirs"), nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(image, "etc/ld.so.preload"), []byte("/theirs.so\n"), 0o644))
	const script = `mount --make-rprivate / && mount -t overlay -o "lowerdir=$1:$2" overlay "$2" && mount -t proc proc "$2/proc" && ls "$2` + guestPlace + `" && cd "$2" && shift 2 && exec chroot . "$@"`
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"-m", "sh", "-c", script, "sh", own, image}, append(args, "-test.list=^TestGuestImage$")...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "program\n")
	require.NotContains(t, string(out), "theirs")
	require.True(t, strings.HasSuffix(string(out), "\nTestGuestImage\n"), string(out))
}
