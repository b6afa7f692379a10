//go:build linux

package queue

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// replicas returns on how many servers the streams of a queue are, by name.
func replicas(t testing.TB, js jetstream.JetStream, name string) map[string]int {
	t.Helper()
	of := map[string]int{}
	list := js.ListStreams(testkit.Deadline(t))
	for s := range list.Info() {
		if strings.HasPrefix(strings.TrimPrefix(s.Config.Name, "KV_"), name+"-") {
			of[s.Config.Name] = s.Config.Replicas
		}
	}
	require.NoError(t, list.Err())
	return of
}

// requireReplicas requires that all streams of a queue are on n servers.
func requireReplicas(t testing.TB, q *Queue, n int) {
	t.Helper()
	var of map[string]int
	testkit.Eventually(t, "all streams are listed, of which a busy cluster leaves some out", func() bool {
		of = replicas(t, q.js, q.config.name)
		return len(of) == 8
	})
	for stream, has := range of {
		require.Equal(t, n, has, stream)
	}
}

// Records are on three servers of a cluster unless something else is said, and one that lacks a
// server is not mistaken for a single one.
func TestReplicas(t *testing.T) {
	ctx := longDeadline(t)
	c := newCluster(t, false)
	c.start(0)
	c.start(1)
	nc, err := nats.Connect(c.url(0), nats.RetryOnFailedConnect(true), nats.ReconnectWait(50*time.Millisecond))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	testkit.Eventually(t, "two servers are a cluster", func() bool {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := js.CreateStream(try, jetstream.StreamConfig{Name: "probe"})
		return err == nil
	})
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = Open(short, c.url(0, 1))
	require.ErrorContains(t, err, "no suitable peers")
	require.ErrorContains(t, err, "queue.Replicas")
	require.Empty(t, replicas(t, js, "sandbox"))

	c.start(2)
	openAs := func(opts ...Option) *Queue {
		q, err := Open(ctx, c.url(0, 1), opts...)
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	requireReplicas(t, openAs(), 3)
	requireReplicas(t, openAs(Name("one"), Replicas(1)), 1)
	one := openAs(Name("one")) // it keeps what it has
	requireReplicas(t, one, 1)

	// What is made anew is where tasks are by then.
	setReplicas(t, ctx, one, 3)
	require.NoError(t, js.DeleteStream(ctx, "one-logs"))
	require.NoError(t, js.DeleteStream(ctx, "KV_one-services"))
	one.mendSoon()
	testkit.Eventually(t, "they are made", func() bool {
		of := replicas(t, js, "one")
		return of["one-logs"] == 3 && of["KV_one-services"] == 3
	})
}

// setReplicas changes on how many servers tasks are, as `nats stream edit` does.
func setReplicas(t testing.TB, ctx context.Context, q *Queue, n int) {
	t.Helper()
	s, err := q.js.Stream(ctx, nameOf(q.tasks))
	require.NoError(t, err)
	c := s.CachedInfo().Config
	c.Replicas = n
	_, err = q.js.UpdateStream(ctx, c)
	require.NoError(t, err)
}

// A lease is renewed by one server of a cluster that hands out tasks alone, though it was three of
// them when the queue was opened.
func askEdited(t *testing.T, ctx context.Context, c *cluster, length time.Duration) {
	q, err := Open(ctx, c.url(0, 1, 2), Name("edited"), Replicas(1))
	require.NoError(t, err)
	defer q.Close()
	_, err = q.consumer(ctx, "default", "normal")
	require.NoError(t, err)
	q.tasks.CachedInfo().Config.Replicas = 3 // as it is known
	inbox := q.nc.NewRespInbox()
	sub, err := q.nc.Subscribe(inbox, func(m *nats.Msg) { _ = m.Respond(nil) }) // who asks waits
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Unsubscribe()) }()
	l := &lease{w: &Worker{q: q}, id: "default.normal.x", m: &nats.Msg{Reply: inbox}, length: length, ctx: ctx}
	asked := clockNow()
	require.GreaterOrEqual(t, l.renew(asked, length/5), asked)
}

// A lease that another server has confirmed than the one that answers for it now, with a majority,
// counts from when this one has confirmed it too.
func askOtherLeader(t *testing.T, ctx context.Context, q *Queue, length time.Duration) {
	_, err := q.consumer(ctx, "default", "normal")
	require.NoError(t, err)
	var last time.Duration
	asked := 0
	inbox := q.nc.NewRespInbox()
	sub, err := q.nc.Subscribe(inbox, func(m *nats.Msg) {
		last = clockNow()
		asked++
		_ = m.Respond(nil) // who asks waits
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Unsubscribe()) }()
	l := &lease{w: &Worker{q: q}, id: "default.normal.x", m: &nats.Msg{Reply: inbox}, length: length, ctx: ctx}
	since := l.renew(clockNow(), length)
	require.Equal(t, 2, asked, "the first leader was not known")
	require.InDelta(t, last, since, float64(100*time.Millisecond))
	since = l.renew(clockNow(), length)
	require.Equal(t, 3, asked, "it is the same")
	require.Positive(t, since)
	l.leader = "another"
	before := clockNow()
	since = l.renew(before-length, length)
	require.Equal(t, 5, asked)
	require.GreaterOrEqual(t, since, before)
}

// A server that is no cluster has each record once.
func TestReplicasSingle(t *testing.T) {
	s := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40})
	require.ErrorContains(t, refused(t, s.ClientURL(), Replicas(3)), "non-clustered")
	q, err := Open(testkit.Deadline(t), s.ClientURL())
	require.NoError(t, err)
	defer q.Close()
	requireReplicas(t, q, 1)
	requireReplicas(t, open(t), 1)
}
