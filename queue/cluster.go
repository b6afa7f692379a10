package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// manyReplicas is on how many servers of a cluster records are, if Replicas does not say
	// it.
	manyReplicas = 3
	// placeTime is for how long a cluster may lack servers, as one does that is starting.
	placeTime = 10 * time.Second
)

// What servers answer that can't make a stream on several of them.
const (
	errNoCluster jetstream.ErrorCode = 10074 // they are no cluster
	errNoPeers   jetstream.ErrorCode = 10005 // their cluster has too few of them, or with too little space
	errNoMemory  jetstream.ErrorCode = 10028 // they may take too little memory
)

func answered(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}

// awaitStreams is bindStreams, which is tried again while servers of the cluster are missing.
func (q *Queue) awaitStreams(ctx context.Context) (err error) {
	for begun := time.Now(); ; pause(ctx, 200*time.Millisecond) {
		last := err
		err = retry(ctx, q.bindStreams)
		switch {
		case err == nil:
			return nil
		case !answered(err, errNoPeers):
			return errors.Join(err, last) // such as that ctx ended meanwhile
		case ctx.Err() != nil || time.Since(begun) > placeTime:
			return err
		}
	}
}

// makeStream makes a stream. If it is not said on how many servers, a single one is that alone
// which says that it is: a cluster of which servers are missing says something else.
func (q *Queue) makeStream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	said := c.Replicas > 0
	if !said {
		c.Replicas = manyReplicas
	}
	stream, err := q.js.CreateStream(ctx, c)
	if !said && answered(err, errNoCluster) {
		c.Replicas = 1
		stream, err = q.js.CreateStream(ctx, c)
	}
	return stream, lacking(err, c.Storage, c.Replicas)
}

// lacking adds to the error of who makes a stream what the servers lack for it.
func lacking(err error, storage jetstream.StorageType, replicas int) error {
	limit := fmt.Sprintf("max_file_store must be more than BlobBytes and %d GiB", maxTaskBytes>>30)
	if storage == jetstream.MemoryStorage {
		limit = fmt.Sprintf("max_memory_store must be more than %d MiB", (maxLogBytes+maxHealthBytes)>>20)
	}
	switch {
	case answered(err, errNoPeers):
		return fmt.Errorf("%w: it is to be on %d servers of the cluster, whose %s: queue.Replicas says on how many", err, replicas, limit)
	case answered(err, errNoMemory) || errors.Is(full(err), ErrFull):
		return fmt.Errorf("%w: the servers' %s", err, limit)
	}
	return err
}

// replicas returns on how many servers streams are made: as many as tasks are on, which somebody
// may have changed meanwhile.
func (q *Queue) replicas(ctx context.Context) (int, error) {
	if q.tasks == nil {
		return q.config.replicas, nil
	}
	info, err := q.tasks.Info(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) { // who needs tasks is told so
		info, err = q.tasks.CachedInfo(), nil
	}
	if err != nil {
		return 0, err
	}
	return info.Config.Replicas, nil
}
