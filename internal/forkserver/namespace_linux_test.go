package forkserver

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestMapsAreWrittenBeforeTheGate waits at the gate as a run does. The events of the clone and
// those of the fork server come in any order.
func TestMapsAreWrittenBeforeTheGate(t *testing.T) {
	testkit.Need(t, "root") // the fork server, not being dumpable, needs capabilities to write id maps
	s := startServer(t)
	r := task(t, func(b *program.Builder) {
		b.Wait(b.File("gate"))
		b.Event(program.Ready)
		b.Wait(program.Report)
	})
	r.CloneFlags = unix.CLONE_NEWUSER
	r.UIDMap, r.GIDMap = "0 70000 10\n", "5 80000 3\n"
	for range 20 {
		conn, err := s.Send(r, nil)
		require.NoError(t, err)
		cloned, ready := nextOf(t, conn), nextOf(t, conn)
		if cloned.Kind != program.Cloned {
			cloned, ready = ready, cloned
		}
		require.Equal(t, program.Cloned, cloned.Kind, "errno %d", cloned.Errno)
		require.NotNil(t, cloned.File)
		require.Equal(t, program.Ready, ready.Kind)
		require.Positive(t, ready.PID)
		for name, want := range map[string][]string{"uid_map": {"0", "70000", "10"}, "gid_map": {"5", "80000", "3"}} {
			got, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", ready.PID, name))
			require.NoError(t, err)
			require.Equal(t, want, strings.Fields(string(got)))
		}
		require.NoError(t, conn.Go())
		require.Equal(t, program.Finished, nextOf(t, conn).Kind)
		require.NoError(t, conn.Close())
	}
}

func nextOf(t *testing.T, conn *Conn) Message {
	t.Helper()
	m, err := conn.Next()
	require.NoError(t, err)
	if m.File != nil {
		t.Cleanup(func() { m.File.Close() })
	}
	return m
}

func TestBadMapEndsTheClone(t *testing.T) {
	testkit.Need(t, "root") // an ordinary user's map fails for other reasons
	s := startServer(t)
	r := task(t, func(b *program.Builder) { b.Wait(b.File("gate")) })
	r.CloneFlags = unix.CLONE_NEWUSER
	r.UIDMap, r.GIDMap = "0 70000 10\n", "no map\n"
	require.Equal(t, []program.Event{{Kind: program.Refused, Errno: uint32(unix.EINVAL)}}, s.follow(r))
	require.ElementsMatch(t, finished, s.follow(task(t, nothing)))
}

func TestTreeAccompaniesRequest(t *testing.T) {
	testkit.Need(t, "root") // open_tree(2) with OPEN_TREE_CLONE
	s := startServer(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	r := task(t, func(b *program.Builder) {
		tree := b.File("tree")
		file := b.CallTo("openat", unix.SYS_OPENAT, program.Use(tree), b.Str("file"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC))
		b.SendFile(file)
	})
	r.Tree = dir
	conn, err := s.Send(r, nil)
	require.NoError(t, err)
	defer conn.Close()
	for {
		m := nextOf(t, conn)
		require.NotNil(t, m.File, "event %v", m.Kind)
		if m.Kind == program.Ready {
			content, err := io.ReadAll(m.File)
			require.NoError(t, err)
			require.Equal(t, "content", string(content))
			return
		}
	}
}

// TestCloneInNetwork has a clone begin in the network namespace that accompanies the request, and
// the next in the fork server's own.
func TestCloneInNetwork(t *testing.T) {
	testkit.Need(t, "root")
	s := startServer(t)
	own, err := os.Open("/proc/thread-self/ns/net") // /proc/self is the main thread's, which the goroutine below may be on
	require.NoError(t, err)
	defer own.Close()
	made := make(chan *os.File, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		var ns *os.File
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		assert.NoError(t, err)
		made <- ns
	}()
	other := <-made
	require.NotNil(t, other)
	defer other.Close()
	in := func(r *Request, files ...int) uint64 {
		conn, err := s.Send(r, files)
		require.NoError(t, err)
		defer conn.Close()
		for {
			m := nextOf(t, conn)
			require.NotNil(t, m.File, "event %v", m.Kind)
			if m.Kind == program.Ready {
				return inode(t, m.File)
			}
		}
	}
	ask := func() *Request {
		return task(t, func(b *program.Builder) {
			b.SendFile(b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/self/ns/net"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC), program.Int(0)))
		})
	}
	require.Equal(t, inode(t, own), in(ask()))
	r := ask()
	r.InNetwork = true
	require.Equal(t, inode(t, other), in(r, int(other.Fd())))
	require.Equal(t, inode(t, own), in(ask()), "it comes back")
	require.Equal(t, []program.Event{{Kind: program.Refused, Errno: uint32(unix.EBADMSG)}}, s.follow(r), "without a namespace")
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	require.Equal(t, []program.Event{{Kind: program.Refused, Errno: uint32(unix.EINVAL)}}, s.follow(r, int(null.Fd())), "another file")
	require.Equal(t, inode(t, own), in(ask()))
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	return st.Ino
}

// TestServerForgets searches the memory of the fork server, of which every clone is a copy, for the
// arguments of earlier requests.
func TestServerForgets(t *testing.T) {
	testkit.Need(t, "root") // reads the memory of a process that is not dumpable
	s := startServer(t)
	secret := "argument of a run " + strings.Repeat("that is over ", 3)
	good := func(size int) *Request {
		return task(t, func(b *program.Builder) {
			b.Str(secret)
			b.Bytes(make([]byte, size), "")
		})
	}
	refused := good(0)
	refused.Image = append(refused.Image, 0)
	unloaded := good(200 << 10) // refused before its program is looked at
	unloaded.Tree = "/there is none"
	for _, r := range []*Request{good(0), good(200 << 10), refused, unloaded} {
		s.follow(r)
		s.follow(task(t, nothing)) // whatever follows the first's last event is over by now
		require.False(t, memoryContains(t, s.serving(), []byte(secret)))
	}
}

// memoryContains searches the writable memory of a process.
func memoryContains(t *testing.T, pid int, what []byte) bool {
	t.Helper()
	testkit.Need(t, "root's power over processes")
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	require.NoError(t, err)
	defer mem.Close()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	require.NoError(t, err)
	searched := 0
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var mode string
		_, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode)
		require.NoError(t, err)
		// The race detector reserves terabytes.
		if !strings.HasPrefix(mode, "rw") || to-from > 128<<20 {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, int64(from))
		searched += n
		if bytes.Contains(b[:n], what) {
			return true
		}
	}
	require.Positive(t, searched)
	return false
}
