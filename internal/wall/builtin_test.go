//go:build linux

package wall

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

// container describes one whose PID 1 is a program without libraries, as the caller's user.
func container(t *testing.T, args ...string) *Container {
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	require.NoError(t, err)
	t.Cleanup(func() { stderr.Close() })
	return &Container{
		Rootfs: t.TempDir(),
		Args:   args,
		Stderr: stderr,
		UIDs:   []Extent{{0, int64(os.Geteuid()), 1}},
		GIDs:   []Extent{{0, int64(os.Getegid()), 1}},
	}
}

// start starts it on a thread that does not end before PID 1 does.
func start(t *testing.T, c *Container) (Process, error) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	return Builtin().Start(c)
}

// TestBuiltinFailures has containers that can't be made: the error says what failed, and no process
// is left.
func TestBuiltinFailures(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(c *Container)
		errno unix.Errno
		text  string
	}{
		"missing library": {func(c *Container) { c.Binds = []Bind{{"/nonexistent/lib.so", "/lib/lib.so"}} }, unix.ENOENT, `root: mount("/nonexistent/lib.so", "lib/lib.so"`},
		"missing root":    {func(c *Container) { c.Rootfs = "/nonexistent" }, unix.ENOENT, `chdir("/nonexistent")`},
		"missing program": {func(c *Container) { c.Args = []string{"/nonexistent"} }, unix.ENOENT, `exec: execve("/nonexistent"`},
		"no program":      {func(c *Container) { c.Args = []string{"/dev/null"} }, unix.EACCES, `exec: execve("/dev/null"`},
		"ids":             {func(c *Container) { c.UIDs = []Extent{{0, 1, 0}} }, unix.EINVAL, "mapping user ids"},
		"adopt":           {func(c *Container) { c.Adopt = func(int) error { return unix.EDOM } }, unix.EDOM, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := container(t, "/proc/self/exe")
			test.spoil(c)
			_, err := start(t, c)
			require.ErrorIs(t, err, test.errno)
			require.ErrorContains(t, err, test.text)
			_, err = unix.Wait4(-1, nil, unix.WNOHANG, nil)
			require.Equal(t, unix.ECHILD, err, "a child is left")
		})
	}
}

// TestBuiltinDescriptors executes a program that lists its descriptors: those that it is given and
// no other, though this process has one that exec does not close.
func TestBuiltinDescriptors(t *testing.T) {
	testkit.Need(t, "a static busybox")
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	busybox, err = filepath.EvalSymlinks(busybox)
	require.NoError(t, err)
	open, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(open)
	given, want, err := os.Pipe()
	require.NoError(t, err)
	defer given.Close()
	c := container(t, "/ls", "-l", "/proc/self/fd")
	c.Binds = []Bind{{busybox, "/ls"}}
	c.Files = []*os.File{want, given}
	p, err := start(t, c)
	require.NoError(t, err)
	want.Close()
	_, err = io.ReadAll(given) // its end
	require.NoError(t, err)
	state, err := p.Wait()
	require.NoError(t, err)
	out, err := os.ReadFile(c.Stderr.Name())
	require.NoError(t, err)
	require.True(t, state.Success(), "%s", out)
	require.NoError(t, p.Destroy())
	// That of ls itself, 5, is closed when ls looks where it leads.
	require.Equal(t, 5, strings.Count(string(out), " -> "), "%s", out)
	require.NotContains(t, string(out), "passwd")
	require.Regexp(t, "(?m) 0 -> /dev/null$", string(out))
}

func TestBuiltinExplains(t *testing.T) {
	failed := func(number uintptr, purpose program.Purpose, errno unix.Errno) error {
		return fmt.Errorf("booting the cell: %w", &callError{program.Call{Number: number, Purpose: purpose}, errno})
	}
	for _, test := range []struct {
		err    error
		why    Why
		denied bool
	}{
		{errors.New("no space left on device"), Other, false},
		{failed(unix.SYS_MOUNT, program.OwnPlace, unix.EPERM), ProcUnmounted, true},
		{failed(unix.SYS_MOUNT, program.General, unix.EACCES), Other, true},
		{failed(unix.SYS_MOUNT, program.General, unix.ENOENT), Other, false},
		{failed(unix.SYS_CAPSET, program.General, unix.EPERM), CapabilitiesLacking, true},
		{failed(unix.SYS_CLONE3, program.General, unix.EPERM), CapabilitiesLacking, true},
		{failed(unix.SYS_CLONE3, program.General, unix.ENOSYS), Other, true},
		{&mapError{unix.EPERM}, IDsUnmapped, false},
	} {
		why, denied := Builtin().Explain(test.err)
		require.Equal(t, test.why, why, test.err)
		require.Equal(t, test.denied, denied, test.err)
	}
}
