package queue

import (
	"context"
	"errors"
	"iter"
	"os"
	"runtime"
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
}

type workerRecord struct {
	Version int      `cbor:"0,keyasint"`
	Host    string   `cbor:"1,keyasint"`
	PID     int      `cbor:"2,keyasint"`
	Classes []string `cbor:"3,keyasint"`
	Slots   int      `cbor:"4,keyasint"`
	Running int      `cbor:"5,keyasint"`
	System  string   `cbor:"6,keyasint"`
}

// Workers yields the workers that were heard of in the last 30 s.
func (q *Queue) Workers(ctx context.Context) iter.Seq2[WorkerStatus, error] {
	return func(yield func(WorkerStatus, error) bool) {
		for m, err := range q.records(ctx, q.workers, q.config.name+".worker.*") {
			if err != nil {
				yield(WorkerStatus{}, err)
				return
			}
			name := strings.TrimPrefix(m.Subject, q.config.name+".worker.")
			r, err := decode[workerRecord](m.Data)
			if err != nil || !namePattern(name) {
				continue // written by another version, or by no worker
			}
			s := WorkerStatus{Name: name, Host: r.Host, PID: r.PID, Classes: r.Classes, Slots: r.Slots, Running: r.Running,
				System: r.System, At: m.Time}
			if !yield(s, nil) {
				return
			}
		}
	}
}

// announce says now and then that the worker lives, until ctx ends.
func (w *Worker) announce(ctx context.Context) {
	host, _ := os.Hostname() // "" is as good
	for {
		w.mu.Lock()
		running := w.running
		w.mu.Unlock()
		data, err := encode(&workerRecord{Version: version, Host: host, PID: os.Getpid(), Classes: w.classes, Slots: w.slots, Running: running, System: runtime.GOOS + "/" + runtime.GOARCH})
		if err == nil {
			err = w.q.nc.Publish(w.q.config.name+".worker."+w.name, data)
		}
		if err != nil {
			w.log.Warn("worker could not be announced", "error", err)
		}
		pause(ctx, workerAge/3)
		if ctx.Err() != nil {
			return
		}
	}
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
