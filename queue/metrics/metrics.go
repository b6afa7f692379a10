// Package metrics shows what a queue has, and what the workers of this process do, to Prometheus
// and to expvar:
//
//	m := metrics.New(q)
//	prometheus.MustRegister(m)
//	expvar.Publish("queue", m)
//	err := queue.NewWorker(q, pool, queue.Observe(m)).Run(ctx)
//
// What a queue has is the same in every process that asks: one of them is enough. What workers do
// is counted in each worker's process. It is a package of its own, so that package queue does not
// import Prometheus.
package metrics

import (
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cellkit/sandbox/queue"
)

// Metrics is a prometheus.Collector, an expvar.Var and a queue.Observer. It is safe for concurrent
// use.
//
// Of the queue, asked for in each collection, within 5 s:
//
//	sandbox_queue_up                      1, or 0 if the servers did not answer: then alone
//	sandbox_queue_tasks{class}            that have not ended: they wait or run
//	sandbox_queue_running{class}          of these, those that workers said that they run
//	sandbox_queue_oldest_seconds{class}   the age of the oldest of sandbox_queue_tasks
//	sandbox_queue_dead_letters{class}
//	sandbox_queue_workers{class}, sandbox_queue_slots{class}
//	sandbox_queue_content_bytes           that inputs and outputs take
//
// Of the workers of this process that have it as their observer:
//
//	sandbox_queue_attempts_total{class,outcome}  that have ended
//	sandbox_queue_wait_seconds{class}            from a task's submission to its attempt's begin
//	sandbox_queue_attempt_seconds{class}         from then to its end, with transfers of files
//
// An outcome is done, failed (done, with a status other than 0), again, dead, canceled, expired or
// lost.
type Metrics struct {
	q        *queue.Queue
	attempts *prometheus.CounterVec
	waited   *prometheus.HistogramVec
	took     *prometheus.HistogramVec

	mu    sync.Mutex
	ended map[string]map[string]int // by class and outcome, for expvar
	spent map[string]time.Duration  // by class
}

var (
	up      = prometheus.NewDesc("sandbox_queue_up", "Whether the servers of the queue answer.", nil, nil)
	content = prometheus.NewDesc("sandbox_queue_content_bytes", "Bytes that contents of inputs and outputs take.", nil, nil)
	classed = []struct {
		desc *prometheus.Desc
		of   func(queue.ClassStats) float64
	}{
		{byClass("tasks", "Tasks that have not ended."), func(c queue.ClassStats) float64 { return float64(c.Tasks) }},
		{byClass("running", "Tasks that workers run."), func(c queue.ClassStats) float64 { return float64(c.Running) }},
		{byClass("oldest_seconds", "Age of the oldest task that has not ended."), func(c queue.ClassStats) float64 { return c.Oldest.Seconds() }},
		{byClass("dead_letters", "Tasks that were given up and are kept."), func(c queue.ClassStats) float64 { return float64(c.Dead) }},
		{byClass("workers", "Workers that live."), func(c queue.ClassStats) float64 { return float64(c.Workers) }},
		{byClass("slots", "How many tasks the workers run at a time."), func(c queue.ClassStats) float64 { return float64(c.Slots) }},
	}
)

func byClass(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("sandbox_queue_"+name, help, []string{"class"}, nil)
}

// New returns the metrics of a queue, which must be open as long as they are asked for.
func New(q *queue.Queue) *Metrics {
	histogram := func(name, help string) *prometheus.HistogramVec {
		// 1 ms to 4.6 h.
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 13)}, []string{"class"})
	}
	return &Metrics{q: q,
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sandbox_queue_attempts_total", Help: "Attempts of this process's workers that have ended."}, []string{"class", "outcome"}),
		waited:   histogram("sandbox_queue_wait_seconds", "From when a task was submitted until its attempt began."),
		took:     histogram("sandbox_queue_attempt_seconds", "From when an attempt began until it ended."),
		ended:    map[string]map[string]int{}, spent: map[string]time.Duration{}}
}

// AttemptEnded implements queue.Observer.
func (m *Metrics) AttemptEnded(r queue.Record) {
	outcome := outcomeOf(r)
	m.attempts.WithLabelValues(r.Class, outcome).Inc()
	m.waited.WithLabelValues(r.Class).Observe(r.Waited.Seconds())
	m.took.WithLabelValues(r.Class).Observe(r.Took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended[r.Class] == nil {
		m.ended[r.Class] = map[string]int{}
	}
	m.ended[r.Class][outcome]++
	m.spent[r.Class] += r.Took
}

func outcomeOf(r queue.Record) string {
	switch {
	case r.State == queue.Running:
		return "lost"
	case r.State == queue.Waiting:
		return "again"
	case r.State == queue.Done && r.Result != nil && r.Result.ExitCode != 0:
		return "failed"
	}
	return r.State.String()
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- up
	ch <- content
	for _, c := range classed {
		ch <- c.desc
	}
	m.attempts.Describe(ch)
	m.waited.Describe(ch)
	m.took.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if s, err := m.stats(); err != nil {
		gauge(up, 0)
	} else {
		gauge(up, 1)
		gauge(content, float64(s.Bytes))
		for class, stats := range s.Classes {
			for _, c := range classed {
				gauge(c.desc, c.of(stats), class)
			}
		}
	}
	m.attempts.Collect(ch)
	m.waited.Collect(ch)
	m.took.Collect(ch)
}

func (m *Metrics) stats() (queue.Stats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return m.q.Stats(ctx)
}

// String implements expvar.Var. It returns JSON: the queue's Stats, or an error; the attempts of
// this process's workers by class and outcome; and how long they took together, by class, in
// seconds.
func (m *Metrics) String() string {
	var v struct {
		Queue    *queue.Stats              `json:"queue,omitempty"`
		Error    string                    `json:"error,omitempty"`
		Attempts map[string]map[string]int `json:"attempts"`
		Seconds  map[string]float64        `json:"seconds"`
	}
	if s, err := m.stats(); err != nil {
		v.Error = err.Error()
	} else {
		v.Queue = &s
	}
	v.Attempts, v.Seconds = map[string]map[string]int{}, map[string]float64{}
	m.mu.Lock()
	for class, outcomes := range m.ended {
		v.Attempts[class] = maps.Clone(outcomes)
		v.Seconds[class] = m.spent[class].Seconds()
	}
	m.mu.Unlock()
	b, err := json.Marshal(v)
	if err != nil {
		panic("metrics: " + err.Error()) // maps of numbers and names
	}
	return string(b)
}
