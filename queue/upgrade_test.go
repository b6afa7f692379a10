//go:build linux

package queue

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Records as the first version wrote them, and as later ones may. They are bytes, so that no change
// of this package changes them.
const (
	oldTask = "\xa5\x00\x01\x01\x83\x67/bin/sh\x62-c\x68echo old\x05\xa0\x08\xa1\x01\x02\x09\x01"
	// With a field that this version does not know.
	laterTask = "\xa6\x00\x01\x01\x83\x67/bin/sh\x62-c\x6aecho later\x05\xa0\x08\xa0\x09\x01\x18\xc8\x63new"
	// Of a version that this one can't understand.
	newerTask  = "\xa2\x00\x18\x63\x01\x63new"
	newerState = "\xa2\x00\x18\x63\x01\x03"
	oldState   = "\xa4\x00\x01\x01\x03\x02\x01\x08\xa4\x01\x07\x03\x66exited\x04\xa1\x01\x01\x0a\x01"
)

// A queue is taken over by a program of another version while tasks wait in it.
func TestUpgrade(t *testing.T) {
	ctx := testkit.Deadline(t)
	dir := t.TempDir()
	q := open(t, Dir(dir))
	for id, data := range map[string]string{"task.default.normal.old": oldTask, "task.default.normal.later": laterTask, "task.default.normal.newer": newerTask,
		"state.default.normal.done": oldState, "state.default.normal.ahead": newerState} {
		_, err := q.js.Publish(ctx, q.config.name+"."+id, []byte(data), jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
	}
	q.Close()

	q = open(t, Dir(dir))
	work(t, q)
	require.Equal(t, "old", text(mustWait(t, q, "default.normal.old").Stdout))
	require.Equal(t, "later", text(mustWait(t, q, "default.normal.later").Stdout))
	res, err := q.Wait(ctx, "default.normal.done")
	require.Equal(t, 7, res.ExitCode)
	require.ErrorContains(t, err, "7")
	_, err = q.Wait(ctx, "default.normal.ahead")
	require.ErrorIs(t, err, errNewer)

	// The worker has had the newer one, which was before others; it waits for a newer worker.
	last := submit(t, q, Task{Command: shell("true")})
	mustWait(t, q, last)
	m, err := q.taskMessage(ctx, "default.normal.newer")
	require.NoError(t, err)
	require.Equal(t, newerTask, string(m.Data))
	_, err = q.Status(ctx, "default.normal.newer")
	require.ErrorIs(t, err, errNewer)
	for s, err := range q.Dead(ctx) {
		require.NoError(t, err)
		require.Empty(t, s, "nothing was given up")
	}
}
