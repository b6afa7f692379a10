package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A server whose disk is full answers no request that writes, also when there is space again, until
// it is started anew. So a server in this process takes no tasks and contents while there is too
// little space, which leaves that to the ends of tasks; and it is started anew if the disk was full
// nevertheless.
const (
	minFree  = 32 << 20
	fullDisk = 1 << 20 // with less, a write may have failed
)

// A server's process says several times a second how much its disk has left while that is too
// little. What was said counts for diskNews.
const (
	diskEvery = time.Second / 4
	diskNews  = 2 * time.Second
)

// diskSaid is what the process of a server has said of its disk.
type diskSaid struct {
	free int64
	at   time.Time
}

// hearDisk has this process know what that of a server says of its disk.
func (q *Queue) hearDisk() error {
	_, err := q.nc.Subscribe(q.config.name+".disk", func(m *nats.Msg) {
		if free, err := strconv.ParseInt(string(m.Data), 10, 64); err == nil {
			q.said.Store(&diskSaid{free, time.Now()})
		}
	})
	return err
}

// space returns an ErrFull if the disk of the queue's server has too little space, and is looked
// at, by this process or another one.
func (q *Queue) space() error {
	if q.embedded == nil {
		if d := q.said.Load(); d != nil && d.free < minFree && time.Since(d.at) < diskNews {
			return fmt.Errorf("%w: the disk of its server has %d MiB left, less than %d: free some there", ErrFull, d.free>>20, minFree>>20)
		}
		return nil
	}
	free, err := freeSpace(q.config.dir)
	if err == nil && free < minFree {
		return fmt.Errorf("%w: the disk of %s has %d MiB left, less than %d: free some, or set queue.Dir", ErrFull, q.config.dir, free>>20, minFree>>20)
	}
	return err
}

// watchDisk starts the server in this process anew when its disk was full and is not any more,
// until the queue is closed.
func (q *Queue) watchDisk() {
	for full, low := false, false; ; {
		free, err := freeSpace(q.config.dir)
		switch {
		case err != nil:
			q.config.log.Warn("the disk can't be looked at", "dir", q.config.dir, "error", err)
		case free < fullDisk && !full:
			full = true
			q.config.log.Warn("the disk is full: nothing can be submitted or ended", "dir", q.config.dir)
		case free >= minFree && full:
			if err := q.embedded.restart(); err != nil {
				q.config.log.Warn("the server could not be started after its disk was full", "error", err)
				break
			}
			full = false
			q.config.log.Warn("the disk has space again", "dir", q.config.dir)
		}
		if err == nil && (low || free < minFree) {
			low = free < minFree
			_ = q.nc.Publish(q.config.name+".disk", strconv.AppendInt(nil, free, 10)) // soon again
		}
		select {
		case <-q.ctx.Done():
			return
		case <-time.After(diskEvery):
		}
	}
}

// publishNew is publish of what is refused while a disk is full, also when that is seen while no
// server answers.
func (q *Queue) publishNew(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) error {
	if err := q.space(); err != nil {
		return err
	}
	return q.retry(ctx, func(ctx context.Context) error {
		_, err := q.publishOnce(ctx, subject, data, opts...)
		if unanswered(err) {
			if low := q.space(); errors.Is(low, ErrFull) {
				return low
			}
		}
		return err
	})
}
