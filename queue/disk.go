package queue

import (
	"fmt"
	"time"
)

// A server whose disk is full answers no request that writes, also when there is space again, until
// it is started anew. So a server in this process takes no tasks and contents while there is too
// little space, which leaves that to the ends of tasks; and it is started anew if the disk was full
// nevertheless.
const (
	minFree  = 32 << 20
	fullDisk = 1 << 20 // with less, a write may have failed
)

// space returns an ErrFull if the disk of a server in this process has too little space.
func (q *Queue) space() error {
	if q.embedded == nil {
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
	for full := false; ; {
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
		select {
		case <-q.ctx.Done():
			return
		case <-time.After(time.Second / 4):
		}
	}
}
