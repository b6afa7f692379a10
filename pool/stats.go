package pool

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/cellkit/sandbox"
)

// Observer is called for every run of a pool, from several goroutines at once. The time that it
// takes delays the pool.
type Observer interface {
	// RunEnded is called when a run has ended, could not be started, or was given up.
	RunEnded(Record)
}

// Record is what became of a run of a pool.
type Record struct {
	ID      uint64          // 1 for the pool's first run, and so on
	Command []string        // the program and its arguments
	Waited  time.Duration   // how long the run waited for its turn
	Took    time.Duration   // from its turn to its end
	Result  *sandbox.Result // nil if it did not start
	Err     error           // the error of Run
}

// Stats is what a pool has done.
type Stats struct {
	Running int    // runs now
	Waiting int    // runs that wait for their turn now
	Served  uint64 // runs whose command exited with status 0
	// Failed counts the other runs that have ended, by reason: Exited means another status than
	// 0.
	Failed  map[sandbox.Reason]uint64
	Refused uint64 // runs that failed with ErrFull
	// Unstarted counts other runs that did not start, such as those given up while they waited.
	Unstarted uint64

	// Wait is how long the last 1,024 runs that started waited for their turn, and Run how long
	// they took from then to their end.
	Wait, Run Latency
}

// Latency has the quantiles of a duration. It is zero if nothing was measured.
type Latency struct{ P50, P90, P99, Max time.Duration }

// report passes a run that is over to the observer and the logger.
func (p *Pool) report(r Record) {
	if p.conf.observer != nil {
		p.conf.observer.RunEnded(r)
	}
	if p.conf.logger == nil {
		return
	}
	attrs := []slog.Attr{slog.Uint64("id", r.ID), slog.Duration("waited", r.Waited), slog.Duration("took", r.Took)}
	if len(r.Command) > 0 {
		attrs = append(attrs, slog.String("command", r.Command[0]))
	}
	level, text := slog.LevelInfo, "run ended"
	if r.Result != nil {
		u := r.Result.Usage
		attrs = append(attrs, slog.String("reason", r.Result.Reason.String()), slog.Int("status", r.Result.ExitCode),
			slog.Duration("cpu", u.UserCPU+u.SystemCPU), slog.Uint64("memory", u.MemoryPeak))
	} else {
		level, text = slog.LevelWarn, "run did not start"
	}
	if r.Err != nil {
		attrs = append(attrs, slog.String("error", r.Err.Error()))
	}
	p.conf.logger.LogAttrs(context.Background(), level, text, attrs...)
}

// window has the last durations.
type window struct {
	last [1024]time.Duration
	n    int // ever
}

func (w *window) add(d time.Duration) {
	w.last[w.n%len(w.last)] = d
	w.n++
}

func (w *window) latency() Latency {
	n := min(w.n, len(w.last))
	if n == 0 {
		return Latency{}
	}
	sorted := slices.Sorted(slices.Values(w.last[:n]))
	at := func(percent int) time.Duration { return sorted[(n*percent+99)/100-1] }
	return Latency{at(50), at(90), at(99), sorted[n-1]}
}
