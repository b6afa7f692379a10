package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Service is a command that goes on, in several replicas: each is a task that never ends. A replica
// that exits is started again, after a back-off of up to 30 s; one whose worker is lost starts on
// another within the lease.
type Service struct {
	// Name is 1 to 63 of a-z, 0-9 and -. Required.
	Name string
	// Task is what each replica runs. Its Command, Dir, Env, Stdin, Limits, Inputs, Class,
	// Priority and Tenant count; it must have no Outputs, Key, Retry, Delay or Deadline.
	Task Task
	// Replicas is how many there are: 1 to 100. Default: 1.
	Replicas int
	// Port is where a replica listens, by TCP, at its own address or at 0.0.0.0. Its worker has
	// it reached at an address of its machine, which Services returns; the replica itself
	// reaches nothing. Default: it has no network beyond that of the worker's sandbox.
	Port int
	// Health is the path of a GET at Port that a healthy replica answers with a status from 200
	// to 399, such as "/health". Default: one that listens at Port is healthy; without a Port,
	// one that runs.
	Health string
	// Batch is how many replicas are replaced at a time when Serve has something else run.
	// Default: 1.
	Batch int
}

// ErrChanged means that somebody else has changed a service meanwhile.
var ErrChanged = errors.New("the service was changed by somebody else")

// ErrNoService means that the queue has no service of the name.
var ErrNoService = errors.New("no such service")

const (
	maxReplicas = 100
	maxServices = 1 << 12
	lookEvery   = 200 * time.Millisecond
)

// serviceRecord is a service as it is stored, at its name's subject: one record, which each change
// replaces if it is still the one that the writer saw.
type serviceRecord struct {
	Version    int         `cbor:"0,keyasint"`
	Definition string      `cbor:"1,keyasint"` // a digest of what replicas are
	Class      string      `cbor:"2,keyasint"`
	Task       *taskRecord `cbor:"3,keyasint"` // of each replica
	Batch      int         `cbor:"4,keyasint"`
	IDs        []string    `cbor:"5,keyasint,omitempty"` // of the replicas' tasks
	Old        []string    `cbor:"6,keyasint,omitempty"` // of those that are to be canceled
	Route      string      `cbor:"7,keyasint"`           // of the ids
}

// replicaRecord is what the task of a replica has besides a command.
type replicaRecord struct {
	Service string `cbor:"1,keyasint"`
	Port    int    `cbor:"2,keyasint,omitempty"`
	Health  string `cbor:"3,keyasint,omitempty"`
}

func (r *replicaRecord) valid() bool {
	path, err := url.ParseRequestURI(r.Health)
	return namePattern(r.Service) && r.Port >= 0 && r.Port <= 65535 && (r.Health == "" || err == nil && r.Port > 0 && path.Host == "" && r.Health[0] == '/' && len(r.Health) <= maxName)
}

// Serve has a service run, and waits until all of its replicas are healthy. If one of the name runs
// another task, its replicas are replaced, Batch at a time: the old ones of a batch are canceled
// when the new ones are healthy, which takes a free slot for each. If it runs the same task, what
// differs is mended. If ctx ends first, new and old replicas go on; Serve may be repeated.
//
// What is wrong with the service is an *sandbox.OptionError. The error is ErrChanged if somebody
// else has changed it meanwhile.
func (q *Queue) Serve(ctx context.Context, s Service) error {
	r, err := q.describe(ctx, &s)
	if err != nil {
		return err
	}
	n := s.Replicas
	if n == 0 {
		n = 1
	}
	return q.change(ctx, s.Name, func(old *serviceRecord) (*serviceRecord, error) {
		next := *r
		if old != nil {
			next.IDs, next.Old = old.IDs, old.Old
			if old.Definition != r.Definition {
				next.IDs, next.Old = nil, append(slices.Clone(old.Old), old.IDs...)
			}
		}
		return &next, next.resize(n)
	})
}

// Scale changes the number of a service's replicas, 0 to 100, and waits as Serve does.
func (q *Queue) Scale(ctx context.Context, name string, replicas int) error {
	if replicas < 0 || replicas > maxReplicas {
		return wrong("Scale", "%d replicas: must be 0 to %d", replicas, maxReplicas)
	}
	return q.change(ctx, name, func(old *serviceRecord) (*serviceRecord, error) {
		if old == nil || old.Definition == "" { // it is being ended
			return nil, ErrNoService
		}
		return old, old.resize(replicas)
	})
}

// StopService ends a service and its replicas, and forgets it.
func (q *Queue) StopService(ctx context.Context, name string) error {
	return q.change(ctx, name, func(old *serviceRecord) (*serviceRecord, error) {
		if old == nil {
			return nil, ErrNoService
		}
		old.Definition = ""
		return old, old.resize(0)
	})
}

// resize adds replicas, or has the last ones canceled.
func (r *serviceRecord) resize(n int) error {
	if len(r.IDs) > n {
		r.Old = append(slices.Clone(r.Old), r.IDs[n:]...)
		r.IDs = r.IDs[:n:n]
	}
	for len(r.IDs) < n {
		r.IDs = append(slices.Clip(r.IDs), r.Class+"."+r.Route+"."+randomName())
	}
	if len(r.Old) > 10*maxReplicas {
		return fmt.Errorf("%d replicas of earlier versions are still there: find out why no newer one is healthy", len(r.Old))
	}
	return nil
}

// describe returns a service as it is stored, without replicas.
func (q *Queue) describe(ctx context.Context, s *Service) (*serviceRecord, error) {
	t := &s.Task
	replica := &replicaRecord{Service: s.Name, Port: s.Port, Health: s.Health}
	switch {
	case !namePattern(s.Name):
		return nil, wrong("Service.Name", "%q: a name is 1 to 63 of a-z, 0-9 and -", s.Name)
	case s.Replicas < 0 || s.Replicas > maxReplicas:
		return nil, wrong("Service.Replicas", "%d: must be 1 to %d", s.Replicas, maxReplicas)
	case s.Batch < 0:
		return nil, wrong("Service.Batch", "%d: must be positive", s.Batch)
	case !replica.valid():
		return nil, wrong("Service.Health", "%q at port %d: a port is 1 to 65535, and a path, which takes one, begins with / and is encoded as in a URL", s.Health, s.Port)
	case len(t.Outputs) > 0 || t.Key != "" || t.Retry != (Retry{}) || t.Delay != 0 || !t.Deadline.IsZero():
		return nil, wrong("Service.Task", "it has Outputs, Key, Retry, Delay or Deadline: a service does not end, and is always tried again")
	}
	task, err := t.record(nil)
	if err != nil {
		return nil, err
	}
	task.Replica = replica
	if t.Inputs != nil {
		packing, cancel := context.WithTimeoutCause(ctx, packTime, errSlow)
		defer cancel()
		if task.Inputs, _, err = q.pack(packing, t.Inputs, []string{"."}, false); err != nil {
			return nil, fmt.Errorf("queue: inputs: %w", full(err))
		}
	}
	r := &serviceRecord{Version: version, Class: t.class(), Route: route(t.Priority, laneOf(serviceKind, t.Tenant)), Task: task}
	data, err := encode(r)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	sum := sha256.Sum256(data)
	r.Definition, r.Batch = hex.EncodeToString(sum[:]), max(s.Batch, 1)
	return r, nil
}

// change replaces a service's record and has its replicas follow.
func (q *Queue) change(ctx context.Context, name string, next func(old *serviceRecord) (*serviceRecord, error)) error {
	for {
		old, seq, err := q.service(ctx, name)
		var r *serviceRecord
		if err == nil && old != nil {
			err = q.dropEnded(ctx, old)
		}
		if err == nil {
			r, err = next(old)
		}
		if err == nil {
			seq, err = q.replaceService(ctx, name, r, seq)
		}
		if err == nil && seq != 0 {
			err = q.roll(ctx, name, r, seq)
		} else if err == nil {
			continue // somebody else was faster
		}
		if err != nil {
			return fmt.Errorf("queue: service %s: %w", name, err)
		}
		return nil
	}
}

// dropEnded removes the replicas that have ended, as somebody has canceled them, so that others
// take their places.
func (q *Queue) dropEnded(ctx context.Context, r *serviceRecord) error {
	var live []string
	for _, id := range r.IDs {
		s, _, err := q.state(ctx, id)
		if err != nil {
			return err
		}
		if s == nil || !s.State.Ended() {
			live = append(live, id)
		}
	}
	r.IDs = live
	return nil
}

// service returns a service's record and its sequence number, or nil and 0.
func (q *Queue) service(ctx context.Context, name string) (*serviceRecord, uint64, error) {
	if !namePattern(name) {
		return nil, 0, wrong("Service.Name", "%q: a name is 1 to 63 of a-z, 0-9 and -", name)
	}
	m, err := q.last(ctx, q.services, q.subject("service", name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	r, err := decode[serviceRecord](m.Data)
	if err == nil && !r.valid() {
		err = errors.New("its record can't be: it was not written by this package")
	}
	return r, m.Sequence, err
}

// valid reports whether a record, whoever wrote it, can be one.
func (r *serviceRecord) valid() bool {
	for _, id := range slices.Concat(r.IDs, r.Old) {
		if !validID(id) {
			return false
		}
	}
	return r.Task != nil && r.Task.Replica != nil && r.Task.check() == nil && r.Batch >= 1 && tokenPattern.MatchString(r.Class) && routePattern.MatchString(r.Route) &&
		len(r.IDs) <= maxReplicas
}

// replaceService writes a service's record in the place of the one with the number seq, or of none.
// It returns 0 if there is another one.
func (q *Queue) replaceService(ctx context.Context, name string, r *serviceRecord, seq uint64) (uint64, error) {
	data, err := encode(r)
	if err != nil {
		return 0, err
	}
	// Also while a disk is full: a service can be stopped then. Replicas that it adds are
	// refused.
	n, err := q.publish(ctx, q.subject("service", name), data, jetstream.WithExpectLastSequencePerSubject(seq))
	if conflict(err) {
		return 0, nil
	}
	return n, full(err)
}

// randomName returns a part of an id that no other task has.
func randomName() string {
	id := (&Task{}).id("")
	return id[strings.LastIndex(id, ".")+1:]
}
