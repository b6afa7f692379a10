package queue

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/service"
)

// healthRecord is what a worker says of a replica that it runs, in the KV bucket of services at
// class.service.lane.replica. It is forgotten after workerAge.
type healthRecord struct {
	Version int    `cbor:"0,keyasint"`
	Worker  string `cbor:"1,keyasint"`
	Attempt int    `cbor:"2,keyasint"`
	Address string `cbor:"3,keyasint,omitempty"`
	Healthy bool   `cbor:"4,keyasint"`
	Text    string `cbor:"5,keyasint,omitempty"` // why not
}

const (
	checkSoon  = 200 * time.Millisecond // until it is healthy
	checkEvery = 2 * time.Second
	checkTime  = 2 * time.Second
	maxRestart = 30 * time.Second // the longest back-off
	longRun    = time.Minute      // after which the back-off begins anew
)

// TakeServices has the worker run replicas of services too, which hold a slot as long as they live.
// Those that have a Port are reached at this IP address of the machine, at a port that is free, by
// whoever reaches the address: "127.0.0.1" for this machine alone. They reach nothing themselves.
// It needs what private networks need (see sandbox.Check). Default: it takes none.
func TakeServices(address string) WorkerOption {
	return func(w *Worker) {
		a, err := netip.ParseAddr(address)
		if err != nil || a.IsUnspecified() || a.Zone() != "" {
			w.errs = append(w.errs, wrong("queue.TakeServices", "%q: must be an IP address of this machine, such as 127.0.0.1", address))
			return
		}
		w.services = a
	}
}

// bindHealth finds the KV bucket of what workers say of replicas, or makes it.
func (q *Queue) bindHealth(ctx context.Context) error {
	bucket := q.config.name + "-services"
	_, err := q.js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		var n int
		if n, err = q.replicas(ctx); err == nil {
			_, err = q.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: workerAge, Storage: jetstream.MemoryStorage, Replicas: n,
				MaxBytes: maxHealthBytes, MaxValueSize: 2 * maxText})
			err = lacking(err, jetstream.MemoryStorage, n)
		}
	}
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) { // as another one was faster
		return fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return nil
}

const maxHealthBytes = 64 << 20

// healthKey is where the health of a service's replica is, which has the id. The whole id is in it,
// so that no other task has the same.
func healthKey(service, id string) string {
	class, rest, _ := strings.Cut(id, ".")
	return class + "." + service + "." + rest
}

// healthSubject is the subject of that key in the bucket.
func (q *Queue) healthSubject(service, id string) string {
	return "$KV." + q.config.name + "-services." + healthKey(service, id)
}

// health returns what was last said of a replica, or nil if that is nothing that this version
// understands.
func (q *Queue) health(ctx context.Context, service, id string) (*healthRecord, error) {
	m, err := q.read(ctx, "KV_"+q.config.name+"-services", query{Last: q.healthSubject(service, id)})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := decode[healthRecord](m.Data)
	if err != nil {
		return nil, nil // as if nothing was said: by another version, or by no worker
	}
	return h, nil
}

// serve runs a replica, and says how it is, until it ends.
func (a *attempt) serve(run context.Context, opts []sandbox.Option) (*sandbox.Result, error) {
	r := a.task.Replica
	if r.Port > 0 {
		n, err := sandbox.NewNetwork()
		if err != nil {
			return nil, err
		}
		defer n.Close()
		opts = append(opts, sandbox.WithNetwork(n.As(r.Service)), sandbox.WithPublish(netip.AddrPortFrom(a.w.services, 0).String(), r.Port))
	}
	p, err := a.w.pool.Start(run, opts...)
	if err != nil {
		return nil, err
	}
	a.tend(run, p)
	return p.Wait()
}

// tend says how a replica is until it has ended.
func (a *attempt) tend(run context.Context, p *sandbox.Process) {
	h := healthRecord{Version: version, Worker: a.w.name, Attempt: a.now.Attempt}
	if at := p.Published(); len(at) > 0 {
		h.Address = at[0].String()
	}
	var said healthRecord
	var last time.Duration
	var connections uint64 // then
	for {
		err := a.task.Replica.probe(run, p, h.Address)
		select {
		case <-p.Ended(): // what was seen is no more
			return
		default:
		}
		if h.Healthy, h.Text = err == nil, ""; err != nil {
			h.Text = strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxText)], "")
		}
		// Servers that were started anew have forgotten it.
		if now := a.w.q.nc.Stats().Reconnects; h != said || now != connections || clockNow() > last+workerAge/3 {
			if err := a.say(run, &h); err != nil {
				a.log.Warn("the health of a replica could not be said", "error", err)
			} else {
				said, last, connections = h, clockNow(), now
			}
		}
		wait := checkEvery
		if !h.Healthy {
			wait = checkSoon
		}
		select {
		case <-p.Ended():
			return
		case <-time.After(wait):
		}
	}
}

// say writes how a replica is, unless it is this worker's no more.
func (a *attempt) say(run context.Context, h *healthRecord) error {
	data, err := encode(h)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(run, tryTime)
	defer cancel()
	_, err = a.w.q.publish(ctx, a.w.q.healthSubject(a.task.Replica.Service, a.id), data)
	return err
}

// probe returns why a replica that is reached at an address is not healthy, or nil. It is hostile:
// of what it answers no more than the head of a response is read.
func (r *replicaRecord) probe(ctx context.Context, p *sandbox.Process, address string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	switch {
	case r.Port == 0:
		return nil
	case r.Health == "":
		return service.Listening(p, r.Port)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+r.Health, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request) // which follows nothing, other than a client
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// restart has a replica that has ended start again.
func (a *attempt) restart(m *nats.Msg, run *runRecord, failure error) error {
	why := "it exited"
	if failure != nil {
		why = failure.Error()
	}
	if run != nil && run.Usage.Wall > longRun {
		a.now.Spared = a.now.Attempt - 1
	}
	return a.wait(m, why, min(Retry{}.backoff(min(a.now.Attempt-a.now.Spared, 10)), maxRestart))
}
