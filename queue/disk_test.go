//go:build linux

package queue

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// smallDisk mounts a file system of so many bytes.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// fillDisk fills a file system with a file, except for left bytes.
func fillDisk(t testing.TB, file string, left int64) {
	t.Helper()
	free, err := freeSpace(filepath.Dir(file))
	require.NoError(t, err)
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, free-left))
}

// A disk that gets full is said to be, loses nothing, and is used again when it has space.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "96m")
	filler := filepath.Join(dir, "filler")
	ctx := testkit.Deadline(t)
	var log lockedBuffer
	q := open(t, Dir(dir), Listen("127.0.0.1:0"), Log(slog.New(slog.NewTextHandler(&log, nil))))
	url := q.URL()
	before := submit(t, q, Task{Command: shell("echo before")})

	// What is left is for the ends of tasks that are there.
	fillDisk(t, filler, 8<<20)
	for _, task := range []Task{{Command: shell("true")}, {Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 300_000))}} {
		_, err := q.Submit(ctx, task)
		require.ErrorIs(t, err, ErrFull)
		require.ErrorContains(t, err, dir)
	}
	_, err := SubmitCall(ctx, q, asked, question{Do: "echo"})
	require.ErrorIs(t, err, ErrFull)
	require.ErrorIs(t, q.Serve(ctx, Service{Name: "a", Task: Task{Command: shell("true")}}), ErrFull)
	stop := work(t, q)
	require.Equal(t, "before", text(mustWait(t, q, before).Stdout))
	stop()

	// Somebody else takes the rest, and another process, which does not look, submits.
	fillDisk(t, filler+"2", 0)
	other, err := Open(ctx, url)
	require.NoError(t, err)
	defer other.Close()
	testkit.Eventually(t, "it is seen", func() bool { return strings.Contains(log.String(), "the disk is full") })
	lost := make(chan error, 1)
	var id string
	go func() {
		var err error
		id, err = other.Submit(ctx, Task{Command: shell("echo after"), Stdin: make([]byte, maxStdin)})
		lost <- err
	}()
	short, cancel := context.WithTimeout(ctx, tryTime/10)
	defer cancel()
	_, err = other.Submit(short, Task{Command: shell("true"), Stdin: make([]byte, maxStdin)})
	require.ErrorIs(t, err, context.DeadlineExceeded, "no server answers")

	require.NoError(t, os.Remove(filler))
	require.NoError(t, os.Remove(filler+"2"))
	require.NoError(t, <-lost, "it is submitted when there is space")
	require.Equal(t, url, q.URL())
	work(t, q)
	require.Equal(t, "after", text(mustWait(t, other, id).Stdout))
	require.Equal(t, "before", text(mustWait(t, q, before).Stdout))
	require.Contains(t, log.String(), "the disk has space again")
}
