package program

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTask(t *testing.T) {
	if !inChild(t) {
		return
	}
	dir := t.TempDir()
	b := NewBuilder()
	from := b.File("contents")
	b.Call("umask", unix.SYS_UMASK, Int(0))
	b.Mkdir(AtCWD, dir+"/made", 0o750)
	at := b.CallTo("openat", unix.SYS_OPENAT, AtCWD, b.Str(dir+"/made"), Int(unix.O_PATH|unix.O_CLOEXEC))
	b.CreateFile(Use(at), "file", []byte("content"), 0o640)
	b.CreateFile(Use(at), "empty", nil, 0o600)
	b.CopyFile(Use(at), "copy", from, 3, 7, 0o604)
	b.CopyFile(Use(at), "none", from, 3, 0, 0o600)
	b.Symlink("file", Use(at), "link")
	b.Close(at)
	contents, err := os.Create(dir + "/contents")
	require.NoError(t, err)
	defer contents.Close()
	_, err = contents.WriteString("oneanotherthree")
	require.NoError(t, err)
	p := start(t, 0, b, contents)
	require.Equal(t, []Event{{Kind: Finished}}, p.all())
	require.Equal(t, 0, p.wait().ExitStatus())

	for name, want := range map[string]string{"link": "content", "empty": "", "copy": "another", "none": ""} {
		content, err := os.ReadFile(dir + "/made/" + name)
		require.NoError(t, err)
		require.Equal(t, want, string(content), name)
	}
	for name, mode := range map[string]os.FileMode{"": 0o750, "file": 0o640, "empty": 0o600, "copy": 0o604, "none": 0o600} {
		info, err := os.Stat(filepath.Join(dir, "made", name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
}

// A file that has less than is to be copied is an error.
func TestCopyOfLess(t *testing.T) {
	if !inChild(t) {
		return
	}
	dir := t.TempDir()
	contents, err := os.Create(dir + "/contents")
	require.NoError(t, err)
	defer contents.Close()
	_, err = contents.WriteString("less")
	require.NoError(t, err)
	b := NewBuilder()
	from := b.File("contents")
	b.CopyFile(AtCWD, dir+"/copy", from, 1, 4, 0o600)
	require.Equal(t, []Event{{Kind: Failed, Index: 1, Errno: uint32(unix.ENOSPC)}}, start(t, 0, b, contents).all())
}

func TestFailureNamesTheCall(t *testing.T) {
	if !inChild(t) {
		return
	}
	missing := t.TempDir() + "/missing/dir"
	tests := []struct {
		name  string
		build func(b *Builder)
		want  []Event
	}{
		{"of the setup", func(b *Builder) {
			b.Call("getpid", unix.SYS_GETPID)
			b.Mkdir(AtCWD, missing, 0o700)
			b.Call("getpid", unix.SYS_GETPID)
		}, []Event{{Kind: Failed, Index: 1, Errno: uint32(unix.ENOENT)}}},
		{"that may fail", func(b *Builder) {
			b.CallMaybe("close", unix.SYS_CLOSE, Int(-1))
		}, []Event{{Kind: Finished}}},
		{"that does not exist", func(b *Builder) {
			b.Call("?", 1<<20)
		}, []Event{{Kind: Failed, Index: 0, Errno: uint32(unix.ENOSYS)}}},
		{"of the command", func(b *Builder) {
			b.Call("getpid", unix.SYS_GETPID)
			b.In(Command)
			b.Call("getpid", unix.SYS_GETPID)
			b.Call("close", unix.SYS_CLOSE, Int(-1))
			b.In(Init)
			b.Event(Started)
		}, []Event{{Kind: Failed, Index: 2, Errno: uint32(unix.EBADF)}}},
		{"of init", func(b *Builder) {
			b.Call("getpid", unix.SYS_GETPID)
			b.shell("exit 0")
			b.Call("close", unix.SYS_CLOSE, Int(-1))
		}, []Event{{Kind: Started}, {Kind: Failed, Index: 5, Errno: uint32(unix.EBADF)}}},
		{"first of the program", func(b *Builder) {
			b.Call("close", unix.SYS_CLOSE, Int(-1))
			b.shell("exit 0")
		}, []Event{{Kind: Failed, Index: 0, Errno: uint32(unix.EBADF)}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := NewBuilder()
			test.build(b)
			p := start(t, 0, b)
			require.Equal(t, test.want, p.all())
			code := 127
			if test.want[0].Kind == Finished {
				code = 0
			}
			require.Equal(t, code, p.wait().ExitStatus())
		})
	}
}

// TestTry checks the errors of calls in a list of places, in every order.
func TestTry(t *testing.T) {
	if !inChild(t) {
		return
	}
	dir := t.TempDir()
	noexec, garbage := dir+"/noexec", dir+"/garbage"
	require.NoError(t, os.WriteFile(noexec, []byte("#!/bin/sh\n"), 0o600))
	require.NoError(t, os.WriteFile(garbage, []byte("\x00garbage"), 0o700))
	missing, below := dir+"/missing", noexec+"/below"
	tests := []struct {
		name  string
		tried []string
		index int
		errno unix.Errno // 0: executed
	}{
		{"nothing to try", nil, 0, unix.ENOENT},
		{"missing", []string{missing}, 1, unix.ENOENT},
		{"below a file", []string{below}, 1, unix.ENOENT},
		{"not executable", []string{noexec}, 1, unix.EACCES},
		{"a directory", []string{dir}, 1, unix.EACCES},
		{"missing, not executable", []string{missing, noexec}, 2, unix.EACCES},
		{"not executable, missing", []string{noexec, missing}, 2, unix.EACCES},
		{"not executable, below a file, missing", []string{noexec, below, missing}, 3, unix.EACCES},
		{"below a file, missing", []string{below, missing}, 2, unix.ENOENT},
		{"missing, below a file", []string{missing, below}, 2, unix.ENOENT},
		{"not a program, missing", []string{garbage, missing}, 0, unix.ENOEXEC},
		{"missing, not a program", []string{missing, garbage}, 1, unix.ENOEXEC},
		{"all but the last", []string{missing, noexec, below, "/bin/sh"}, 0, 0},
		{"all but the first", []string{"/bin/sh", missing, noexec, below}, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := NewBuilder()
			b.In(Command)
			for _, place := range test.tried {
				b.CallTry("execve", unix.SYS_EXECVE, b.Str(place), b.Strings([]string{"sh", "-c", "exit 3"}), b.Strings(nil))
			}
			b.FailTried("command")
			b.In(Init)
			b.Event(Started)
			p := start(t, 0, b)
			want := []Event{{Kind: Failed, Index: uint32(test.index), Errno: uint32(test.errno)}}
			if test.errno == 0 {
				want = []Event{{Kind: Started}, {Kind: Exited, Status: 3 << 8}}
			}
			require.Equal(t, want, p.all())
		})
	}
}

func TestSendFile(t *testing.T) {
	if !inChild(t) {
		return
	}
	path := t.TempDir() + "/sent"
	require.NoError(t, os.WriteFile(path, []byte("sent"), 0o600))
	b := NewBuilder()
	fd := b.CallTo("openat", unix.SYS_OPENAT, AtCWD, b.Str(path), Int(unix.O_RDONLY|unix.O_CLOEXEC))
	b.SendFile(fd)
	b.Close(fd)
	p := start(t, 0, b)
	m, err := p.next()
	require.NoError(t, err)
	require.Equal(t, Ready, m.Kind)
	require.NotNil(t, m.file)
	content, err := io.ReadAll(m.file)
	require.NoError(t, err)
	require.Equal(t, "sent", string(content))
	require.Equal(t, []Event{{Kind: Finished}}, p.all())
}

// TestWaitNeedsAPeer waits for its host, which lets it go on or hangs up.
func TestWaitNeedsAPeer(t *testing.T) {
	if !inChild(t) {
		return
	}
	for _, opened := range []bool{true, false} {
		gate, host, err := os.Pipe()
		require.NoError(t, err)
		b := NewBuilder()
		wait := b.File("gate")
		// The clone has a copy of the host's end, too.
		b.Call("close", unix.SYS_CLOSE, Int(int(host.Fd())))
		b.Wait(wait)
		p := start(t, 0, b, gate)
		require.NoError(t, gate.Close())
		p.quiet()
		want := Event{Kind: Failed, Index: 1, Errno: uint32(unix.ECONNRESET)}
		if opened {
			_, err = host.Write([]byte{1})
			require.NoError(t, err)
			want = Event{Kind: Finished}
		}
		require.NoError(t, host.Close())
		require.Equal(t, []Event{want}, p.all())
	}
}

// TestReportMoves has a program that moves the socket that it reports on.
func TestReportMoves(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	b.CallInto(Report, "fcntl", unix.SYS_FCNTL, Use(Report), Int(unix.F_DUPFD_CLOEXEC), Int(200))
	b.Call("close_range", unix.SYS_CLOSE_RANGE, Int(0), Int(199), Int(0))
	b.Event(Ready)
	b.Wait(Report)
	p := start(t, 0, b)
	m, err := p.next()
	require.NoError(t, err)
	require.Equal(t, Ready, m.Kind)
	p.quiet()
	_, err = unix.Write(p.sock, []byte{1})
	require.NoError(t, err)
	require.Equal(t, []Event{{Kind: Finished}}, p.all())
}

func TestRefusedClone(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	p, err := b.Program()
	require.NoError(t, err)
	m := loaded(t, p)
	_, _, errno := m.Clone(unix.CLONE_NEWUSER | unix.CLONE_FS) // clone(2): EINVAL
	require.Equal(t, unix.EINVAL, errno)
	require.Equal(t, []Event{{Kind: Finished}}, start(t, 0, b).all(), "after it")
}
