//go:build linux

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// onDisk returns a directory on a disk, in which a test must leave nothing.
func onDisk(t testing.TB) string {
	t.Helper()
	testkit.Need(t, "disks for file systems")
	dir, err := os.MkdirTemp("/var/tmp", "sandbox-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	return dir
}

func newDiskScratch(t testing.TB, size int64) *sandbox.Scratch {
	t.Helper()
	dir := onDisk(t)
	s, err := sandbox.NewDiskScratch(dir, size)
	require.NoError(t, err)
	require.Len(t, devicesOf(dir), 1)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		testkit.Eventually(t, "the loop device is free", func() bool { return devicesOf(dir) == nil })
	})
	return s
}

// devicesOf returns the loop devices of files in the directory, which have no name there.
func devicesOf(dir string) (list []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			list = append(list, f)
		}
	}
	return list
}

// Files of a scratch on disk go in and out, no device is within reach, and it is full at its size.
func TestDiskScratch(t *testing.T) {
	t.Parallel()
	s := newDiskScratch(t, 16*sandbox.MiB)
	require.NoError(t, s.CopyIn(fstest.MapFS{"a/b": {Data: []byte("in"), Mode: 0o640}}, "."))
	in := []sandbox.Option{sandbox.WithScratch("/tmp", s), sandbox.WithDir("/tmp")}
	require.Equal(t, "a\nin 1000\n1", runs.Output(t, runs.Shell("ls; cat a/b; stat -c ' %u' a/b; echo out >c; ls /dev | grep loop; grep -c ' /tmp rw,nosuid,nodev' /proc/self/mountinfo", in...)))
	b, err := fs.ReadFile(s.FS(), "c")
	require.NoError(t, err)
	require.Equal(t, "out\n", string(b))
	out, err := runs.Shell("head -c 20M /dev/zero >big; rm c; echo", in...).CombinedOutput(testkit.Deadline(t))
	require.NoError(t, err)
	require.Contains(t, string(out), "No space left on device")
	info, err := fs.Stat(s.FS(), "big")
	require.NoError(t, err)
	require.InDelta(t, 15.5*sandbox.MiB, info.Size(), sandbox.MiB/2)
	require.ErrorIs(t, s.CopyIn(fstest.MapFS{"more": {Data: make([]byte, sandbox.MiB)}}, "."), syscall.ENOSPC)
	dir := filepath.Join(testkit.OpenDir(t), "out")
	require.NoError(t, s.CopyOut(dir))
	require.FileExists(t, dir+"/big")
}

// The changes of a root go to a disk too.
func TestDiskScratchRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped /usr") // and with it, below an overlay
	root := newDiskScratch(t, 16*sandbox.MiB)
	change := runs.Shell("echo changed >/etc/hosts; rm -r /usr/share/doc; echo new >/new", sandbox.WithScratchRoot(root), sandbox.WithUser(0, 0))
	_, err := change.Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, "changed new 1", runs.Output(t, runs.Shell("echo $(cat /etc/hosts /new; ls /usr/share/doc 2>&1 | grep -c No)", sandbox.WithScratchRoot(root))))
}

// What a run writes to a scratch on disk may be more than its memory. In memory it may not.
func TestDiskScratchMemory(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "idmapped tmpfs")
	write := runs.Shell("head -c 96M /dev/zero >/s/big && head -c 96M /s/big | wc -c", sandbox.WithMemory(32*sandbox.MiB))
	require.Equal(t, fmt.Sprint(96*sandbox.MiB), runs.Output(t, write.With(sandbox.WithScratch("/s", newDiskScratch(t, 128*sandbox.MiB)))))
	_, err := write.With(sandbox.WithScratch("/s", newScratch(t, 128*sandbox.MiB))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// A host process that is killed leaves no loop device, no file, and so no room taken.
func TestDiskScratchKilledHost(t *testing.T) {
	t.Parallel()
	dir := onDisk(t)
	host := testkit.HelperCommand(testkit.Deadline(t), "disk", dir)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, host.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	require.Len(t, devicesOf(dir), 1)
	require.NoError(t, host.Process.Kill())
	require.Error(t, host.Wait())
	testkit.Eventually(t, "the loop device is free", func() bool { return devicesOf(dir) == nil })
}

// diskHelper is a host process with a run that writes to a scratch on disk.
func diskHelper(args []string) error {
	s, err := sandbox.NewDiskScratch(args[0], 64*sandbox.MiB)
	if err != nil {
		return err
	}
	_, err = sandbox.New(sandbox.WithScratch("/s", s), sandbox.WithStdout(os.Stdout),
		sandbox.WithCommand("sh", "-c", "head -c 1M /dev/zero >/s/x; echo ready; cat /dev/zero >/s/y; sleep 1000")).Run(context.Background())
	return err
}

func TestDiskScratchOptions(t *testing.T) {
	testkit.Need(t, "disks for file systems")
	_, err := sandbox.NewDiskScratch("/no/such", sandbox.MiB)
	require.EqualError(t, err, "sandbox: NewDiskScratch /no/such: open /no/such: no such file or directory (name a directory on a disk, such as one on ext4, xfs or btrfs)")
	require.Equal(t, "", runs.Output(t, runs.Shell("ls -A /s", sandbox.WithScratch("/s", newDiskScratch(t, sandbox.MiB)))))
}

// An ordinary user is told what there is instead.
func TestRootlessDiskScratch(t *testing.T) {
	testkit.Need(t, "an ordinary user")
	_, err := sandbox.NewDiskScratch(t.TempDir(), sandbox.MiB)
	var setup *sandbox.SetupError
	require.ErrorAs(t, err, &setup)
	require.Contains(t, setup.Hint, "WithBind of a directory")
}

// TestAttackDiskLinks fills a disk with names for a few files, which nothing but its size bounds:
// whoever lists them gets an error before they fill memory.
func TestAttackDiskLinks(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "python3")
	s, root := newDiskScratch(t, 4*sandbox.MiB), newDiskScratch(t, 4*sandbox.MiB)
	const script = `
import os
try:
    for i in range(1000):
        os.makedirs("%s/d%d" % (os.getcwd(), i % 8), exist_ok=True)
        os.close(os.open("f", os.O_CREAT))
        for j in range(1000 if i else 0):
            os.link("f", "d%d/%x" % (i % 8, i * 1000 + j))
        if i % 50 == 0: os.unlink("f")
except OSError as e: print(e.errno)
`
	in := sandbox.New(sandbox.WithCommand("python3", "-Bc", script))
	require.Equal(t, "28", runs.Output(t, in.With(sandbox.WithScratch("/s", s), sandbox.WithDir("/s"))))
	require.Equal(t, "28", runs.Output(t, in.With(sandbox.WithScratchRoot(root), sandbox.WithDir("/"), sandbox.WithUser(0, 0))))
	_, err := fs.ReadDir(s.FS(), "d0")
	require.ErrorContains(t, err, "readdir d0: more than 1280 names")
	d, err := s.FS().Open("d0")
	require.NoError(t, err)
	some, err := d.(fs.ReadDirFile).ReadDir(2000)
	require.NoError(t, errors.Join(err, d.Close()))
	require.Len(t, some, 2000, "as many as asked for")
	require.ErrorIs(t, s.CopyOut(filepath.Join(testkit.OpenDir(t), "out")), sandbox.ErrNotCopied)
	_, err = in.With(sandbox.WithScratchRoot(root), sandbox.WithUser(0, 0)).RootChanges()
	require.ErrorContains(t, err, "hard links")
}

// TestAttackDiskNestedLinks has no directory with too many names, but has them in one another, so
// that a walk would keep those of all.
func TestAttackDiskNestedLinks(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "python3")
	s, root := newDiskScratch(t, 4*sandbox.MiB), newDiskScratch(t, 4*sandbox.MiB)
	in := sandbox.New(sandbox.WithUser(0, 0), sandbox.WithCommand("python3", "-Bc", `
import os
os.close(os.open("f", os.O_CREAT))
at = "."
for i in range(8):
    at += "/0"
    os.mkdir(at)
    for j in range(1000): os.link("f", "%s/%x" % (at, 16 + j))
`))
	runs.Output(t, in.With(sandbox.WithScratch("/s", s), sandbox.WithDir("/s")))
	runs.Output(t, in.With(sandbox.WithScratchRoot(root), sandbox.WithDir("/")))
	list, err := fs.ReadDir(s.FS(), "0/0")
	require.NoError(t, err)
	require.Len(t, list, 1001)
	_, err = in.With(sandbox.WithScratchRoot(root)).RootChanges()
	require.ErrorContains(t, err, "0/0: more than 1280 names")
	require.ErrorIs(t, s.CopyOut(filepath.Join(testkit.OpenDir(t), "out")), sandbox.ErrNotCopied)
	_, err = runs.Shell("true", sandbox.WithFS("/fs", s.FS())).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "0/0: more than 1280 names")
}
