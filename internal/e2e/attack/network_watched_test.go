//go:build linux

package attack

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// inKept has do make a run, until one was in a namespace that served before, and returns that.
// known has those that look saw.
func inKept(t *testing.T, known map[string]bool, look func() []string, do func() (ns string)) string {
	t.Helper()
	for range 10 {
		if ns := do(); known[ns] {
			return ns
		}
		look()
	}
	require.Fail(t, "no namespace is used again")
	return ""
}

// watched is a cell whose runs can hand files on to an accomplice.
type watched struct {
	in    []sandbox.Option
	l     *net.UnixListener
	known map[string]bool // namespaces that look saw
}

func newWatched(t *testing.T) *watched {
	testkit.Need(t, "network namespaces that can be told apart")
	cell, err := sandbox.NewCell()
	require.NoError(t, err)
	t.Cleanup(func() { cell.Close() })
	l, dir := accomplice(t)
	return &watched{in: []sandbox.Option{sandbox.WithCell(cell), sandbox.WithReadOnlyBind(dir, "/srv")}, l: l, known: map[string]bool{}}
}

// look returns the namespaces of later runs, each of which opens its own file, and locks it.
func (w *watched) look(t *testing.T) (all []string) {
	for range 3 {
		seen, ns := inNetwork(t, w.in, "network-look")
		first, _, _ := strings.Cut(seen, "\n")
		require.Equal(t, fmt.Sprint(locked, " <nil>"), first)
		w.known[ns] = true
		all = append(all, ns)
	}
	return all
}

// handOn has a run hand the file on, in one of the ways of handle.
func (w *watched) handOn(t *testing.T, unread bool, how, file string) (has *os.File, ns string) {
	t.Helper()
	ns = inKept(t, w.known, func() []string { return w.look(t) }, func() string {
		if has != nil {
			has.Close()
		}
		got := make(chan *os.File, 1)
		go func() { got <- acceptFile(w.l, unread) }()
		_, ns := inNetwork(t, w.in, "network-hand-on", how, file, "/srv/accomplice")
		has = <-got
		require.NotNil(t, has)
		return ns
	})
	return has, ns
}

// TestAttackRootlessNetworkWatched hands an open file of /proc to an accomplice, who could count by
// it what later runs in the same namespace do. No other may get that.
func TestAttackRootlessNetworkWatched(t *testing.T) {
	w := newWatched(t)
	for _, test := range []struct {
		file   string
		unread bool // it stays under way
	}{{"/proc/net/dev", false}, {"/proc/net/dev", true}, {"/proc/self/net", false}, {"/proc", false}} {
		t.Run(fmt.Sprintf("%s, unread %v", test.file, test.unread), func(t *testing.T) {
			has, ns := w.handOn(t, test.unread, "open", test.file)
			defer has.Close()
			if test.file == "/proc/net/dev" && !test.unread {
				content, err := io.ReadAll(has)
				require.NoError(t, err)
				require.Contains(t, string(content), "lo:", "the control: it shows the namespace")
			}
			require.NotContains(t, w.look(t), ns)
		})
	}
}

// TestAttackRootlessNetworkFile hands the file of a run's own namespace to an accomplice, who keeps
// it in each of the ways that there are, and could lock it for later runs. None may get that file.
func TestAttackRootlessNetworkFile(t *testing.T) {
	w := newWatched(t)
	for _, test := range []struct {
		name   string
		how    string
		unread bool
		keep   func(t *testing.T, has *os.File)
	}{
		{"locked", "open", false, func(t *testing.T, has *os.File) {
			require.NoError(t, unix.Flock(int(has.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		}},
		{"as a path", "O_PATH", false, nil},
		{"under way", "open", true, nil},
		{"mounted", "open", false, mount},
	} {
		t.Run(test.name, func(t *testing.T) {
			has, ns := w.handOn(t, test.unread, test.how, "/proc/self/ns/net")
			defer has.Close()
			if test.keep != nil {
				test.keep(t, has)
			}
			require.NotContains(t, w.look(t), ns)
		})
	}
}

// mount keeps a file of a namespace as a mount, in place of the descriptor, if this process may.
func mount(t *testing.T, f *os.File) {
	if !testkit.AsRoot() || !testkit.Effective(unix.CAP_SYS_ADMIN) {
		return
	}
	on := filepath.Join(t.TempDir(), "mount")
	require.NoError(t, os.WriteFile(on, nil, 0o600))
	require.NoError(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), on, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(on, unix.MNT_DETACH)) })
	f.Close()
}

// TestAttackRootlessNetworkInotify hands a watch on the file of a run's own namespace to an
// accomplice. It keeps that from nobody, but does not tell when a later run in the same namespace
// opens its own.
func TestAttackRootlessNetworkInotify(t *testing.T) {
	w := newWatched(t)
	events := make([]byte, 4096)
	met := false
	for range 10 {
		has, ns := w.handOn(t, false, "inotify", "/proc/self/ns/net")
		defer has.Close()
		_, err := unix.Read(int(has.Fd()), events)
		require.NoError(t, err, "the control: the run's own")
		met = slices.Contains(w.look(t), ns)
		_, err = unix.Read(int(has.Fd()), events)
		require.ErrorIs(t, err, unix.EAGAIN)
		if met {
			break
		}
	}
	require.True(t, met, "no later run was in the same namespace")
}

func init() {
	testkit.AddHelper("network-hand-on", func(args []string) error {
		fd, err := handle(args[0], args[1])
		if err != nil {
			return err
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: args[2]})
		if err == nil {
			_, _, err = c.WriteMsgUnix([]byte("x"), unix.UnixRights(fd), nil)
		}
		if err == nil {
			fmt.Println(network())
		}
		return err
	})
}

// handle returns a descriptor that has to do with a file.
func handle(how, file string) (int, error) {
	if how == "O_PATH" {
		return unix.Open(file, unix.O_PATH, 0)
	}
	fd, err := unix.Open(file, unix.O_RDONLY, 0)
	if err != nil || how == "open" {
		return fd, err
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(watch, file, unix.IN_ALL_EVENTS)
	}
	if err == nil {
		_, err = unix.Open(file, unix.O_RDONLY, 0)
	}
	return watch, err
}

const locked = "a lock on the file of the namespace:"

// lockNetwork locks the file of this process's network namespace, which only a run in the same one
// could have locked.
func lockNetwork() error {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// accomplice listens in a directory, for files that runs hand on.
func accomplice(t *testing.T) (l *net.UnixListener, dir string) {
	dir = testkit.OpenDir(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "accomplice")})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	require.NoError(t, os.Chmod(filepath.Join(dir, "accomplice"), 0o777))
	return l, dir
}

// acceptFile returns the file that is sent over the next connection, or the connection if that is
// to be left unread.
func acceptFile(l *net.UnixListener, unread bool) *os.File {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil
	}
	defer c.Close()
	if unread {
		f, _ := c.File()
		return f
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) != 1 {
		return nil
	}
	return os.NewFile(uintptr(files[0]), "handed on")
}
