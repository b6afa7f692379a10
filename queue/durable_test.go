//go:build linux

package queue

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// unsynced returns how many pages of a queue's records the kernel has not written to the disk, -1
// if it can't say.
func unsynced(t testing.TB, q *Queue) int {
	t.Helper()
	pages := 0
	require.NoError(t, filepath.WalkDir(q.config.dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".blk" {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		var has unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &has, 0); err != nil { // Linux 6.5
			pages = -1
			return fs.SkipAll
		}
		pages += int(has.Dirty + has.Writeback)
		return nil
	}))
	return pages
}

// What Submit has returned is on the disk, unless that was not asked for, which is said.
func TestSynced(t *testing.T) {
	var log strings.Builder
	said := Log(slog.New(slog.NewTextHandler(&log, nil)))
	q := open(t, said)
	submit(t, q, Task{Command: shell("true"), Inputs: dirOf(t, "a", strings.Repeat("x", 10_000))})
	synced := unsynced(t, q)
	require.NotContains(t, log.String(), "WARN")
	lax := open(t, SyncEvery(time.Hour), said)
	submit(t, lax, Task{Command: shell("true")})
	require.Contains(t, log.String(), "queue.SyncEvery")
	if unsynced(t, lax) > 0 { // or it can't be seen, as on tmpfs
		require.Zero(t, synced)
	}

	require.False(t, lax.embedded.s.JetStreamConfig().SyncAlways)
	require.Equal(t, time.Hour, lax.embedded.s.JetStreamConfig().SyncInterval)
	require.True(t, q.embedded.s.JetStreamConfig().SyncAlways)
	require.NoError(t, q.embedded.restart())
	testkit.Eventually(t, "it is connected again", q.nc.IsConnected)
	require.True(t, q.embedded.s.JetStreamConfig().SyncAlways)
}
