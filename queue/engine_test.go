//go:build linux

package queue

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// BenchmarkEngine measures what the queue takes of a task whose run takes nothing: one at a time,
// and many that are submitted and waited for together, with a worker in this process.
//
//	go test -run '^$' -bench Engine -benchtime 2000x ./queue
func BenchmarkEngine(b *testing.B) {
	b.Run("embedded", func(b *testing.B) {
		benchmarkEngine(b, "", Dir(b.TempDir()), SyncEvery(time.Second))
	})
	b.Run("embedded, synced always", func(b *testing.B) {
		benchmarkEngine(b, "", Dir(b.TempDir()))
	})
	b.Run("three servers", func(b *testing.B) {
		benchmarkEngine(b, startCluster(b, false).url(0, 1, 2), Replicas(3))
	})
}

func benchmarkEngine(b *testing.B, url string, opts ...Option) {
	q, err := Open(testkit.Deadline(b), url, opts...)
	require.NoError(b, err)
	defer q.Close()
	p := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(b, p.Close(context.Background())) }()
	w := NewWorker(q, p, Slots(64))
	w.execute = func(context.Context, ...sandbox.Option) (*sandbox.Result, error) {
		return &sandbox.Result{Reason: sandbox.Exited}, nil
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(b, <-ended)
	}()
	task := Task{Command: []string{"true"}}
	b.Run("one at a time", func(b *testing.B) {
		for range min(b.N, 500) {
			mustWait(b, q, submit(b, q, task))
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(min(b.N, 500)), "us/task")
	})
	b.Run("in a batch", func(b *testing.B) {
		tasks := make([]Task, b.N)
		for i := range tasks {
			tasks[i] = task
		}
		ids, err := q.SubmitAll(ctx, tasks)
		require.NoError(b, err)
		submitted := b.Elapsed()
		_, errs := q.WaitAll(ctx, ids)
		for _, err := range errs {
			require.NoError(b, err)
		}
		b.ReportMetric(float64(b.N)/submitted.Seconds(), "submitted/s")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	})
}
