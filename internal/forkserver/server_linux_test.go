package forkserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/testkit"
)

// patience is more than anything here takes, even under emulation.
const patience = time.Minute

// testServer is a fork server without a cell: this binary, executed again.
type testServer struct {
	*Client
	t      testing.TB
	cmd    *exec.Cmd
	stderr bytes.Buffer
	pidfd  *os.File
}

// startServer starts one, with descriptors behind its own ones, if any.
func startServer(t testing.TB, leaked ...*os.File) *testServer {
	t.Helper()
	client, control, err := NewClient()
	require.NoError(t, err)
	defer control.Close()
	exe, err := os.Executable()
	require.NoError(t, err)
	s := &testServer{Client: client, t: t, cmd: exec.Command(exe, Name)}
	s.cmd.Env = []string{Env, NoThreadData, "GORACE=atexit_sleep_ms=0"}
	file, err := os.Open(exe)
	require.NoError(t, err)
	defer file.Close()
	s.cmd.ExtraFiles = append([]*os.File{control, file, nil}, leaked...)
	s.cmd.Stderr = &s.stderr
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		client.Close()
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Wait()
		}
	})
	s.pidfd, err = client.Hello(patience)
	require.NoError(t, err)
	t.Cleanup(func() { s.pidfd.Close() })
	return s
}

// follow returns the events of a request up to the end, without the usage in them, and the pid of
// the last sender.
func (s *testServer) follow(r *Request, files ...int) (events []program.Event) {
	s.t.Helper()
	conn, err := s.Send(r, files)
	require.NoError(s.t, err)
	defer conn.Close()
	for {
		m, err := conn.Next()
		if errors.Is(err, io.EOF) {
			return events
		}
		require.NoError(s.t, err)
		if m.File != nil {
			require.Equal(s.t, program.Cloned, m.Kind)
			m.File.Close()
		}
		events = append(events, program.Event{Kind: m.Kind, Index: m.Index, Errno: m.Errno, Status: m.Status})
	}
}

// The reports of the fork server and of a task come in any order.
var finished = []program.Event{{Kind: program.Cloned}, {Kind: program.Finished}}

func task(t testing.TB, build func(b *program.Builder)) *Request {
	t.Helper()
	b := program.NewBuilder()
	build(b)
	p, err := b.Program()
	require.NoError(t, err)
	return &Request{Image: p.Image()}
}

func nothing(*program.Builder) {}

func TestManyRequests(t *testing.T) {
	s := startServer(t)
	dir := t.TempDir()
	var before int
	for i := range 200 {
		if i == 0 {
			before = s.openFiles()
		}
		path := filepath.Join(dir, strconv.Itoa(i))
		r := task(t, func(b *program.Builder) { b.Mkdir(program.AtCWD, path, 0o700) })
		require.ElementsMatch(t, finished, s.follow(r))
		require.DirExists(t, path)
	}
	// The last request may still be under way after its clone has ended.
	require.Eventually(t, func() bool { return s.openFiles() == before }, patience, time.Millisecond, "descriptors are left open")
	require.Eventually(t, func() bool { return len(childrenOf(t, s.serving())) == 0 }, patience, time.Millisecond, "children are left")
}

// serving returns the pid of the process that serves requests, a child of the one that was started.
func (s *testServer) serving() int {
	s.t.Helper()
	children := childrenOf(s.t, s.cmd.Process.Pid)
	require.Len(s.t, children, 1)
	return children[0]
}

// openFiles is 0 for an ordinary user, who may not inspect a process that is not dumpable.
func (s *testServer) openFiles() int {
	s.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.serving()))
	if os.Geteuid() == 0 {
		require.NoError(s.t, err)
	}
	return len(entries)
}

// childrenOf finds the children of a process, including zombies: proc(5), /proc/pid/stat.
func childrenOf(t testing.TB, parent int) (children []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			children = append(children, pid)
		}
	}
	return children
}

func TestConcurrentRequests(t *testing.T) {
	s := startServer(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 10 {
				r := task(t, func(b *program.Builder) { b.Bytes(make([]byte, 100<<10), "") })
				conn, err := s.Send(r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for m, err := conn.Next(); !errors.Is(err, io.EOF); m, err = conn.Next() {
					if err != nil || m.Kind != program.Cloned && m.Kind != program.Finished {
						t.Error(m.Kind, err)
						break
					}
					if m.File != nil {
						m.File.Close()
					}
				}
				conn.Close()
			}
		})
	}
	all.Wait()
}

func TestLargeRequest(t *testing.T) {
	s := startServer(t)
	path := filepath.Join(t.TempDir(), "file")
	content := bytes.Repeat([]byte("0123456789abcde\n"), 3<<20/16)
	r := task(t, func(b *program.Builder) { b.CreateFile(program.AtCWD, path, content, 0o600) })
	require.ElementsMatch(t, finished, s.follow(r))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	require.ElementsMatch(t, finished, s.follow(task(t, nothing)), "a small one after it")
}

func TestFilesAccompanyRequest(t *testing.T) {
	s := startServer(t)
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	defer write.Close()
	// As many as possible: the last of them is written to.
	files := make([]int, program.MaxFiles-1)
	for i := range files {
		files[i] = int(write.Fd())
	}
	r := task(t, func(b *program.Builder) {
		var last program.Slot
		for range files {
			last = b.File("pipe")
		}
		b.CallWait("write", unix.SYS_WRITE, program.Use(last), b.Str("hello"), program.Int(5))
	})
	require.ElementsMatch(t, finished, s.follow(r, files...))
	got := make([]byte, 16)
	n, err := read.Read(got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got[:n]))
}

func TestRefusedRequests(t *testing.T) {
	s := startServer(t)
	refused := func(errno unix.Errno) []program.Event {
		return []program.Event{{Kind: program.Refused, Errno: uint32(errno)}}
	}
	damaged := task(t, nothing).Image
	damaged[0]++
	require.Equal(t, refused(unix.EBADMSG), s.follow(&Request{Image: damaged}))
	require.Equal(t, refused(unix.EBADMSG), s.follow(&Request{}), "no image")
	require.Equal(t, refused(unix.EBADMSG), s.follow(task(t, nothing), 0), "a descriptor too many")
	r := task(t, nothing)
	r.CloneFlags = unix.CLONE_NEWUSER | unix.CLONE_FS
	require.Equal(t, refused(unix.EBADMSG), s.follow(r), "no slot for the gate")
	r = task(t, func(b *program.Builder) { b.File("gate") })
	r.CloneFlags = unix.CLONE_NEWUSER | unix.CLONE_FS
	require.Equal(t, refused(unix.EINVAL), s.follow(r), "flags that clone3 refuses")
	r = task(t, func(b *program.Builder) { b.File("tree") })
	r.Tree = filepath.Join(t.TempDir(), "missing")
	events := s.follow(r)
	require.Len(t, events, 1)
	require.Equal(t, program.Refused, events[0].Kind)
	require.ElementsMatch(t, finished, s.follow(task(t, nothing)), "after all of them")
}

// TestEnd ends a fork server by closing the control socket or by sending what it can't understand.
func TestEnd(t *testing.T) {
	tests := []struct {
		name string
		last []byte // what the host sends
		goes bool   // the host then closes the socket
	}{
		{"nothing", nil, true},
		{"no request", []byte(strings.Repeat("not a request. ", 10)), false},
		{"a request without a socket", (&Request{Image: []byte{1}}).encode(t), false},
		{"part of a head", (&Request{}).encode(t)[:requestHead-1], false},
		{"part of a request", (&Request{Image: []byte{1}}).encode(t)[:requestHead], true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t)
			require.False(t, s.Gone())
			_, err := s.sock.Write(test.last)
			require.NoError(t, err)
			if test.goes {
				require.NoError(t, s.Close())
			}
			_ = s.cmd.Wait()
			require.True(t, s.Gone())
			if test.goes {
				require.Empty(t, s.stderr.String())
			} else {
				require.Equal(t, "sandbox: fork server: a request made no sense\n", s.stderr.String())
			}
			_, err = s.Send(task(t, nothing), nil)
			require.Error(t, err)
		})
	}
}

// TestKilledServer checks that PID 1 reports what ended the process that served.
func TestKilledServer(t *testing.T) {
	s := startServer(t)
	require.NoError(t, unix.Kill(s.serving(), unix.SIGSEGV))
	require.Error(t, s.cmd.Wait())
	require.Equal(t, "sandbox: fork server: ended by signal 11 (segmentation fault)\n", s.stderr.String())
}

const notServing = 77

// TestMain also covers a program that was told to be a fork server but is none.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Name {
		os.Exit(notServing)
	}
	testkit.Main(m)
}

// TestPrivileged executes a set-uid program, which must not obey its caller.
func TestPrivileged(t *testing.T) {
	testkit.Need(t, "root")
	dir, err := os.MkdirTemp("", "sandbox-setuid")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	exe, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	program := filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(program, exe, 0o755))
	for mode, want := range map[os.FileMode]int{0o755: 0, 0o755 | os.ModeSetuid: notServing} {
		require.NoError(t, os.Chmod(program, mode))
		client, control, err := NewClient()
		require.NoError(t, err)
		cmd := exec.Command(program, Name)
		cmd.Env = []string{Env}
		cmd.ExtraFiles = []*os.File{control, control}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
		require.NoError(t, cmd.Start())
		control.Close()
		if want == 0 {
			pidfd, err := client.Hello(patience)
			require.NoError(t, err)
			pidfd.Close()
		} else {
			_, err := client.Hello(patience)
			require.ErrorIs(t, err, io.EOF)
		}
		client.Close()
		_ = cmd.Wait()
		require.Equal(t, want, cmd.ProcessState.ExitCode())
	}
}

// TestLeaked checks that a fork server keeps no descriptor that whoever starts it has left open.
func TestLeaked(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	s := startServer(t, w, w)
	require.NoError(t, w.Close())
	require.NoError(t, r.SetReadDeadline(time.Now().Add(patience)))
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.ElementsMatch(t, finished, s.follow(task(t, nothing)))
}

// TestDupKeepsServerAlive closes one end of the host after the other.
func TestDupKeepsServerAlive(t *testing.T) {
	s := startServer(t)
	second, err := s.Dup()
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Len(t, childrenOf(t, s.cmd.Process.Pid), 1)
	require.NoError(t, second.Close())
	require.NoError(t, s.cmd.Wait())
}

// TestHelloPidfd looks whether the pidfd is the fork server's, and not that of the process in it
// that serves.
func TestHelloPidfd(t *testing.T) {
	s := startServer(t)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", s.pidfd.Fd()))
	require.NoError(t, err)
	require.Contains(t, string(info), fmt.Sprintf("\nPid:\t%d\n", s.cmd.Process.Pid))
}

// A fork server that was killed is known to end, however long that takes: here until its tracer has
// seen the end of a process that PID 1 waits for.
func TestEnding(t *testing.T) {
	testkit.Need(t, "user namespaces")
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 1000 & wait")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	child := func(of int) (pid int) {
		testkit.Eventually(t, "a child is there", func() bool {
			all := childrenOf(t, of)
			if len(all) == 1 {
				pid = all[0]
			}
			return pid != 0
		})
		return pid
	}
	init := child(cmd.Process.Pid)
	traced := child(init)
	require.NoError(t, unix.PtraceSeize(traced))
	client := &Client{pid: init}
	require.False(t, client.Ending())
	require.NoError(t, unix.Kill(init, unix.SIGKILL))
	testkit.Eventually(t, "it ends", client.Ending)
	require.NoError(t, unix.Kill(init, 0), "it is there yet")
	testkit.Eventually(t, "the traced process has ended", func() bool {
		pid, err := unix.Wait4(traced, nil, unix.WNOHANG|unix.WALL, nil)
		return err == nil && pid == traced
	})
	require.Error(t, cmd.Wait())
	require.False(t, client.Ending())
}

func TestHelloTimesOut(t *testing.T) {
	client, control, err := NewClient()
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Hello(time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, control.Close())
	_, err = client.Hello(patience)
	require.ErrorIs(t, err, io.EOF)
	require.True(t, client.Gone())
}
