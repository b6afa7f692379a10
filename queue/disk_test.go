//go:build linux

package queue

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	testkit.Eventually(t, "it is filled, whatever others write meanwhile", func() bool {
		free, err := freeSpace(filepath.Dir(file))
		require.NoError(t, err)
		return unix.Fallocate(int(f.Fd()), 0, 0, free-left) == nil
	})
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
	waiting := submit(t, q, Task{Command: shell("true"), Class: "nobody", Stdin: make([]byte, maxStdin)})
	other, err := Open(ctx, url)
	require.NoError(t, err)
	defer other.Close()

	// What is left is for the ends of tasks that are there.
	fillDisk(t, filler, 8<<20)
	for _, task := range []Task{{Command: shell("true")}, {Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 300_000))}} {
		_, err := q.Submit(ctx, task)
		require.ErrorIs(t, err, ErrFull)
		require.ErrorContains(t, err, dir)
	}
	testkit.Eventually(t, "who submits from elsewhere hears of it", func() bool {
		_, err := other.Submit(ctx, Task{Command: shell("true"), Class: "nobody"})
		return errors.Is(err, ErrFull) && strings.Contains(err.Error(), "the disk of its server has ")
	})
	_, err = SubmitCall(ctx, q, asked, question{Do: "echo"})
	require.ErrorIs(t, err, ErrFull)
	require.ErrorIs(t, q.Serve(ctx, Service{Name: "a", Task: Task{Command: shell("true")}}), ErrFull)
	stop := work(t, q)
	require.Equal(t, "before", text(mustWait(t, q, before).Stdout))
	stop()

	// Somebody else takes the rest.
	fillDisk(t, filler+"2", 0)
	testkit.Eventually(t, "it is seen", func() bool { return strings.Contains(log.String(), "the disk is full") })
	other.said.Store(nil) // as for one that the news has not reached
	_, err = other.Submit(ctx, Task{Command: shell("true"), Stdin: make([]byte, maxStdin)})
	require.ErrorIs(t, err, ErrFull, "it hears of it while no server answers")
	require.ErrorContains(t, err, "the disk of its server has 0 MiB left")
	canceled := make(chan error, 1)
	go func() {
		_, err := other.Cancel(ctx, waiting, strings.Repeat("x", maxText)) // more than is left of a page
		canceled <- err
	}()
	select {
	case err := <-canceled:
		t.Fatalf("canceled: %v", err)
	case <-time.After(tryTime / 10):
	}

	require.NoError(t, os.Remove(filler))
	require.NoError(t, os.Remove(filler+"2"))
	require.NoError(t, <-canceled, "it is when there is space")
	require.Equal(t, url, q.URL())
	testkit.Eventually(t, "others hear of it", func() bool { return other.space() == nil })
	work(t, q)
	after := submit(t, other, Task{Command: shell("echo after")})
	require.Equal(t, "after", text(mustWait(t, other, after).Stdout))
	require.Equal(t, "after", text(awaitLine(t, lines(t, other, after, 0), "").Data), "there are logs again")
	testkit.Eventually(t, "and workers", func() bool {
		stats, err := other.Stats(ctx)
		require.NoError(t, err)
		return stats.Workers == 1
	})
	require.Equal(t, "before", text(mustWait(t, q, before).Stdout))
	require.Contains(t, log.String(), "the disk has space again")
}

// Of servers elsewhere nobody sees the disks: those that promise less than a queue may take refuse
// to make it, and where none stores a task, the error says what to look at.
func TestDiskElsewhere(t *testing.T) {
	small := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 5 << 30})
	require.ErrorContains(t, refused(t, small.ClientURL()), "max_file_store must be more than BlobBytes and 4 GiB")
	for _, m := range []int64{maxLogBytes - 1, maxLogBytes} { // too few for logs, and for what follows
		little := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: m})
		require.ErrorContains(t, refused(t, little.ClientURL()), "max_memory_store must be more than 128 MiB")
	}
	q, err := Open(testkit.Deadline(t), small.ClientURL(), BlobBytes(1<<20))
	require.NoError(t, err)
	defer q.Close()
	_, err = q.Submit(testkit.Deadline(t), Task{Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 2<<20))})
	require.ErrorIs(t, err, ErrFull)

	small.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err = q.Submit(ctx, Task{Command: shell("true")})
	require.ErrorContains(t, err, "have their disks space?")
}
