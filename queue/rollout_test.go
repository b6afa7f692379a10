//go:build linux

package queue

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// replicaCounts are how many replicas run, and how many of these are healthy, as it is announced.
type replicaCounts struct {
	q       *Queue
	news    chan *nats.Msg // in the order of the servers
	running map[string]bool
	healthy map[string]bool // by the key of their health
}

func countReplicas(t testing.TB, q *Queue) *replicaCounts {
	t.Helper()
	c := &replicaCounts{q: q, news: make(chan *nats.Msg, 1000), running: map[string]bool{}, healthy: map[string]bool{}}
	for _, subject := range []string{q.subject("now", ">"), "$KV.sandbox-services.>"} {
		sub, err := q.nc.ChanSubscribe(subject, c.news)
		require.NoError(t, err)
		t.Cleanup(func() { _ = sub.Unsubscribe() }) // fails if the connection is closed
	}
	return c
}

// next takes one announcement in.
func (c *replicaCounts) next(t testing.TB, service string) {
	t.Helper()
	m := <-c.news
	if key, ok := strings.CutPrefix(m.Subject, "$KV.sandbox-services."); ok {
		h, err := decode[healthRecord](m.Data)
		require.NoError(t, err)
		c.healthy[key] = h.Healthy
		return
	}
	id, r, err := c.q.announced(m)
	require.NoError(t, err)
	if c.running[id] = r.State == Running; !c.running[id] {
		delete(c.healthy, healthKey(service, id))
	}
}

func count(of map[string]bool) (n int) {
	for _, is := range of {
		if is {
			n++
		}
	}
	return n
}

// While replicas are replaced, there are never fewer healthy ones than the service has, and never
// more than a batch besides.
func TestServiceReplaced(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	workIn(t, q, 12, TakeServices("127.0.0.1"))
	const replicas, batch = 5, 2
	counts := countReplicas(t, q)
	s := Service{Name: "s", Task: Task{Command: shell("sleep 1000")}, Replicas: replicas, Batch: batch}
	require.NoError(t, q.Serve(ctx, s))
	for count(counts.healthy) < replicas {
		counts.next(t, "s")
	}
	s.Task.Env = []string{"VERSION=2"}
	require.NoError(t, q.Serve(ctx, s))
	least, most := replicas, 0
	for len(counts.news) > 0 {
		counts.next(t, "s")
		least, most = min(least, count(counts.healthy)), max(most, count(counts.running))
	}
	require.Equal(t, replicas, least, "healthy")
	require.Equal(t, replicas+batch, most, "running")
	require.Equal(t, replicas, count(counts.running))
	for _, r := range statusOfService(t, q, "s").Replicas {
		require.True(t, counts.running[r.ID], "the new ones")
	}
	require.NoError(t, q.StopService(ctx, "s"))
}
