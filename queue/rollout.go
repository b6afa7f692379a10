package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// roll starts the replicas of a record that are not there, some at a time, waits until they are
// healthy, and cancels those that they replace.
func (q *Queue) roll(ctx context.Context, name string, r *serviceRecord, seq uint64) error {
	old := r.Old
	for ids := range slices.Chunk(r.IDs, r.Batch) {
		if err := q.unchanged(ctx, name, seq); err != nil {
			return err
		}
		for _, id := range ids {
			if err := q.startReplica(ctx, id, r); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if err := q.awaitHealthy(ctx, name, id, seq); err != nil {
				return err
			}
		}
		gone := old[:min(len(ids), len(old))]
		if err := q.endReplicas(ctx, gone); err != nil {
			return err
		}
		old = old[len(gone):]
	}
	if err := q.endReplicas(ctx, old); err != nil {
		return err
	}
	if r.Definition == "" {
		return q.remove(ctx, q.services, seq)
	}
	if len(r.Old) == 0 {
		return nil
	}
	done := *r
	done.Old = nil
	if n, err := q.replaceService(ctx, name, &done, seq); err != nil || n == 0 {
		return errors.Join(err, ErrChanged)
	}
	return nil
}

// unchanged returns ErrChanged if the record is not the one with the number any more.
func (q *Queue) unchanged(ctx context.Context, name string, seq uint64) error {
	_, now, err := q.service(ctx, name)
	if err == nil && now != seq {
		err = ErrChanged
	}
	return err
}

// startReplica stores the task of a replica, unless it is there or has been canceled.
func (q *Queue) startReplica(ctx context.Context, id string, r *serviceRecord) error {
	t := *r.Task
	t.Submitted = time.Now().UnixNano()
	data, err := encode(&t)
	if err != nil {
		return err
	}
	return full(q.store(ctx, id, data))
}

// endReplicas cancels replicas, also those that have not been started yet.
func (q *Queue) endReplicas(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if _, err := q.end(ctx, id, Canceled, "the service does not need it any more"); err != nil {
			return err
		}
	}
	return nil
}

// awaitHealthy waits until a replica is healthy.
func (q *Queue) awaitHealthy(ctx context.Context, name, id string, seq uint64) error {
	for {
		s, err := q.replica(ctx, name, id)
		if err != nil {
			return err
		}
		if s.Healthy {
			return nil
		}
		if s.State.Ended() {
			return errors.Join(q.unchanged(ctx, name, seq), fmt.Errorf("replica %s: %v: %s", id, s.State, s.Text))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("replica %s is not healthy: %v: %s: %w", id, s.State, s.Text, context.Cause(ctx))
		case <-time.After(lookEvery):
		}
	}
}

// ServiceStatus is what a queue knows of a service.
type ServiceStatus struct {
	Name     string          `json:"name"`
	Class    string          `json:"class"`
	Replicas []ReplicaStatus `json:"replicas"`
	// Old are replicas that are being replaced or are not needed any more.
	Old []ReplicaStatus `json:"old,omitempty"`
}

// ReplicaStatus is what a queue knows of a replica. Its Attempt counts its starts.
type ReplicaStatus struct {
	Status
	Healthy bool   `json:"healthy"`
	Address string `json:"address,omitempty"` // where it is reached, such as 10.0.0.7:40123
}

// Services yields the services, and what their replicas' workers have said of them in the last
// 30 s. Who only wants the addresses may also watch the NATS KV bucket sandbox-services, or that of
// another Name, whose keys are class.service.lane.replica; but whoever may write tasks can have
// keys of any service there, which Services does not yield.
func (q *Queue) Services(ctx context.Context) iter.Seq2[ServiceStatus, error] {
	return func(yield func(ServiceStatus, error) bool) {
		for m, err := range q.records(ctx, q.services, q.subject("service", "*")) {
			name := ""
			s := ServiceStatus{}
			if err == nil {
				name = q.idOf("service", m.Subject)
				s, err = q.serviceStatus(ctx, name)
			}
			if errors.Is(err, ErrNoService) {
				continue // it has ended meanwhile
			}
			if err != nil {
				err = fmt.Errorf("queue: service %q: %w", name, err)
			}
			if !yield(s, err) || ctx.Err() != nil {
				return
			}
		}
	}
}

func (q *Queue) serviceStatus(ctx context.Context, name string) (ServiceStatus, error) {
	r, _, err := q.service(ctx, name)
	if err != nil {
		return ServiceStatus{Name: name}, err
	}
	if r == nil {
		return ServiceStatus{Name: name}, ErrNoService
	}
	s := ServiceStatus{Name: name, Class: r.Class}
	for _, of := range []struct {
		ids []string
		to  *[]ReplicaStatus
	}{{r.IDs, &s.Replicas}, {r.Old, &s.Old}} {
		for _, id := range of.ids {
			replica, err := q.replica(ctx, name, id)
			if err != nil {
				return s, err
			}
			*of.to = append(*of.to, replica)
		}
	}
	return s, nil
}

// replica returns what is known of a replica.
func (q *Queue) replica(ctx context.Context, name, id string) (ReplicaStatus, error) {
	s, err := q.Status(ctx, id)
	if errors.Is(err, ErrNotFound) { // not started yet
		return ReplicaStatus{Status: Status{ID: id, State: Waiting}}, nil
	}
	if err != nil {
		return ReplicaStatus{}, err
	}
	r := ReplicaStatus{Status: s}
	if s.State != Running {
		return r, nil
	}
	h, err := q.health(ctx, name, id)
	if err != nil {
		return r, err
	}
	// What an earlier attempt said may still be there.
	if h != nil && h.Attempt == s.Attempt && h.Worker == s.Worker {
		r.Healthy, r.Address, r.Text = h.Healthy, h.Address, h.Text
	}
	return r, nil
}
