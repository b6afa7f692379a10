package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// old makes a directory look as if it had been left over.
func old(t *testing.T, dir string) {
	t.Helper()
	past := time.Now().Add(-2 * unnamedFor)
	require.NoError(t, os.Chtimes(dir, past, past))
}

func newTestState(t *testing.T, root string) *state {
	t.Helper()
	s, err := newState(root)
	require.NoError(t, err)
	t.Cleanup(s.release)
	return s
}

func TestStateIsPrivateAndLocked(t *testing.T) {
	root := t.TempDir()
	one, two := newTestState(t, root), newTestState(t, root)
	require.NotEqual(t, one.id, two.id)
	info, err := os.Stat(one.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o711), info.Mode().Perm())
	lock, err := os.Open(filepath.Join(one.dir, lockName))
	require.NoError(t, err)
	defer lock.Close()
	require.ErrorIs(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	require.NoError(t, one.remove())
	require.NoDirExists(t, one.dir)
	require.DirExists(t, two.dir)
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func TestSweep(t *testing.T) {
	root := t.TempDir()
	live, dead := newTestState(t, root), newTestState(t, root)
	require.NoError(t, os.MkdirAll(filepath.Join(dead.dir, "rootfs", "proc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dead.dir, cgroupName), nil, 0o600)) // its owner died before writing it
	dead.release()
	old(t, live.dir)

	dirs := map[string]bool{ // true: stays
		"young":  true,  // without a lock file
		"old":    false, // without a lock file
		".young": true,  // a lock file that its owner is about to lock
		".old":   false,
	}
	for name := range dirs {
		dir := filepath.Join(root, name)
		require.NoError(t, os.Mkdir(dir, 0o711))
		if name[0] == '.' {
			require.NoError(t, os.WriteFile(filepath.Join(dir, lockName), nil, 0o600))
		}
		if name == "old" || name == ".old" {
			old(t, dir)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))

	require.NoError(t, sweep(root))
	require.DirExists(t, live.dir)
	require.NoDirExists(t, dead.dir)
	require.FileExists(t, filepath.Join(root, "file"))
	for name, stays := range dirs {
		_, err := os.Stat(filepath.Join(root, name))
		require.Equal(t, stays, err == nil, name)
	}
	require.NoError(t, sweep(root), "again")
}

// What a runtime whose command is there yet may make again is removed when that has ended.
func TestSweepWhileRuntimeWorks(t *testing.T) {
	root := t.TempDir()
	dead := newTestState(t, root)
	container := filepath.Join(dead.dir, containerName)
	require.NoError(t, os.Mkdir(container, 0o711))
	command, err := os.Create(filepath.Join(container, "working"))
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(command.Fd()), unix.LOCK_EX))
	dead.release()
	require.True(t, wall.Working(container))
	require.NoError(t, sweep(root))
	require.DirExists(t, dead.dir)
	require.NoError(t, command.Close())
	require.NoError(t, sweep(root))
	require.NoDirExists(t, dead.dir)
}

// TestSweepGoesOn has a directory that can't be swept because its lock file is not a file.
func TestSweepGoesOn(t *testing.T) {
	root := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(root, "0"), 0o711))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "0", lockName)))
	dead := newTestState(t, root)
	dead.release()
	require.ErrorIs(t, sweep(root), unix.ELOOP)
	require.NoDirExists(t, dead.dir)
	require.FileExists(t, outside)
	require.Error(t, sweep(filepath.Join(root, "missing")))
}

// TestSweepWhileOthersStart makes states while others sweep: none fails.
func TestSweepWhileOthersStart(t *testing.T) {
	root := t.TempDir()
	stop := make(chan struct{})
	var sweepers, owners sync.WaitGroup
	for range 2 {
		sweepers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = sweep(root) // may fail on what another sweep removes
				}
			}
		})
	}
	for range 4 {
		owners.Go(func() {
			for range 50 {
				s, err := newState(root)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(s.dir); err != nil {
					t.Error("swept while its owner lives:", err)
				}
				if err := s.remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	owners.Wait()
	close(stop)
	sweepers.Wait()
}

func TestEnsureDir(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	dir := filepath.Join(base, "state")
	for range 2 { // makes it, then accepts it
		got, err := ensureDir(dir, 0o711)
		require.NoError(t, err)
		require.Equal(t, dir, got)
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o711), info.Mode().Perm())
	}
	require.NoError(t, os.Chmod(dir, 0o700))
	_, err = ensureDir(dir, 0o711)
	require.NoError(t, err)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o711), info.Mode().Perm())
}

func TestEnsureDirRefuses(t *testing.T) {
	base := t.TempDir()
	mine := filepath.Join(base, "mine")
	require.NoError(t, os.Mkdir(mine, 0o700))
	tests := map[string]func(dir string) error{
		"a link":                 func(dir string) error { return os.Symlink(mine, dir) },
		"a link to nothing":      func(dir string) error { return os.Symlink(base+"/nothing", dir) },
		"a file":                 func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"writable for all":       func(dir string) error { return mkdirMode(dir, 0o777) },
		"writable for all, /tmp": func(dir string) error { return mkdirMode(dir, 0o777|os.ModeSticky) },
		"writable for a group":   func(dir string) error { return mkdirMode(dir, 0o720) },
	}
	if os.Geteuid() == 0 {
		tests["of another user"] = func(dir string) error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return os.Chown(dir, 12345, 12345)
		}
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(base, "state-"+filepath.Base(t.Name()))
			require.NoError(t, prepare(dir))
			before, err := os.Lstat(dir)
			require.NoError(t, err)
			_, err = ensureDir(dir, 0o700)
			require.ErrorContains(t, err, dir)
			after, err := os.Lstat(dir)
			require.NoError(t, err)
			require.Equal(t, before.Mode(), after.Mode(), "changed what it refuses")
		})
	}
	_, err := ensureDir(base+"/nothing/state", 0o700)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func mkdirMode(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask
}

func TestUserStateRoot(t *testing.T) {
	runtimeDir, tmp, home := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("HOME", home)
	in := func(dir, name string) {
		t.Helper()
		got, err := userStateRoot()
		require.NoError(t, err)
		want, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	own := fmt.Sprintf("sandbox-%d", os.Geteuid())
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	in(runtimeDir, "sandbox")
	for _, unusable := range []string{"relative", filepath.Join(tmp, "missing")} {
		t.Setenv("XDG_RUNTIME_DIR", unusable)
		in(tmp, own)
	}
	// As if it were another user's.
	require.NoError(t, os.Chmod(filepath.Join(tmp, own), 0o777))
	in(home, ".sandbox")
	require.NoError(t, os.Chmod(filepath.Join(home, ".sandbox"), 0o777))
	_, err := userStateRoot()
	require.ErrorContains(t, err, "only it can write to")
	require.ErrorContains(t, err, own)
}
