package queue

import (
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cellkit/sandbox"
)

// Observer is called for the attempts of a worker, from several goroutines at once. The time that
// it takes keeps a slot of the worker.
type Observer interface {
	// AttemptEnded is called when an attempt has ended, whatever its end.
	AttemptEnded(Record)
}

// Record is what became of an attempt.
type Record struct {
	ID      string
	Class   string
	Attempt int // 1 for the first
	// From when the task was submitted, by the submitter's clock, to when the attempt began.
	Waited time.Duration
	Took   time.Duration // from then to its end: also the transfer of files
	// State is what the task is in now: Waiting if it is tried again, Done, Dead, Canceled, or
	// Running if the worker lost it, so that another one may have it.
	State  State
	Result *sandbox.Result // nil if the command did not start, or its end is not known
	Text   string          // why the task waits again, or was given up
	Err    error           // why the worker lost it
}

// Observe calls o.AttemptEnded for every attempt of the worker. Package metrics has one for
// Prometheus and expvar. Default: none.
func Observe(o Observer) WorkerOption { return func(w *Worker) { w.observer = o } }

// observed passes an attempt that is over to the observer.
func (a *attempt) observed(began time.Time, err error) {
	if a.w.observer == nil || a.seq == 0 { // it was not claimed
		return
	}
	class, _, _ := strings.Cut(a.id, ".")
	r := Record{ID: a.id, Class: class, Attempt: a.now.Attempt, Waited: max(began.Sub(time.Unix(0, a.task.Submitted)), 0), Took: time.Since(began), State: a.now.State, Text: a.now.Text, Err: err}
	if a.now.Run != nil {
		if res, err := a.now.Run.result(); err == nil {
			r.Result = &res
		}
	}
	a.w.observer.AttemptEnded(r)
}

// Transfer is how far the content of a file of more than 256 KiB is, which this process sends to
// the queue, as an input or output, or reads from it.
type Transfer struct {
	Name       string // of the file, as in Inputs or Outputs
	Sent       bool   // to the queue
	Done, Size int64  // bytes
}

// Progress calls f after each 256 KiB of such a file, and once for one that the queue has already.
// It is called from several goroutines, and what it takes delays the file. Default: none.
func Progress(f func(Transfer)) Option { return func(c *config) { c.progress = f } }

func (q *Queue) progress(t Transfer) {
	if q.config.progress != nil && t.Name != "" && t.Size > chunkSize {
		q.config.progress(t)
	}
}

// Log logs what this process does with tasks, with their ids: those that it submitted, canceled and
// put back, at level Info; and at level Warn that the connection to the servers was lost and is
// there again, what they refuse, which streams are missing, and that what was submitted can be
// lost, as SyncEvery is set. What a worker does is logged by WorkerLog. Default: none.
func Log(l *slog.Logger) Option { return func(c *config) { c.log = l } }

func (q *Queue) disconnected(_ *nats.Conn, err error) {
	if err != nil { // else Close was called
		q.config.log.Warn("connection lost", "error", err)
	}
}

func (q *Queue) reconnected(c *nats.Conn) {
	q.config.log.Warn("connection is there again", "server", c.ConnectedAddr())
	q.mendSoon()
}

// unreached is told of each server that can't be reached.
func (q *Queue) unreached(_ *nats.Conn, err error) { q.tried.Store(&err) }

func (q *Queue) refused(_ *nats.Conn, _ *nats.Subscription, err error) {
	q.config.log.Warn("the servers refuse something", "error", err)
}
