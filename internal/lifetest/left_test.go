//go:build linux

package lifetest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Other processes of this machine may use the library at the same time. So only what has no living
// owner counts as left: no process holds the lock of the state directory with that name.

const (
	stateRoot  = "/run/sandbox"
	cgroupRoot = "/sys/fs/cgroup"
)

// requireNothingLeft fails if something of a dead owner is left, or of this process once it has no
// cell any more.
func requireNothingLeft(t testing.TB) {
	t.Helper()
	var left []string
	for range 20 { // owners come and go meanwhile
		if left = leftovers(t); len(left) == 0 {
			return
		}
		time.Sleep(testkit.Scale(50*time.Millisecond, 500*time.Millisecond))
	}
	require.Empty(t, left, "left behind")
}

func leftovers(t testing.TB) (left []string) {
	t.Helper()
	// The owner of a cgroup has its directory both before it has the cgroup and afterwards.
	groups := cellCgroups(t)
	states, err := os.ReadDir(stateRoot)
	if err != nil && !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	live := map[string]bool{}
	for _, e := range states {
		dir := filepath.Join(stateRoot, e.Name())
		switch info, err := e.Info(); {
		case owned(dir):
			live[e.Name()] = true
		case err != nil: // removed meanwhile
		case e.Name() == "ids" && info.Size() == 0: // shared by all cells, and stays
		case young(e.Name(), dir, info):
		default:
			left = append(left, dir)
		}
	}
	for _, g := range groups {
		if id := filepath.Base(g); !live[id] && exists(g) {
			left = append(left, g)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(stateRoot))
	require.NoError(t, err)
	for _, m := range mounts {
		left = append(left, "mount "+m.Mountpoint)
	}
	return append(left, temporaryFiles(t)...)
}

// owned reports whether a process holds the directory's lock.
func owned(dir string) bool {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// young reports whether it is too early to say that nobody will lock the directory: its owner may
// be about to, may be removing it, or may have died doing either. A sweep leaves such a directory
// for a minute.
func young(name, dir string, info os.FileInfo) bool {
	return (strings.HasPrefix(name, ".") || !exists(filepath.Join(dir, "lock"))) && time.Since(info.ModTime()) < time.Minute
}

// cellCgroups lists the directories of cells, named as in /sandbox/<id>, in every hierarchy.
func cellCgroups(t testing.TB) (dirs []string) {
	t.Helper()
	for _, pattern := range []string{"sandbox/*", "*/sandbox/*"} {
		found, err := filepath.Glob(filepath.Join(cgroupRoot, pattern))
		require.NoError(t, err)
		for _, dir := range found {
			if info, err := os.Stat(dir); err == nil && info.IsDir() && len(filepath.Base(dir)) == 16 {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

var temporaryAtStart = temporaryNames()

// temporaryNames lists files in the directory for temporary files that look like this library's or
// libcontainer's. Other tests and builds use other names.
func temporaryNames() (names []string) {
	entries, _ := os.ReadDir(os.TempDir())
	for _, e := range entries {
		for _, prefix := range []string{"sandbox-cell", "runc", "cell", "container"} {
			if strings.HasPrefix(e.Name(), prefix) {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

func temporaryFiles(t testing.TB) (left []string) {
	t.Helper()
	for _, name := range temporaryNames() {
		if !slices.Contains(temporaryAtStart, name) {
			left = append(left, filepath.Join(os.TempDir(), name))
		}
	}
	return left
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// process is a line of ps.
type process struct {
	pid, parent int
	state, name string
}

func (p process) String() string {
	wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.pid))
	call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.pid))
	return fmt.Sprintf("%d (%s) parent %d state %s in %s, system call %s", p.pid, p.name, p.parent, p.state, wchan, call)
}

// descendants lists this process's children, their children, and so on.
func descendants(t testing.TB) (found []process) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	children := map[int][]process{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // gone
		}
		// pid (name) state parent ...: proc_pid_stat(5). The name may contain anything.
		line := string(b)
		from, to := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
		p := process{name: line[from+1 : to]}
		_, err = fmt.Sscan(line[:from], &p.pid)
		require.NoError(t, err)
		_, err = fmt.Sscan(line[to+1:], &p.state, &p.parent)
		require.NoError(t, err)
		children[p.parent] = append(children[p.parent], p)
	}
	for next := []int{os.Getpid()}; len(next) > 0; next = next[1:] {
		for _, p := range children[next[0]] {
			found = append(found, p)
			next = append(next, p.pid)
		}
	}
	return found
}
