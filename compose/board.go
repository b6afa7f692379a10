package compose

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/service"
)

// State is what a service of a project is doing. From Starting on it is that of package service.
type State string

const (
	Pending  State = "pending"  // it waits for others, or is not begun yet
	Fetching State = "fetching" // its image is fetched, and unpacked
	Starting State = "starting" // its run starts, or is not ready yet
	Ready    State = "running"  // it is ready
	Waiting  State = "waiting"  // it has failed, and will be started again
	Stopping State = "stopping" // it is being ended
	Ended    State = "ended"    // it has ended, and well
	Failed   State = "failed"   // it has failed for good
)

// Event is that a service, or a replica of it, is in another state, or, while it is Fetching, how
// far that is.
type Event struct {
	Service string
	// Its number, from 1; 0 if the service has one, and while it is Pending or Fetching.
	Replica  int
	State    State
	Time     time.Time
	Err      error             // why it failed: of Waiting and Failed
	Fetch    image.Progress    // of Fetching, once something is read
	Instance *service.Instance // from Starting on, the replica's
}

// Name returns the service's name, with a replica's number: "web.2".
func (e Event) Name() string { return replicaName(e.Service, e.Replica) }

// Name returns the service's name, with a replica's number: "web.2".
func (s Status) Name() string { return replicaName(s.Service, s.Replica) }

func replicaName(service string, replica int) string {
	if replica == 0 {
		return service
	}
	return service + "." + strconv.Itoa(replica)
}

// Status is what a service, or a replica of it, is doing at the moment.
type Status struct {
	Service string    `json:"service"`
	Replica int       `json:"replica,omitempty"` // its number, from 1; 0 if the service has one
	Image   string    `json:"image"`
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
	Starts  int       `json:"starts"` // how often it was started, by Restart again
	// "starting" or "healthy", if it has a healthcheck.
	Health string   `json:"health,omitempty"`
	Ports  []string `json:"ports,omitempty"` // "127.0.0.1:8080->80/tcp"
	PID    int      `json:"pid,omitempty"`   // of its command, on this machine
	// The most its run has used, in bytes, if it is counted.
	Memory  uint64 `json:"memory,omitempty"`
	Fetched int64  `json:"fetched,omitempty"`  // bytes of a layer of the image
	Total   int64  `json:"fetch_of,omitempty"` // as many as the layer has
	Layer   int    `json:"layer,omitempty"`    // its number, from 1
	Layers  int    `json:"layers,omitempty"`   // of so many
	Error   string `json:"error,omitempty"`    // why it failed last
}

// board has the state of all services.
type board struct {
	project *Project
	mu      sync.Mutex        // of all below
	rows    map[string][]*row // of each service, one for each replica
	checks  map[string]bool   // those that have a healthcheck
	closed  bool
	news    chan struct{} // closed, and replaced, when there is a new instance

	observing sync.Mutex // one call of observers at a time
}

type row struct {
	last   Event
	since  time.Time
	starts int
	failed error
	of     *service.Instance
}

func (b *board) begin(p *Project) {
	b.project, b.rows, b.checks, b.news = p, map[string][]*row{}, map[string]bool{}, make(chan struct{})
	for _, s := range p.services {
		for range s.scale {
			b.rows[s.name] = append(b.rows[s.name], &row{last: Event{Service: s.name, State: Pending}, since: time.Now()})
		}
	}
}

// checked notes that a service has a healthcheck.
func (b *board) checked(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.checks[name] = true
}

// observe takes an event of package service.
func (b *board) observe(e service.Event) {
	b.enter(Event{Service: e.Service, Replica: e.Replica, State: State(e.State.String()), Time: e.Time, Err: e.Err, Instance: e.Instance})
}

// enter records an event, and passes it on.
func (b *board) enter(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	rows := b.rows[e.Service]
	if e.Replica != 0 {
		rows = rows[e.Replica-1 : e.Replica]
	}
	for _, r := range rows {
		if r.enter(e) {
			b.wake()
		}
	}
	b.mu.Unlock()
	b.observing.Lock()
	defer b.observing.Unlock()
	for _, f := range b.project.conf.observers {
		f(e)
	}
}

// enter records an event, and reports whether there is an instance since.
func (r *row) enter(e Event) (isNew bool) {
	if r.last.State != e.State {
		r.since = e.Time
	}
	if r.last = e; e.State == Starting {
		r.starts++
	}
	if e.Err != nil {
		r.failed = e.Err
	}
	isNew = e.Instance != nil && r.of == nil
	if isNew {
		r.of = e.Instance
	}
	return isNew
}

// wake wakes those who wait for an instance. b.mu must be held.
func (b *board) wake() {
	close(b.news)
	b.news = make(chan struct{})
}

// close says that no instance comes any more.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.wake()
}

func (b *board) instance(name string) *service.Instance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.found(name)
}

// found returns the instance of a service, or nil. b.mu must be held.
func (b *board) found(name string) *service.Instance {
	for _, r := range b.rows[name] {
		if r.of != nil {
			return r.of.Whole()
		}
	}
	return nil
}

// await returns the instance of a service when there is one, or nil if there will be none.
func (b *board) await(ctx context.Context, name string) *service.Instance {
	for {
		b.mu.Lock()
		of, over, news := b.found(name), b.closed || b.rows[name] == nil, b.news
		b.mu.Unlock()
		if of != nil || over {
			return of
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// published returns the addresses of an instance's ports, in the order of the file, or nothing if
// it does not run.
func published(i *service.Instance) (all []string) {
	if i == nil {
		return nil
	}
	if p := i.Process(); p != nil {
		for _, a := range p.Published() {
			all = append(all, a.String())
		}
	}
	return all
}

// Status returns what each service, and each of its replicas, is doing, sorted by name and number.
func (r *Running) Status() (all []Status) {
	for _, p := range r.project.services {
		for n := range p.scale {
			s := r.board.status(p, n)
			if p.scale > 1 {
				s.Replica = n + 1
			}
			all = append(all, s)
		}
	}
	return all
}

// status returns what the n-th replica of a service is doing.
func (b *board) status(p *plan, n int) Status {
	b.mu.Lock()
	r, checked := *b.rows[p.name][n], b.checks[p.name]
	b.mu.Unlock()
	s := Status{Service: p.name, Image: p.image, State: r.last.State, Since: r.since, Starts: r.starts}
	if r.failed != nil {
		s.Error = r.failed.Error()
	}
	if f := r.last.Fetch; s.State == Fetching && f.Count > 0 {
		s.Fetched, s.Total, s.Layer, s.Layers = f.Bytes, f.Total, f.Index+1, f.Count
	}
	switch {
	case !checked:
	case s.State == Starting:
		s.Health = "starting"
	case s.State == Ready:
		s.Health = "healthy"
	}
	now := published(r.of)
	for i, port := range p.ports {
		at := ""
		if i < len(now) {
			at = now[i]
		}
		s.Ports = append(s.Ports, port.shown(at))
	}
	if r.of != nil && slices.Contains([]State{Starting, Ready, Stopping}, s.State) {
		if process := r.of.Process(); process != nil {
			s.PID = process.PID()
			if u, err := process.Usage(); err == nil {
				s.Memory = u.MemoryPeak
			}
		}
	}
	return s
}
