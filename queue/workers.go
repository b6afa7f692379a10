package queue

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// WorkerStatus is what a live worker says of itself.
type WorkerStatus struct {
	Name    string    `json:"name"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Classes []string  `json:"classes"`
	Slots   int       `json:"slots"`
	Running int       `json:"running"`
	System  string    `json:"system"` // such as linux/amd64
	At      time.Time `json:"at"`     // when it said so
	// Draining reports whether it takes no more tasks, as it is drained (Worker.Drain).
	Draining bool `json:"draining,omitempty"`
	Offer
	// Tasks are what it runs: those that it has had longest, up to 256.
	Tasks []RunningTask `json:"tasks,omitempty"`
}

// RunningTask is a task that a worker has.
type RunningTask struct {
	ID      string    `json:"id"`
	Attempt int       `json:"attempt"`
	Since   time.Time `json:"since"` // by the worker's clock
}

type workerRecord struct {
	Version int      `cbor:"0,keyasint"`
	Host    string   `cbor:"1,keyasint"`
	PID     int      `cbor:"2,keyasint"`
	Classes []string `cbor:"3,keyasint"`
	Slots   int      `cbor:"4,keyasint"`
	Running int      `cbor:"5,keyasint"`
	System  string   `cbor:"6,keyasint"`
	Offer   Offer    `cbor:"7,keyasint,omitempty"`
	// It takes no more tasks.
	Draining bool `cbor:"8,keyasint,omitempty"`
	// What it runs.
	Tasks []runningRecord `cbor:"20,keyasint,omitempty"`
}

type runningRecord struct {
	ID      string `cbor:"1,keyasint"`
	Attempt int    `cbor:"2,keyasint"`
	Since   int64  `cbor:"3,keyasint"` // ns since 1970
}

// maxAnnounced is how many of its tasks a worker announces.
const maxAnnounced = 256

// Workers yields the workers that were heard of in the last 30 s, in the order of their names.
func (q *Queue) Workers(ctx context.Context) iter.Seq2[WorkerStatus, error] {
	return func(yield func(WorkerStatus, error) bool) {
		all := map[string]WorkerStatus{} // one that says something meanwhile comes twice
		for m, err := range q.recordsFrom(ctx, q.config.name+"-workers", 1, q.config.name+".worker.*") {
			if err != nil {
				yield(WorkerStatus{}, err)
				return
			}
			name := strings.TrimPrefix(m.Subject, q.config.name+".worker.")
			r, err := decode[workerRecord](m.Data)
			// Another one was written by another version, or by no worker.
			if err == nil && namePattern(name) {
				all[name] = r.status(name, m.Time)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !yield(all[name], nil) {
				return
			}
		}
	}
}

func (r *workerRecord) status(name string, at time.Time) WorkerStatus {
	s := WorkerStatus{Name: name, Host: r.Host, PID: r.PID, Classes: r.Classes, Slots: r.Slots, Running: r.Running, System: r.System, At: at, Draining: r.Draining, Offer: r.Offer}
	for _, t := range r.Tasks[:min(len(r.Tasks), maxAnnounced)] {
		if validID(t.ID) {
			s.Tasks = append(s.Tasks, RunningTask{ID: t.ID, Attempt: t.Attempt, Since: time.Unix(0, t.Since)})
		}
	}
	return s
}

// announce says that the worker lives and what it runs, when that changes and now and then, until
// ctx ends.
func (w *Worker) announce(ctx context.Context) {
	host, _ := os.Hostname() // "" is as good
	for {
		running, tasks := w.runs()
		data, err := encode(&workerRecord{Version: version, Host: host, PID: os.Getpid(), Classes: w.classes, Slots: w.slots, Running: running, System: runtime.GOOS + "/" + runtime.GOARCH, Tasks: tasks, Offer: w.offer(), Draining: w.draining.Err() != nil})
		if err == nil {
			err = w.say(ctx, data)
		}
		if err != nil && ctx.Err() == nil {
			w.log.Warn("worker could not be announced", "error", err)
		}
		pause(ctx, announceGap)
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		case <-time.After(workerAge / 3):
		}
	}
}

// say has what the worker says of itself stored.
func (w *Worker) say(ctx context.Context, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, workerAge/3)
	defer cancel()
	_, err := w.q.publish(ctx, w.q.config.name+".worker."+w.name, data)
	return err
}

// announceGap is how long a worker is silent at least, whatever it does.
const announceGap = time.Second

// changedHere has the worker announce what it runs.
func (w *Worker) changedHere() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// runs returns how many tasks the worker has, and those that it has claimed.
func (w *Worker) runs() (int, []runningRecord) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var tasks []runningRecord
	for id, l := range w.live {
		if l.attempt > 0 {
			tasks = append(tasks, runningRecord{ID: id, Attempt: l.attempt, Since: l.since.UnixNano()})
		}
	}
	slices.SortFunc(tasks, func(a, b runningRecord) int { return cmp.Compare(a.Since, b.Since) })
	return w.running, tasks[:min(len(tasks), maxAnnounced)]
}

// collectInTurn collects now and then, as one of the queue's workers.
func (w *Worker) collectInTurn(ctx context.Context) {
	for {
		pause(ctx, collectEvery/6)
		if ctx.Err() != nil {
			return
		}
		if !w.q.takeTurn(ctx) {
			continue
		}
		if err := w.q.Collect(ctx); err != nil && !errors.Is(err, context.Canceled) {
			w.log.Warn("old records could not be collected", "error", err)
		}
	}
}
