//go:build linux

package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// samples returns what a scrape has: values by name and labels, such as tasks{gpu}.
func samples(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(m))
	families, err := r.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, s := range f.Metric {
			var labels []string
			for _, l := range s.Label {
				labels = append(labels, l.GetValue())
			}
			v := s.GetGauge().GetValue() + s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
			all[strings.TrimPrefix(f.GetName(), "sandbox_queue_")+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	ctx := testkit.Deadline(t)
	q, err := queue.Open(ctx, "", queue.Dir(t.TempDir()))
	require.NoError(t, err)
	m := New(q)
	p := pool.New(sandbox.New(), 2)
	work, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- queue.NewWorker(q, p, queue.Slots(2), queue.Observe(m)).Run(work) }()
	end := func() {
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, p.Close(context.Background()))
		q.Close()
	}
	ids, err := q.SubmitAll(ctx, []queue.Task{{Command: []string{"true"}}, {Command: []string{"false"}}, {Command: []string{"/no/such"}, Retry: queue.Retry{Attempts: 1}},
		{Command: []string{"true"}, Class: "gpu"}, {Command: []string{"true"}, Class: "gpu", Priority: queue.High}})
	require.NoError(t, err)
	_, errs := q.WaitAll(ctx, ids[:3])
	require.ErrorIs(t, errors.Join(errs...), queue.ErrDead)
	var got map[string]float64
	// A worker is announced, an attempt observed and a message removed a moment after its end.
	testkit.Eventually(t, "all ends are counted", func() bool {
		got = samples(t, m)
		return got["attempt_seconds{default}"] == 3 && got["workers{default}"] == 1 && got["tasks{default}"] == 0 && got["running{default}"] == 0
	})
	for name, want := range map[string]float64{"up{}": 1, "tasks{gpu}": 2, "running{gpu}": 0, "workers{gpu}": 0, "slots{default}": 2, "dead_letters{default}": 1,
		"attempts_total{default,done}": 1, "attempts_total{default,failed}": 1, "attempts_total{default,dead}": 1, "wait_seconds{default}": 3} {
		v, ok := got[name]
		require.True(t, ok, name)
		require.InDelta(t, want, v, 0, name)
	}
	require.Positive(t, got["oldest_seconds{gpu}"])

	var v struct {
		Queue    queue.Stats
		Attempts map[string]map[string]int
	}
	require.NoError(t, json.Unmarshal([]byte(m.String()), &v))
	require.Equal(t, 2, v.Queue.Classes["gpu"].Tasks)
	require.Equal(t, map[string]int{"done": 1, "failed": 1, "dead": 1}, v.Attempts["default"])

	end()
	got = samples(t, m)
	require.Zero(t, got["up{}"], "the queue is closed")
	require.NotContains(t, got, "tasks{gpu}")
	require.Contains(t, m.String(), `"error"`)
}
