//go:build linux

package queue

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// A cluster of three goes on with two when the disk of one is full, though that one may go on
// answering who reads. It leads nothing here: else it takes up to 10 s until another one does.
func TestDiskOfCluster(t *testing.T) {
	t.Parallel() // it waits mostly
	ctx := testkit.Deadline(t)
	again := func(what string, do func(context.Context) error) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			// What is lost with a leader is not waited for long.
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return do(short) == nil
		})
	}
	c := newCluster(t, false)
	for i := range 3 {
		c.dirs[i] = smallDisk(t, "64m")
		c.start(i)
	}
	var q *Queue
	again("the cluster has leaders", func(ctx context.Context) (err error) {
		q, err = Open(ctx, c.url(0, 1, 2), Replicas(3))
		return err
	})
	defer q.Close()
	work(t, q)
	task := func(key string) Task {
		return Task{Key: key, Command: shell("head -c 1 a"), Inputs: dirOf(t, "a", strings.Repeat(key, 4<<20))}
	}
	before := submit(t, q, task("1"))
	require.Equal(t, "1", text(mustWait(t, q, before).Stdout))

	// What a server that answers does not have yet is waited for.
	late := make([]byte, 10_000)
	sum := sha256.Sum256(late)
	stored := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() {
		_, _, err := q.putBytes(ctx, q.nowOnce(ctx), late)
		stored <- err
	})
	got, err := io.ReadAll(q.openBlob(ctx, "", sum[:], int64(len(late))))
	require.NoError(t, err)
	require.Equal(t, late, got)
	require.NoError(t, <-stored)

	again("the first server leads nothing", func(ctx context.Context) error {
		for _, s := range []jetstream.Stream{q.tasks, q.states, q.blobs} {
			info, err := s.Info(ctx)
			if err != nil {
				return err
			}
			if err := stepDown(ctx, q, info.Cluster, "STREAM", info.Config.Name); err != nil {
				return err
			}
		}
		consumer, err := q.tasks.Consumer(ctx, "default-normal")
		if err != nil {
			return err
		}
		return stepDown(ctx, q, consumer.CachedInfo().Cluster, "CONSUMER", "sandbox-tasks.default-normal")
	})
	fillDisk(t, filepath.Join(c.dirs[0], "filler"), 0)
	var id string
	again("it is stored", func(ctx context.Context) (err error) {
		id, err = q.Submit(ctx, task("2"))
		return err
	})
	again("the first server has not stored it", func(ctx context.Context) error {
		info, err := q.blobs.Info(ctx)
		if err == nil && !slices.ContainsFunc(info.Cluster.Replicas, func(r *jetstream.PeerInfo) bool { return r.Name == "s0" && r.Lag > 0 }) {
			err = errors.New("it is not behind")
		}
		return err
	})
	res := mustWait(t, q, id)
	require.Equal(t, "2", text(res.Stdout))
	require.Equal(t, 1, res.Attempt)
	require.Equal(t, "1", text(mustWait(t, q, before).Stdout))
}

// stepDown returns an error, and has others choose a leader, unless one that is not s0 leads.
func stepDown(ctx context.Context, q *Queue, c *jetstream.ClusterInfo, kind, name string) error {
	if c.Leader != "" && c.Leader != "s0" {
		return nil
	}
	_, err := q.nc.RequestWithContext(ctx, "$JS.API."+kind+".LEADER.STEPDOWN."+name, nil)
	return errors.Join(err, fmt.Errorf("%s has no other leader yet", name))
}

// What is stored when another server begins to lead may not be announced. A worker looks at all
// lanes then.
func TestLookAtLanes(t *testing.T) {
	t.Parallel() // it waits mostly
	ctx := testkit.Deadline(t)
	q, err := Open(ctx, startCluster(t, false).url(0, 1, 2), Replicas(3))
	require.NoError(t, err)
	defer q.Close()
	tasks := pool.New(sandbox.New(), 1)
	defer func() { require.NoError(t, tasks.Close(context.Background())) }()
	var group sync.WaitGroup
	defer group.Wait()
	looking, stop := context.WithCancel(ctx)
	defer stop()
	p := newPuller(NewWorker(q, tasks), &group)
	noted := func(what string, priority Priority) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.notes[note{"default", route(priority, laneOf("", "a"))}]
		})
	}
	submit(t, q, Task{Command: shell("true"), Priority: Low, Tenant: "a"})
	group.Go(func() { p.look(looking) })
	noted("it has looked, at higher priorities before", Low)
	submit(t, q, Task{Command: shell("true"), Priority: High, Tenant: "a"}) // nobody tells p
	begun := time.Now()
	var leader string
	testkit.Eventually(t, "one leads", func() bool {
		leader = q.leader(ctx)
		return leader != ""
	})
	testkit.Eventually(t, "another one leads", func() bool {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		// Nobody may answer while a leader is chosen.
		_, _ = q.nc.RequestWithContext(short, "$JS.API.STREAM.LEADER.STEPDOWN.sandbox-tasks", nil)
		time.Sleep(100 * time.Millisecond)
		now := q.leader(ctx)
		return now != "" && now != leader
	})
	noted("it has looked again", High)
	require.Less(t, time.Since(begun), laneScan/2)
}
