//go:build linux

package queue

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Small files are in the task's record, up to so many, and others are stored by their content.
func TestSmallFiles(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	stored := func() uint64 {
		info, err := q.blobs.Info(ctx)
		require.NoError(t, err)
		return info.State.Msgs
	}
	files := fstest.MapFS{}
	for i := range inlineBundle / inlineFile {
		files[fmt.Sprintf("%02d", i)] = &fstest.MapFile{Data: make([]byte, inlineFile)}
	}
	b, _, err := q.pack(ctx, files, []string{"."}, false)
	require.NoError(t, err)
	require.Zero(t, stored())
	require.Len(t, b.Inline.Entries, len(files))
	files["one more"] = &fstest.MapFile{Data: []byte("x")}
	b, _, err = q.pack(ctx, files, []string{"."}, false)
	require.NoError(t, err)
	require.EqualValues(t, 2, stored(), "a chunk, and what says where it is")
	require.Len(t, b.Inline.Entries[len(files)-1].Sum, 32)
	_, _, err = q.pack(ctx, fstest.MapFS{"large": {Data: make([]byte, inlineFile+1)}}, []string{"."}, false)
	require.NoError(t, err)
	require.EqualValues(t, 4, stored())
}

// endless is a file system whose only file has no end, and says that it is size bytes.
type endless struct {
	size int64
	read *atomic.Int64
}

func (e endless) Open(string) (fs.File, error) { return e, nil }
func (e endless) Stat() (fs.FileInfo, error) {
	return &node{entry: entry{Name: "a", Mode: 0o644, Size: e.size}}, nil
}
func (e endless) Close() error { return nil }
func (e endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

// Files that are too large or too many are refused before all of them are read.
func TestFilesTooLarge(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), []byte("small"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b"), nil, 0o600))
	// It takes no space.
	require.NoError(t, os.Truncate(filepath.Join(dir, "b"), maxBundleBytes-4))
	_, err := q.Submit(ctx, Task{Command: shell("true"), Inputs: os.DirFS(dir)})
	require.ErrorIs(t, err, errTooLarge)
	require.ErrorContains(t, err, "b: too large: it has 1073741820 bytes, more than the 1073741819 that are left")

	e := endless{read: new(atomic.Int64)}
	p := &packer{ctx: ctx, q: q, now: q.nowOnce(ctx), fsys: e, seen: map[string]bool{}, total: maxBundleBytes - 100_000}
	require.ErrorIs(t, fs.WalkDir(e, "a", p.visit), errTooLarge, "whatever it says")
	require.Less(t, e.read.Load(), int64(1<<20))

	many := fstest.MapFS{}
	for i := range maxFiles {
		many[fmt.Sprint(i)] = &fstest.MapFile{}
	}
	b, _, err := q.pack(ctx, many, []string{"."}, false)
	require.NoError(t, err)
	require.Len(t, b.Sum, 32, "a list that is long is stored as contents are")
	many["more"] = &fstest.MapFile{}
	_, err = q.Submit(ctx, Task{Command: shell("true"), Inputs: many})
	require.ErrorIs(t, err, errTooLarge)
	require.ErrorContains(t, err, "more than 10000 files")

	// Nor does anybody take what says that it is.
	half := entry{Name: "a", Mode: 0o600, Size: maxBundleBytes/2 + 1, Sum: make([]byte, 32)}
	other := half
	other.Name = "b"
	_, err = q.unpack(ctx, &bundle{Inline: &bundleRecord{Version: version, Entries: []entry{half, other}}})
	require.ErrorContains(t, err, "more than 1073741824 bytes")
}

// starts is when attempts began.
type starts chan time.Time

func (s starts) AttemptEnded(r Record) { s <- time.Now().Add(-r.Took) }

// Attempts are so far apart as Retry says, each time twice as far.
func TestBackoff(t *testing.T) {
	for attempt, want := range []time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 12: 2048 * time.Second, 13: time.Hour, 100: time.Hour} {
		if want > 0 {
			require.Equal(t, want, Retry{}.backoff(attempt), attempt)
		}
	}
	require.Equal(t, 80*time.Millisecond, Retry{Backoff: 20 * time.Millisecond}.backoff(3))

	q := open(t)
	began := make(starts, 4)
	work(t, q, Observe(began))
	const backoff = 100 * time.Millisecond
	id := submit(t, q, Task{Command: shell("false"), Retry: Retry{Attempts: 4, Failures: true, Backoff: backoff}})
	_, err := q.Wait(testkit.Deadline(t), id)
	require.ErrorIs(t, err, ErrDead)
	last := <-began
	for _, least := range []time.Duration{backoff, 2 * backoff, 4 * backoff} {
		next := <-began
		require.Greater(t, next.Sub(last), least)
		last = next
	}
}

// Of what a command writes no more goes to its log than 1 MiB at once, and 1 MiB a second.
func TestLogRate(t *testing.T) {
	q := open(t)
	id := (&Task{}).id("")
	sent := make(chan *nats.Msg, 1000)
	_, err := q.nc.ChanSubscribe(q.subject("log", id), sent)
	require.NoError(t, err)
	out, begun := q.newOutput(id), time.Now()
	for _, least := range []float64{1, 0.5} { // seconds' worth
		_, err := out.write(0, make([]byte, 8*logRate))
		require.NoError(t, err)
		require.NoError(t, q.nc.Flush())
		n := float64(len(sent))
		require.GreaterOrEqual(t, n, least*logRate/logChunk)
		require.LessOrEqual(t, n, (least+time.Since(begun).Seconds())*logRate/logChunk)
		for len(sent) > 0 {
			<-sent
		}
		begun = time.Now()
		out.budget, out.filled = 0, begun.Add(-time.Second/2) // as half a second later
	}
}

// The logs of all tasks together are bounded: the oldest pieces go.
func TestLogBytes(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	const tasks = maxLogBytes/(logChunks*logChunk) + 2
	var ids []string
	for range tasks {
		ids = append(ids, (&Task{}).id(""))
		_, err := q.newOutput(ids[len(ids)-1]).write(0, make([]byte, logChunks*logChunk))
		require.NoError(t, err)
	}
	logs, err := q.js.Stream(ctx, "sandbox-logs")
	require.NoError(t, err)
	testkit.Eventually(t, "all is stored", func() bool {
		info, err := logs.Info(ctx)
		require.NoError(t, err)
		return info.State.LastSeq == tasks*logChunks
	})
	info, err := logs.Info(ctx, jetstream.WithSubjectFilter(q.subject("log", ">")))
	require.NoError(t, err)
	require.LessOrEqual(t, info.State.Bytes, uint64(maxLogBytes))
	require.Zero(t, info.State.Subjects[q.subject("log", ids[0])])
	require.EqualValues(t, logChunks, info.State.Subjects[q.subject("log", ids[tasks-1])])
}
