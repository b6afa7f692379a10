//go:build linux

package queue

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// lines follows the output of a task.
func lines(t testing.TB, q *Queue, id string, after uint64) <-chan Chunk {
	t.Helper()
	c := make(chan Chunk, 1000)
	ctx := testkit.Deadline(t)
	go func() {
		defer close(c)
		for chunk, err := range q.Logs(ctx, id, after) {
			if err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			c <- chunk
		}
	}()
	return c
}

// awaitLine waits for a piece with a text.
func awaitLine(t testing.TB, c <-chan Chunk, has string) Chunk {
	t.Helper()
	end := time.After(testkit.Patience)
	for {
		select {
		case chunk, ok := <-c:
			require.True(t, ok, "the output has ended before %q", has)
			if strings.Contains(string(chunk.Data), has) {
				return chunk
			}
		case <-end:
			t.Fatalf("%q does not come", has)
		}
	}
}

// A single server that is started anew, and of which nobody opens the queue anew, has no logs,
// workers and health of services: these go on by themselves, and so do those who read them.
func TestServerAnew(t *testing.T) {
	t.Parallel() // it mostly waits
	ctx := longDeadline(t)
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30}
	s := startServer(t, o)
	o.Port = s.Addr().(*net.TCPAddr).Port
	q, err := Open(ctx, s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(q.Close)
	stop := work(t, q, TakeServices("127.0.0.1"))
	id := submit(t, q, Task{Command: shell("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done")})
	require.NoError(t, q.Serve(ctx, Service{Name: "web", Task: Task{Command: shell("sleep 1000")}}))
	live := lines(t, q, id, 0)
	before := awaitLine(t, live, "line")

	s.Shutdown()
	s.WaitForShutdown()
	startServer(t, o)
	late := lines(t, q, id, before.Position)
	for _, c := range []<-chan Chunk{live, late} {
		require.Greater(t, awaitLine(t, c, "line").Position, before.Position)
	}
	testkit.Eventually(t, "the worker says what it runs", func() bool {
		stats, err := q.Stats(ctx)
		require.NoError(t, err)
		return stats.Workers == 1 && stats.Running == 2
	})
	testkit.Eventually(t, "the service is healthy", func() bool { return statusOfService(t, q, "web").Replicas[0].Healthy })
	require.NoError(t, q.Scale(ctx, "web", 2), "it hears of the new replica")
	_, err = q.Cancel(ctx, id, "enough")
	require.NoError(t, err)
	for _, c := range []<-chan Chunk{live, late} {
		for range c { // until it has ended
		}
	}
	stop() // before the server
}

// A stream of logs that has begun anew numbers its records from 1 again: who reads on, or returns,
// misses no piece that is there, and gets none twice.
func TestLogsAnew(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("true")})
	seq, err := q.replace(ctx, id, &stateRecord{State: Running, Attempt: 1, Worker: "w"}, 0)
	require.NoError(t, err)
	piece := func(n uint64, data string) {
		b, err := encode(&logRecord{Version: version, Attempt: 1, Data: []byte(data), Claim: seq, Number: n})
		require.NoError(t, err)
		_, err = q.publish(ctx, q.subject("log", id), b)
		require.NoError(t, err)
	}
	piece(1, "a")
	piece(2, "b")
	live := lines(t, q, id, 0)
	first := awaitLine(t, live, "a")
	require.Equal(t, "b", text(awaitLine(t, live, "").Data))
	for i, pieces := range []string{"c", "defg", "hi"} { // fewer than there were, more, as many
		require.NoError(t, q.js.DeleteStream(ctx, "sandbox-logs"))
		testkit.Eventually(t, "it is made", func() bool {
			_, err := q.js.Stream(ctx, "sandbox-logs")
			return err == nil
		})
		n := uint64([]int{3, 4, 8}[i])
		for k, data := range strings.Split(pieces, "") {
			piece(n+uint64(k), data)
		}
		late := lines(t, q, id, first.Position)
		for _, data := range strings.Split(pieces, "") {
			require.Equal(t, data, text(awaitLine(t, live, "").Data))
			require.Equal(t, data, text(awaitLine(t, late, "").Data))
		}
	}
	piece(12, "l") // and where some are lost, those before do not come again
	require.Equal(t, "l", text(awaitLine(t, live, "").Data))
	_, err = q.Cancel(ctx, id, "enough")
	require.NoError(t, err)
	require.Empty(t, <-live)
}

// A server of a cluster that lags may show the last pieces of a task later than its end.
func TestLogsLag(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("true")})
	seq, err := q.replace(ctx, id, &stateRecord{State: Done, Attempt: 1, Run: &runRecord{Stdout: []byte("late")}}, 0)
	require.NoError(t, err)
	for range lines(t, q, id, 0) {
		t.Fatal("there is none yet")
	}
	q.tasks.CachedInfo().Config.Replicas = 3
	begin := time.Now()
	live := lines(t, q, id, 0)
	for n, data := range []string{"late", ""} {
		time.Sleep(100 * time.Millisecond)
		b, err := encode(&logRecord{Version: version, Attempt: 1, Data: []byte(data), Claim: seq, Number: uint64(n) + 1})
		require.NoError(t, err)
		_, err = q.publish(ctx, q.subject("log", id), b)
		require.NoError(t, err)
	}
	require.Equal(t, "late", text((<-live).Data))
	require.Empty(t, <-live)
	require.Less(t, time.Since(begin), maxLag/2, "it ends with the last piece")
}

// A stream that is gone is told from servers that do not answer.
func TestStreamGone(t *testing.T) {
	t.Parallel() // it mostly waits
	q := open(t)
	ctx := testkit.Deadline(t)
	require.NoError(t, q.js.DeleteStream(ctx, "sandbox-states"))
	_, err := q.Status(ctx, submit(t, q, Task{Command: shell("true")}))
	require.ErrorIs(t, err, errMissing)
	require.ErrorContains(t, err, "sandbox-states")
}

// Who may not make streams opens a queue whose server was started anew all the same, and works, and
// has logs when somebody has made them.
func TestServerAnewRights(t *testing.T) {
	t.Parallel() // it mostly waits
	may := &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.CREATE.>"}}}
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30,
		Users: []*server.User{{Username: "owner", Password: "x"}, {Username: "worker", Password: "x", Permissions: may}}}
	s := startServer(t, o)
	o.Port = s.Addr().(*net.TCPAddr).Port
	as := func(user string) *Queue {
		q, err := Open(testkit.Deadline(t), strings.Replace(s.ClientURL(), "//", "//"+user+":x@", 1))
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	as("owner").Close()
	s.Shutdown()
	s.WaitForShutdown()
	s = startServer(t, o)
	q := as("worker")
	require.ErrorIs(t, retry(testkit.Deadline(t), q.findStreams), errMissing)
	stop := work(t, q)
	id := submit(t, q, Task{Command: shell("echo fine")})
	require.Equal(t, "fine", text(mustWait(t, q, id).Stdout))
	live := lines(t, q, id, 0)
	as("owner")
	require.Empty(t, <-live, "its log is lost")
	logged := func(s string) {
		require.Equal(t, s, text(awaitLine(t, lines(t, q, submit(t, q, Task{Command: shell("echo " + s)}), 0), "").Data))
	}
	logged("opened")

	s.Shutdown()
	s.WaitForShutdown()
	startServer(t, o)
	testkit.Eventually(t, "the owner, which is connected, has made them", func() bool {
		_, err := q.js.Stream(testkit.Deadline(t), "KV_sandbox-services")
		return err == nil
	})
	logged("connected")
	stop()
}
