package cell

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A boot must leave every thread of this process where it was. libcontainer can move one into the
// cell's mount namespace for good.
func TestBootMovesNoThread(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	for range 10 {
		c, err := Boot(Config{})
		require.NoError(t, err)
		threads, err := filepath.Glob("/proc/self/task/*/ns/mnt")
		require.NoError(t, err)
		require.NotEmpty(t, threads)
		for _, thread := range threads {
			if ns, err := os.Readlink(thread); err == nil {
				require.Equal(t, before, ns, thread)
			}
		}
		require.NoError(t, c.Close(context.Background()))
	}
}

// A library that only root can read is readable for the fork server all the same.
func TestReachCopiesPrivateLibraries(t *testing.T) {
	private := filepath.Join(t.TempDir(), "private")
	require.NoError(t, os.Mkdir(private, 0o700))
	lib := filepath.Join(private, "lib.so")
	require.NoError(t, os.WriteFile(lib, []byte("code"), 0o755))
	shell, err := exec.LookPath("sh")
	require.NoError(t, err)
	b := &binary{libs: []string{lib, shell}}
	require.NoError(t, b.reach(filepath.Join(t.TempDir(), "copies")))
	require.Len(t, b.copies, 1)
	data, err := os.ReadFile(b.copies[lib])
	require.NoError(t, err)
	require.Equal(t, "code", string(data))
}

// The remedy that the error names must work.
func TestIgnoredChildren(t *testing.T) {
	signal.Ignore(syscall.SIGCHLD)
	remedy := make(chan os.Signal, 1)
	defer signal.Stop(remedy)
	defer signal.Notify(remedy, syscall.SIGCHLD)
	_, err := Boot(Config{})
	require.ErrorContains(t, err, "ignores SIGCHLD")
	signal.Notify(remedy, syscall.SIGCHLD)
	c, err := Boot(Config{})
	require.NoError(t, err)
	require.NoError(t, c.Close(context.Background()))
}

// A guard that is added too late would keep the fork server from ending.
func TestNoGuardInClosingCell(t *testing.T) {
	var gs guards
	require.True(t, gs.add(&guard{}))
	gs.all = nil
	gs.fire()
	require.False(t, gs.add(&guard{}))
}
