//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// newScratch makes a scratch that is closed after the test.
func newScratch(t testing.TB, size int64) *sandbox.Scratch {
	t.Helper()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	s, err := sandbox.NewScratch(size)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestRootlessScratch takes files into a run, its results into the next, and out again.
func TestRootlessScratch(t *testing.T) {
	t.Parallel()
	s := newScratch(t, sandbox.MiB)
	require.NoError(t, s.CopyIn(fstest.MapFS{"a/b.sh": {Data: []byte("#!/bin/sh\necho made by $0"), Mode: 0o555}, "c": {Data: []byte("see"), Mode: 0o400}}, "src"))
	require.NoError(t, s.CopyIn(fstest.MapFS{"d": {Data: []byte("top")}}, "."))
	made := runs.Output(t, runs.Shell("ls -ln src/a src/c | grep -c ' 1000 *1000 '; cat d src/c; src/a/b.sh >out; chmod 600 out; mkdir bin; mv src/a/b.sh bin; ln -s ../out bin/link",
		sandbox.WithScratch("/work", s), sandbox.WithDir("/work")))
	require.Equal(t, "2\ntopsee", made)

	for _, user := range []int{0, 7, 1000} {
		again := runs.Shell("/w/bin/b.sh; cat /w/bin/link; touch /w/x 2>&1; rm -f /w/out 2>&1", sandbox.WithReadOnlyScratch("/w", s), sandbox.WithUser(user, user))
		out, err := again.CombinedOutput(testkit.Deadline(t))
		runs.ExitError(t, err)
		require.Regexp(t, "^made by /w/bin/b.sh\nmade by src/a/b.sh\n.*Read-only file system\n.*Read-only file system\n$", string(out))
	}
	fsys := s.FS()
	b, err := fs.ReadFile(fsys, "bin/link")
	require.NoError(t, err)
	require.Equal(t, "made by src/a/b.sh\n", string(b))
	info, err := fs.Stat(fsys, "out")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	require.EqualValues(t, os.Geteuid(), info.Sys().(*syscall.Stat_t).Uid)
	require.NoError(t, fstest.TestFS(fsys, "out", "bin/b.sh", "bin/link", "src/c"))

	dst := filepath.Join(testkit.OpenDir(t), "new", "out")
	require.NoError(t, s.CopyOut(dst))
	b, err = os.ReadFile(dst + "/bin/link")
	require.NoError(t, err)
	require.Equal(t, "made by src/a/b.sh\n", string(b))
	info, err = os.Stat(dst + "/bin/b.sh")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode())
	require.EqualValues(t, os.Geteuid(), info.Sys().(*syscall.Stat_t).Uid)
	require.ErrorIs(t, s.CopyOut(dst), fs.ErrExist)
	require.ErrorIs(t, s.CopyIn(os.DirFS(dst), "."), fs.ErrExist)
}

// TestRootlessScratchAtOnce requires that runs that use a scratch at the same time see each other's
// files in it, and that other runs don't.
func TestRootlessScratchAtOnce(t *testing.T) {
	t.Parallel()
	s, other := newScratch(t, sandbox.MiB), newScratch(t, sandbox.MiB)
	writer := runs.Start(t, runs.Shell("until [ -e /tmp/go ]; do sleep 0.01; done; echo hello >/tmp/answer; sleep 1000", sandbox.WithScratch("/tmp", s)))
	require.Equal(t, "hello", runs.Output(t, runs.Shell("touch /s/go; until [ -s /s/answer ]; do sleep 0.01; done; cat /s/answer; ls /o",
		sandbox.WithScratch("/s", s), sandbox.WithScratch("/o", other), sandbox.WithUser(7, 7))))
	b, err := fs.ReadFile(s.FS(), "answer")
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(b))
	require.NoError(t, writer.Kill())
	_, err = writer.Wait()
	require.Error(t, err)
}

// TestRootlessScratchFull fills one scratch with bytes and one with files.
func TestRootlessScratchFull(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"head -c 10M /dev/zero >/s/big", "i=0; while : >/s/$i; do i=$((i+1)); done"} {
		s := newScratch(t, sandbox.MiB)
		out, err := runs.Shell(script, sandbox.WithScratch("/s", s)).CombinedOutput(testkit.Deadline(t))
		runs.ExitError(t, err)
		require.Contains(t, string(out), "No space left on device")
		require.ErrorIs(t, s.CopyIn(fstest.MapFS{"more": {Data: make([]byte, 1<<20)}}, "."), syscall.ENOSPC)
		require.NoError(t, s.CopyOut(filepath.Join(testkit.OpenDir(t), "out")), "what fits in goes out")
	}
}

// TestRootlessScratchEnds closes a scratch that a run uses: that run keeps it, and no other run
// gets it.
func TestRootlessScratchEnds(t *testing.T) {
	t.Parallel()
	s := newScratch(t, sandbox.MiB)
	in, feed := io.Pipe()
	var out bytes.Buffer
	p := runs.Start(t, sandbox.New(sandbox.WithCommand("sh", "-c", "read go; echo $go >/s/x; cat /s/x"), sandbox.WithScratch("/s", s), sandbox.WithStdin(in), sandbox.WithStdout(&out)))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "again")
	_, err := io.WriteString(feed, "still here\n")
	require.NoError(t, err)
	require.NoError(t, feed.Close())
	_, err = p.Wait()
	require.NoError(t, err)
	require.Equal(t, "still here\n", out.String())
	_, err = runs.Shell("true", sandbox.WithScratch("/s", s)).Run(testkit.Deadline(t))
	require.EqualError(t, err, "sandbox: WithScratch: the source can't be used: the scratch is closed")
	_, err = fs.ReadFile(s.FS(), "x")
	require.ErrorIs(t, err, fs.ErrClosed)
	require.ErrorIs(t, s.CopyOut(t.TempDir()), fs.ErrClosed)
	require.ErrorIs(t, s.CopyIn(fstest.MapFS{}, "."), fs.ErrClosed)
}

// A scratch that NewScratch did not make, whose error nobody looked at, is an error too.
func TestScratchOfNothing(t *testing.T) {
	for _, s := range []*sandbox.Scratch{nil, {}} {
		_, noFile := s.FS().Open("x")
		for _, err := range []error{s.CopyIn(fstest.MapFS{}, "."), s.CopyOut(t.TempDir()), noFile, s.Close()} {
			require.ErrorContains(t, err, "the scratch was not made by NewScratch: look at the error of that")
		}
	}
}

func TestScratchOptions(t *testing.T) {
	_, err := sandbox.NewScratch(0)
	require.EqualError(t, err, "sandbox: NewScratch: 0 is not a positive number of bytes")
	_, err = sandbox.New(sandbox.WithCommand("true"), sandbox.WithScratch("/s", nil), sandbox.WithReadOnlyScratch("/r", new(sandbox.Scratch)), sandbox.WithFS("/f", nil),
		sandbox.WithScratch("relative", nil), sandbox.WithoutUserNamespace(), sandbox.WithFile("/s/x", nil, 0o644)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithScratch: /s: the scratch was not made by NewScratch")
	require.ErrorContains(t, err, "WithReadOnlyScratch: /r: the scratch was not made by NewScratch")
	require.ErrorContains(t, err, "WithFS: /f: no file system is given")
	require.ErrorContains(t, err, `WithScratch: "relative" is not an absolute path`)
	require.ErrorContains(t, err, "WithScratch: with WithoutUserNamespace owners can't be mapped")
	s := newScratch(t, sandbox.MiB)
	for name, instead := range map[string]string{"/abs/": "abs", "../up": "up", "": "."} {
		require.EqualError(t, s.CopyIn(fstest.MapFS{}, name), fmt.Sprintf("sandbox: CopyIn: %q is no name in the scratch: use %q", name, instead))
	}
	_, err = sandbox.New(sandbox.WithCommand("true"), sandbox.WithScratch("/s", s), sandbox.WithFile("/s/x", nil, 0o644)).Run(testkit.Deadline(t))
	require.EqualError(t, err, "sandbox: WithFile: /s/x: lies in the scratch: write the file there")
	_, err = sandbox.New(sandbox.WithCommand("true"), sandbox.WithFS("/f", os.DirFS("/no/such/dir"))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "sandbox: WithFS: the source can't be used:")
}

// countingFS counts how often a file is opened.
type countingFS struct {
	fs.FS
	opened *atomic.Int64
}

func (c countingFS) Open(name string) (fs.File, error) {
	if name == "file" {
		c.opened.Add(1)
	}
	return c.FS.Open(name)
}

func (c countingFS) ReadLink(name string) (string, error)   { return fs.ReadLink(c.FS, name) }
func (c countingFS) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(c.FS, name) }

// TestRootlessFS shows files of this process to a run.
func TestRootlessFS(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "files for several runs")
	var opened atomic.Int64
	files := fstest.MapFS{"file": {Data: []byte("content\n"), Mode: 0o600}, "sub/tool": {Data: []byte("#!/bin/sh\necho tool"), Mode: 0o700},
		"link": {Data: []byte("sub/tool"), Mode: fs.ModeSymlink | 0o777}}
	base := sandbox.New(sandbox.WithFS("/opt/files", countingFS{files, &opened}))
	var all sync.WaitGroup
	for _, user := range []int{0, 7, 1000} {
		all.Go(func() {
			out, err := base.With(sandbox.WithCommand("sh", "-c", "cd /opt/files; cat file; ./link; stat -c %a . file sub/tool; rm -f file; echo >>file"), sandbox.WithUser(user, user)).
				CombinedOutput(testkit.Deadline(t))
			runs.ExitError(t, err)
			require.Regexp(t, "^content\ntool\n755\n644\n755\n.*Read-only file system\n.*(Read-only file system|Permission denied)\n$", string(out))
		})
	}
	all.Wait()
	require.EqualValues(t, 1, opened.Load())
}

// TestFSEnds requires that the copies are removed together with the sandbox.
func TestFSEnds(t *testing.T) {
	testkit.Need(t, "files for several runs")
	testkit.Need(t, "root")
	before := holdSpaces(t)
	hasNew := func() bool {
		for _, name := range spaces() {
			if !slices.Contains(before, name) {
				return true
			}
		}
		return false
	}
	func() {
		s := runs.Shell("cat /f/x", sandbox.WithFS("/f", fstest.MapFS{"x": {Data: []byte("x")}}))
		require.Equal(t, "x", runs.Output(t, s))
		require.True(t, hasNew())
		runtime.KeepAlive(s)
	}()
	require.Eventually(t, func() bool { runtime.GC(); return !hasNew() }, testkit.Patience, 10*time.Millisecond)
}

// spaces returns the names of the mount namespaces that this process has open, by the paths of the
// descriptors.
func spaces() map[string]string {
	names := map[string]string{}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, "mnt:") {
			names[fd] = name
		}
	}
	return names
}

// holdSpaces keeps the open mount namespaces open until the test ends. Some are garbage of earlier
// tests, and the kernel would reuse their names.
func holdSpaces(t *testing.T) (names []string) {
	for fd := range spaces() {
		f, err := os.Open(fd)
		if err != nil {
			continue // collected just now
		}
		t.Cleanup(func() { _ = f.Close() })
		if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// TestAttackScratch reads files of a run that attack their reader.
func TestAttackScratch(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "python3")
	host := testkit.OpenDir(t)
	testkit.WriteFile(t, host+"/secret", "secret", 0o644)
	s := newScratch(t, 4*sandbox.MiB)
	_, err := sandbox.New(sandbox.WithCommand("python3", "-c", `
import os, socket, sys
host = sys.argv[1]
os.mkdir("d"); os.makedirs("p/q/r")
open("good", "w").write("good")
os.symlink("good", "inside"); os.symlink("../good", "d/inside")
os.symlink(host + "/secret", "absolute"); os.symlink(host, "dir"); os.symlink("../" * 30 + host[1:] + "/secret", "relative")
os.symlink("../..", "p/q/up"); os.symlink("q/up/../../../../../../.." + host + "/secret", "p/chain"); os.symlink("loop", "loop"); os.symlink("/proc/self/root" + host, "magic")
os.mkfifo("fifo"); os.symlink("fifo", "d/fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("new\nline", "w"); open(b"not\xffutf-8", "w"); open("-rf", "w"); open("\x1b[2J", "w")
open("holes", "w").truncate(1 << 50)
os.link("good", "hard")
try:
	os.mknod("device", 0o20666, os.makedev(1, 3))
except PermissionError: pass
os.chmod("good", 0)
try:
	os.chmod("hard", 0o4755)
except PermissionError: pass
for i in range(500): # deeper than any path may be
	os.mkdir("deepdeep"); os.chdir("deepdeep")
try:
	while True: open("/s/" + str(os.urandom(8).hex()), "w")
except OSError: pass
`, host), sandbox.WithScratch("/s", s), sandbox.WithDir("/s"), sandbox.WithStderr(os.Stderr)).Run(testkit.Deadline(t))
	require.NoError(t, err)

	fsys := s.FS()
	for _, name := range []string{"absolute", "relative", "dir/secret", "p/chain", "loop", "magic/secret", "fifo", "d/fifo", "socket", "holes", "device", "../good", "/good", "not\xffutf-8"} {
		f, err := fsys.Open(name)
		require.Error(t, err, name)
		require.Nil(t, f, name)
	}
	_, err = fs.ReadFile(fsys, "holes")
	require.ErrorContains(t, err, "1125899906842624 bytes, which are more than the scratch has room for: the file has holes")
	for _, name := range []string{"good", "inside", "d/inside", "hard"} {
		if _, err = fs.ReadFile(fsys, name); !errors.Is(err, fs.ErrPermission) { // a mode of 0 also keeps out an owner other than root
			require.NoError(t, err)
		}
	}
	entries, err := fs.ReadDir(fsys, ".")
	require.NoError(t, err)
	require.LessOrEqual(t, len(entries), 1024+256)

	dst := testkit.OpenDir(t) + "/out"
	err = s.CopyOut(dst)
	require.ErrorIs(t, err, sandbox.ErrNotCopied)
	require.Regexp(t, `^sandbox: CopyOut: left out, as they can't be read or may not be followed: \[.*"absolute".*\]( and \d+ more)?$`, err.Error())
	require.FileExists(t, dst+"/new\nline")
	require.NoError(t, filepath.WalkDir(dst, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, syscall.ENAMETOOLONG) {
			return fs.SkipDir
		}
		if err == nil && d.Type() == 0 {
			b, _ := os.ReadFile(name)
			require.NotEqual(t, "secret", string(b))
		}
		if err == nil && d.Type() != 0 && d.Type() != fs.ModeDir {
			to, err := filepath.EvalSymlinks(name)
			if d.Name() == "loop" || d.Name() == "fifo" { // d/fifo is a loop too
				require.Error(t, err)
				return nil
			}
			if errors.Is(err, fs.ErrNotExist) { // its target was left out
				return nil
			}
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(to+"/", dst+"/"), "%s leads to %s", name, to)
		}
		return err
	}))
}

// TestAttackScratchLinks requires that exactly the links that lead out of the copy are left out.
func TestAttackScratchLinks(t *testing.T) {
	t.Parallel()
	s := newScratch(t, sandbox.MiB)
	runs.Output(t, runs.Shell(`mkdir -p a/b; echo x >f; ln -s ../../f a/b/ok; ln -s ./a/./b ok; ln -s .. a/b/ok2; ln -s ok/ok ok3; ln -s missing ok4
		ln -s ../../../f a/b/no; ln -s .. no; ln -s / no2; ln -s a/../f no3; ln -s ok/../../f no4; mkfifo no5`, sandbox.WithScratch("/s", s), sandbox.WithDir("/s")))
	dst := testkit.OpenDir(t)
	err := s.CopyOut(dst)
	require.ErrorIs(t, err, sandbox.ErrNotCopied)
	require.ErrorContains(t, err, `["a/b/no" "no" "no2" "no3" "no4" "no5"]`)
	out, err := exec.Command("find", dst, "-name", "ok*", "-printf", "%P ").Output()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"a/b/ok", "ok", "a/b/ok2", "ok3", "ok4"}, strings.Fields(string(out)))
	none, err := filepath.Glob(dst + "/no*")
	require.NoError(t, err)
	require.Empty(t, none)
}

// TestAttackScratchRaces has a run swap directories, links, pipes and files while the host reads
// and writes: nothing outside of the scratch is read, written or waited for.
func TestAttackScratchRaces(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "python3")
	host := testkit.OpenDir(t)
	testkit.WriteFile(t, host+"/f", "secret", 0o644)
	s := newScratch(t, sandbox.MiB)
	p := runs.Start(t, sandbox.New(sandbox.WithCommand("python3", "-c", `
import os, sys
host = sys.argv[1]
def other(make, name):
	try: make()
	except OSError: return
	try: os.rename("/s/new", name)
	except OSError:
		os.system("rm -rf " + name + "; mv /s/new " + name)
while True:
	for name in ["/s/d", "/s/d/f"]:
		other(lambda: os.symlink(host, "/s/new"), name)
		other(lambda: os.symlink(host + "/f", "/s/new"), name)
		other(lambda: os.mkfifo("/s/new"), name)
		other(lambda: open("/s/new", "w").truncate(1 << 40), name)
		other(lambda: os.mkdir("/s/new"), name)
		other(lambda: open("/s/new", "w").write("inside"), name)
`, host), sandbox.WithScratch("/s", s)))
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	fsys := s.FS()
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				for _, name := range []string{"d", "d/f"} {
					if b, err := fs.ReadFile(fsys, name); err == nil {
						require.NotContains(t, string(b), "secret")
					}
				}
				_ = s.CopyIn(fstest.MapFS{"f": {Data: []byte("x")}, "g": {Data: []byte("x")}}, "d")
			}
		})
	}
	out := testkit.OpenDir(t)
	all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			dst := fmt.Sprintf("%s/%d", out, i)
			_ = s.CopyOut(dst)
			for _, name := range []string{"/d", "/d/f"} {
				if b, err := os.ReadFile(dst + name); err == nil {
					require.NotContains(t, string(b), "secret")
				}
			}
			require.NoError(t, os.RemoveAll(dst))
		}
	})
	all.Wait()
	require.NoError(t, p.Kill())
	_, err := p.Wait()
	require.Error(t, err)
	entries, err := os.ReadDir(host)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	b, err := os.ReadFile(host + "/f")
	require.NoError(t, err)
	require.Equal(t, "secret", string(b))
}

// BenchmarkGiven measures a run with nothing, a bind, a scratch and an fs.FS, in turn.
func BenchmarkGiven(b *testing.B) {
	testkit.Need(b, "idmapped tmpfs")
	s := newScratch(b, sandbox.MiB)
	dir, base := testkit.OpenDir(b), sandbox.New(sandbox.WithCommand("true"))
	runs := map[string]*sandbox.Sandbox{
		"nothing": base, "bind": base.With(sandbox.WithReadOnlyBind(dir, "/x")), "scratch": base.With(sandbox.WithScratch("/x", s)),
		"fs": base.With(sandbox.WithFS("/x", fstest.MapFS{"x": {Data: make([]byte, sandbox.MiB)}})),
	}
	alternate(b, runs)
}

// TestScratchKeeps copies everything that a tree on a host may have: times, names in any encoding,
// pipes and sockets.
func TestScratchKeeps(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	src := testkit.OpenDir(t)
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	require.NoError(t, os.MkdirAll(src+"/dir/\xff", 0o755))
	files := []string{"dir/file", "dir/\xff/caf\xe9", "dir/empty"}
	for i, name := range files {
		require.NoError(t, os.WriteFile(src+"/"+name, bytes.Repeat([]byte("x"), 2-i), 0o644))
	}
	require.NoError(t, unix.Mkfifo(src+"/dir/pipe", 0o644))
	require.NoError(t, unix.Mknod(src+"/dir/socket", unix.S_IFSOCK|0o644, 0))
	dirs := []string{"dir/\xff", "dir", "."}
	for _, name := range append(files, dirs...) {
		require.NoError(t, os.Chtimes(src+"/"+name, time.Time{}, at))
	}
	requireTimes := func(dir string, names ...string) {
		for _, name := range names {
			info, err := os.Stat(dir + "/" + name)
			require.NoError(t, err)
			require.True(t, at.Equal(info.ModTime()), "%s: %v", name, info.ModTime())
		}
	}
	inRun := "cd /s; stat -c '%Y %F' . dir dir/*"
	stamp := fmt.Sprint(at.Unix())
	all := strings.TrimSpace(strings.Repeat(stamp+" directory\n", 2)) + "\n" + stamp + " regular empty file\n" + stamp + " regular file\n"

	s := newScratch(t, sandbox.MiB)
	require.NoError(t, s.CopyIn(os.DirFS(src), "in"))
	got := runs.Output(t, runs.Shell(strings.Replace(inRun, "/s", "/s/in", 1), sandbox.WithScratch("/s", s)))
	require.True(t, strings.HasPrefix(got, all), got)
	require.Contains(t, got, " fifo\n")
	require.Contains(t, got, " socket\n")
	got = runs.Output(t, runs.Shell(inRun, sandbox.WithFS("/s", os.DirFS(src))))
	require.True(t, strings.HasPrefix(got, all), got)

	dst := testkit.OpenDir(t) + "/out"
	err := s.CopyOut(dst)
	require.ErrorIs(t, err, sandbox.ErrNotCopied)
	require.ErrorContains(t, err, `["in/dir/pipe" "in/dir/socket"]`)
	requireTimes(dst+"/in", append(files, dirs...)...)

	// A destination that does not support such names is an error at the end.
	root, err := os.OpenRoot(src)
	require.NoError(t, err)
	defer root.Close()
	err = s.CopyIn(root.FS(), "again")
	require.ErrorIs(t, err, sandbox.ErrNotCopied)
	require.ErrorContains(t, err, `["dir/\xff"]`)
	require.Equal(t, "x", runs.Output(t, runs.Shell("tail -c 1 /s/again/dir/file", sandbox.WithScratch("/s", s))))
}

// TestAttackScratchDeep copies a tree that is as deep as a path may be and uses all files, without
// one system call for each part of each name.
func TestAttackScratchDeep(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	testkit.Need(t, "python3")
	s := newScratch(t, 8*sandbox.MiB)
	runs.Output(t, runs.Shell(`python3 -c '
import os
d = os.open("/s", os.O_RDONLY)
for i in range(2100):
    os.mkdir("d", dir_fd=d)
    e = os.open("d", os.O_RDONLY, dir_fd=d)
    os.close(d)
    d = e
    if i == 2000: deep = os.dup(d)
try:
    while True: os.close(os.open("f%d" % i, os.O_CREAT|os.O_WRONLY, dir_fd=deep)); i += 1
except OSError: pass
'`, sandbox.WithScratch("/s", s)))
	dst := testkit.OpenDir(t) + "/out"
	begin := time.Now()
	require.ErrorIs(t, s.CopyOut(dst), sandbox.ErrNotCopied)
	t.Log(time.Since(begin))
}

// TestAttackScratchHoles shows what a run left to another one: its files with holes are not more
// than what it could have written.
func TestAttackScratchHoles(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	s := newScratch(t, 4*sandbox.MiB)
	in := sandbox.WithScratch("/s", s)
	runs.Output(t, runs.Shell("mkdir /s/d; truncate -s 3M /s/d/a; echo x >/s/d/b; ln -s ../x /s/d/up; echo y >/s/x", in))
	sub, err := fs.Sub(s.FS(), "d")
	require.NoError(t, err)
	b, err := fs.ReadFile(sub, "up")
	require.NoError(t, err)
	require.Equal(t, "y\n", string(b), "links are followed within the scratch")
	_, err = fs.Stat(sub, "../x")
	require.ErrorIs(t, err, fs.ErrInvalid)
	require.Equal(t, "a b up", runs.Output(t, runs.Shell("echo $(ls /fs)", sandbox.WithFS("/fs", sub))))
	runs.Output(t, runs.Shell("truncate -s 3M /s/d/c", in))
	for _, fsys := range []fs.FS{s.FS(), sub} {
		_, err = runs.Shell("true", sandbox.WithFS("/fs", fsys)).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "more bytes than the scratch has room for")
	}
}

// TestAttackScratchLease reads files of which a run holds leases: opening them would wait for the
// time in the sysctl fs.lease-break-time.
func TestAttackScratchLease(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	testkit.Need(t, "python3")
	s := newScratch(t, sandbox.MiB)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	script := `
import fcntl, os, signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
f = os.open("/s/f", os.O_RDWR | os.O_CREAT)
try:
    fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("leased", flush=True)
except OSError as e:
    print(e, flush=True)
signal.pause()`
	for _, open := range []bool{false, true} {
		box := sandbox.New(sandbox.WithCommand("python3", "-c", script), sandbox.WithScratch("/s", s), sandbox.WithStdout(w))
		want := "[Errno 1] Operation not permitted\n"
		if open {
			box, want = box.With(sandbox.WithoutSeccomp()), "leased\n"
		}
		p := runs.Start(t, box)
		line, err := bufio.NewReader(r).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, line)
		_, err = fs.ReadFile(s.FS(), "f")
		copyErr := s.CopyOut(testkit.OpenDir(t))
		if open {
			require.ErrorIs(t, err, syscall.EWOULDBLOCK)
			require.ErrorIs(t, copyErr, sandbox.ErrNotCopied)
		} else {
			require.NoError(t, errors.Join(err, copyErr))
		}
		require.NoError(t, p.Kill())
		_, err = p.Wait()
		require.Error(t, err)
	}
	require.NoError(t, w.Close())
}
