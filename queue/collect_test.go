//go:build linux

package queue

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// large is a file's content that is a blob.
func large(what string) []byte { return []byte(strings.Repeat(what+" ", 2*chunkSize/len(what))) }

// collectAll collects what may be, however young it is; ended says whether tasks that have ended,
// too.
func collectAll(t testing.TB, q *Queue, ended bool) {
	t.Helper()
	retention := q.config.retention
	defer func() { q.config.retention, q.config.grace = retention, blobGrace }()
	if q.config.grace = 0; ended {
		q.config.retention = 0
	}
	require.NoError(t, q.Collect(testkit.Deadline(t)))
}

// Contents stay as long as anything refers to them, and go then.
func TestCollect(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	work(t, q)
	inputs := func(what string) fs.FS { return fstest.MapFS{"large": {Data: large(what), Mode: 0o644}} }
	// As a worker that runs the task would read them.
	inputsOf := func(stream jetstream.Stream, kind, id string) *bundle {
		m, err := q.last(ctx, stream, q.subject(kind, id))
		require.NoError(t, err)
		r, err := decode[taskRecord](m.Data)
		require.NoError(t, err)
		return r.Inputs
	}
	cancel := func(id string) {
		_, err := q.Cancel(ctx, id, "not needed")
		require.NoError(t, err)
	}
	names := fstest.MapFS{"large": {Data: large("a long list"), Mode: 0o644}}
	for i := range 700 {
		names[fmt.Sprintf("%0200d", i)] = &fstest.MapFile{Mode: 0o644}
	}

	for what, refer := range map[string]func(what string) (files *bundle, drop func()){
		"a task that waits": func(what string) (*bundle, func()) {
			id := submit(t, q, Task{Command: shell("true"), Class: "nobody", Inputs: inputs(what)})
			return inputsOf(q.tasks, "task", id), func() { cancel(id) }
		},
		"a long list": func(string) (*bundle, func()) {
			id := submit(t, q, Task{Command: shell("true"), Class: "nobody", Inputs: names})
			files := inputsOf(q.tasks, "task", id)
			require.Nil(t, files.Inline)
			return files, func() { cancel(id) }
		},
		"a result": func(what string) (*bundle, func()) {
			id := submit(t, q, Task{Command: shell("cat > large"), Stdin: large(what)[:maxStdin], Outputs: []string{"large"}})
			mustWait(t, q, id)
			r, _, err := q.state(ctx, id)
			require.NoError(t, err)
			return r.Run.Outputs, func() {}
		},
		"a dead letter": func(what string) (*bundle, func()) {
			id := submit(t, q, Task{Command: shell("exit 1"), Inputs: inputs(what), Retry: Retry{Attempts: 1, Failures: true}})
			_, err := q.Wait(ctx, id)
			require.ErrorIs(t, err, ErrDead)
			testkit.Eventually(t, "the task is gone", func() bool {
				_, err := q.task(ctx, id)
				return err != nil
			})
			return inputsOf(q.dead, "dead", id), func() {
				require.NoError(t, q.dead.Purge(ctx)) // as when it is old
			}
		},
		"a service without replicas": func(what string) (*bundle, func()) {
			r, err := q.describe(ctx, &Service{Name: "s", Task: Task{Command: shell("true"), Inputs: inputs(what)}})
			require.NoError(t, err)
			_, err = q.replaceService(ctx, "s", r, 0)
			require.NoError(t, err)
			return r.Task.Inputs, func() { require.NoError(t, q.StopService(ctx, "s")) }
		},
	} {
		bundle, drop := refer(what)
		collectAll(t, q, false)
		files, err := q.unpack(ctx, bundle)
		require.NoError(t, err, what)
		got, err := fs.ReadFile(files, "large")
		require.NoError(t, err, what)
		require.Equal(t, string(large(what)[:len(got)]), string(got), what)
		drop()
		require.NoError(t, q.Collect(ctx))
		_, err = fs.ReadFile(files, "large")
		require.NoError(t, err, "%s: it is younger than an hour", what)
		collectAll(t, q, true)
		collectAll(t, q, true) // what tasks referred to that the first one has removed
		left, err := q.blobs.Info(ctx)
		require.NoError(t, err)
		require.Zero(t, left.State.Msgs, "%s, and nothing refers to its contents", what)
	}
}

// A content that is touched while it is looked for is behind all others, where a server that lags
// may not have it yet: it is looked for until it has.
func TestCollectLag(t *testing.T) {
	t.Parallel() // it waits mostly
	q := open(t)
	ctx := testkit.Deadline(t)
	q.blobs.CachedInfo().Config.Replicas = 3 // as Collect takes it for
	put := func(name string) {
		_, err := q.js.Publish(ctx, q.blobSubject([]byte(name)), nil)
		assert.NoError(t, err)
	}
	put("a")
	var names []string
	for m, err := range q.settled(ctx, q.blobs, q.config.name+".blob.*") {
		require.NoError(t, err)
		if names = append(names, m.Subject); len(names) == 1 {
			defer time.AfterFunc(maxLag/2, func() { put("b") }).Stop()
		}
	}
	require.Equal(t, []string{q.blobSubject([]byte("a")), q.blobSubject([]byte("b"))}, names)
}

// Lists that are not there keep Collect for no longer if they are many, and one that is there only
// when it is looked for again counts.
func TestCollectAbsent(t *testing.T) {
	t.Parallel() // it waits mostly
	q := open(t)
	ctx := testkit.Deadline(t)
	put := func(b []byte) []byte {
		sum, _, err := q.putBytes(ctx, q.nowOnce(ctx), b)
		assert.NoError(t, err)
		return sum
	}
	content := put(large("late"))
	late, err := encode(&bundleRecord{Version: version, Entries: []entry{{Name: "late", Mode: 0o644, Size: int64(len(large("late"))), Sum: content}}})
	require.NoError(t, err)
	sum := sha256.Sum256(late)
	lists := []*bundle{{Sum: sum[:], Size: 1}, {Sum: sum[:], Size: int64(len(late))}} // the first one lies
	for i := range 20 {
		sum := sha256.Sum256([]byte{byte(i)})
		lists = append(lists, &bundle{Sum: sum[:], Size: 1})
	}
	r, err := (&Task{Command: shell("true")}).record(nil)
	require.NoError(t, err)
	for _, r.Inputs = range lists {
		_, err := q.submit(ctx, (&Task{}).id(""), r, &Task{}, time.Now())
		require.NoError(t, err)
	}
	q.tasks.CachedInfo().Config.Replicas = 3 // as Collect takes it for
	q.config.grace = 0
	defer time.AfterFunc(maxLag/2, func() { put(late) }).Stop()
	begun := time.Now()
	require.NoError(t, q.Collect(ctx))
	require.Less(t, time.Since(begun), 5*maxLag)
	_, _, err = q.blob(ctx, content)
	require.NoError(t, err)
}

// Who looks for what is not there hears why it was ended, not that it is not there.
func TestSeekEnds(t *testing.T) {
	q := open(t)
	q.tasks.CachedInfo().Config.Replicas = 3 // as seek takes it for
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(testkit.Deadline(t))
	defer time.AfterFunc(50*time.Millisecond, func() { cancel(why) }).Stop()
	err := q.seek(ctx, func() error { return jetstream.ErrMsgNotFound })
	require.ErrorIs(t, err, why)
}

// Records of a newer version may refer to anything: who can't read them removes no contents.
func TestCollectNewer(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	requireKept := func(subject string) {
		t.Helper()
		q.config.grace = 0
		err := q.Collect(ctx)
		require.ErrorIs(t, err, errNewer)
		require.ErrorContains(t, err, subject)
		chunks, err := q.blobs.Info(ctx, jetstream.WithSubjectFilter(q.config.name+".chunk.>"))
		require.NoError(t, err)
		require.NotEmpty(t, chunks.State.Subjects)
		q.config.grace = blobGrace
	}
	in := fstest.MapFS{"large": {Data: large("newer"), Mode: 0o644}}
	b, _, err := q.pack(ctx, in, []string{"."}, false)
	require.NoError(t, err)
	for subject, stream := range map[string]jetstream.Stream{
		q.subject("task", "default.normal.new"):  q.tasks,
		q.subject("dead", "default.normal.new"):  q.dead,
		q.subject("state", "default.normal.new"): q.states,
		q.subject("service", "new"):              q.services,
	} {
		_, err := q.js.Publish(ctx, subject, []byte(newerTask), jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
		requireKept(subject)
		require.NoError(t, stream.Purge(ctx, jetstream.WithPurgeSubject(subject))) // as its owner may
	}
	// Who has written a list, or a content, in its way is not known to be one that has gone.
	list, _, err := q.putBytes(ctx, q.nowOnce(ctx), []byte(newerTask))
	require.NoError(t, err)
	r, err := (&Task{Command: shell("true")}).record(nil)
	require.NoError(t, err)
	for _, files := range []*bundle{{Sum: list, Size: int64(len(newerTask))}, b} {
		if files == b {
			_, err := q.js.Publish(ctx, q.blobSubject(b.Inline.Entries[0].Sum), []byte(newerTask))
			require.NoError(t, err)
		}
		r.Inputs = files
		id := (&Task{}).id("")
		_, err := q.submit(ctx, id, r, &Task{}, time.Now())
		require.NoError(t, err)
		requireKept("")
		require.NoError(t, q.tasks.Purge(ctx))
	}
	collectAll(t, q, false)
	left, err := q.blobs.Info(ctx)
	require.NoError(t, err)
	require.Zero(t, left.State.Msgs)
}

// A state that can't be read counts as long as it is young, or its task is there.
func TestCollectOldState(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	put := func(id, state string) {
		_, err := q.js.Publish(ctx, q.subject("state", id), []byte(state), jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
	}
	put("default.normal.gone", newerState)
	put("default.normal.garbage", "garbage")
	require.ErrorIs(t, q.Collect(ctx), errNewer)
	q.config.retention = 0
	require.NoError(t, q.Collect(ctx))
	left, err := q.states.Info(ctx)
	require.NoError(t, err)
	require.Zero(t, left.State.Msgs)
	put(submit(t, q, Task{Command: shell("true")}), newerState)
	require.ErrorIs(t, q.Collect(ctx), errNewer)
}

// A task that is put back, or submitted anew, stays when Collect, which has read its state before,
// is about to forget it.
func TestCollectPutBack(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	read := func(id string) (*jetstream.RawStreamMsg, *stateRecord) {
		m, err := q.last(ctx, q.states, q.subject("state", id))
		require.NoError(t, err)
		r, err := decode[stateRecord](m.Data)
		require.NoError(t, err)
		return m, r
	}
	forget := func(m *jetstream.RawStreamMsg, r *stateRecord) { require.NoError(t, q.forget(ctx, m, r)) }

	back, _ := deadLetter(t, q, Task{Command: shell("true")})
	state, r := read(back)
	require.NoError(t, q.Requeue(ctx, back))
	forget(state, r)
	require.Equal(t, Waiting, awaitState(t, q, back, Waiting).State)

	// With its key before: Requeue, which may be about to, would take that message for its own.
	twice := Task{Command: shell("true"), Key: "twice"}
	id, m := deadLetter(t, q, twice)
	require.NoError(t, q.remove(ctx, q.tasks, m.Sequence))
	require.Equal(t, id, submit(t, q, twice))
	forget(read(id))

	// Another Collect was faster.
	anew := Task{Command: shell("true"), Key: "anew"}
	other := submit(t, q, anew)
	_, err := q.Cancel(ctx, other, "not needed")
	require.NoError(t, err)
	state, r = read(other)
	forget(state, r)
	require.Equal(t, other, submit(t, q, anew))
	forget(state, r)
	_, err = q.replace(ctx, other, &stateRecord{State: Waiting, Attempt: 1}, 0) // it was tried
	require.NoError(t, err)
	forget(state, r)

	// A message that its end has left goes, so that it does not start.
	left := submit(t, q, Task{Command: shell("true")})
	_, err = q.replace(ctx, left, &stateRecord{State: Canceled}, 0)
	require.NoError(t, err)
	forget(read(left))
	_, err = q.Status(ctx, left)
	require.ErrorIs(t, err, ErrNotFound)

	work(t, q)
	for _, id := range []string{back, id, other} {
		mustWait(t, q, id)
	}
}
