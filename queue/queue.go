// Package queue runs tasks, which are commands of a sandbox, on one machine or on many. It keeps
// them in NATS JetStream: in a server in this process by default, or in a cluster by changing a
// URL.
//
//	q, err := queue.Open(ctx, "")
//	id, err := q.Submit(ctx, queue.Task{Command: []string{"make"}, Inputs: os.DirFS("job")})
//	res, err := q.Wait(ctx, id)
//
// and, in the same process or in others,
//
//	err := queue.NewWorker(q, pool.New(sandbox.New(), 8), queue.Slots(8)).Run(ctx)
//
// docs/QUEUE.md has the words, what is guaranteed, and against whom.
package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cellkit/sandbox"
)

// Queue is a connection to a queue. It is safe for concurrent use.
type Queue struct {
	config   config
	embedded *embedded // nil if the queue is on a server elsewhere
	url      string    // that Open was given
	unlock   func()
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	nc       *nats.Conn
	tried    atomic.Pointer[error] // why a server could not be reached, the last time
	js       jetstream.JetStream

	tasks, states, dead, blobs, services jetstream.Stream

	watching sync.WaitGroup // of the disk and the streams
	said     atomic.Pointer[diskSaid]
	mend     chan struct{} // gets something when streams may be missing
	found    atomic.Pointer[finding]

	mu        sync.Mutex
	consumers map[string]jetstream.Consumer
	live      map[string]*lease // of workers of this process
	// The last task that was submitted here, which is another one than all before, and when.
	newest   string
	newestAt time.Time
}

// Open opens a queue. With a URL such as "nats://a,b,c" or "tls://a" it connects to servers of
// NATS 2.12 or newer that have JetStream, and keeps trying until ctx ends, when the error says
// why none was reached; that one side refuses the other's certificate or name is an error. With
// "" it runs a server in this process, which keeps its files in a directory (Dir), syncs each
// change before it answers (SyncEvery), and listens on nothing (Listen). One process at a time
// may have the directory.
//
// A queue that is not there is made, with the options Lease, Retention and Replicas, which is an
// error if the cluster has too few servers for 10 s; one that is keeps what it has. Who may not
// make streams waits until somebody has, but for those in memory, as of logs, for 2 s only. The
// errors of wrong options are *sandbox.OptionErrors, joined. The caller should call Close.
func Open(ctx context.Context, url string, opts ...Option) (*Queue, error) {
	c, err := newConfig(url, opts)
	if err != nil {
		return nil, err
	}
	q := &Queue{config: c, url: url, unlock: func() {}, mend: make(chan struct{}, 1), consumers: map[string]jetstream.Consumer{}, live: map[string]*lease{}}
	q.ctx, q.stop = context.WithCancel(context.Background())
	if err := q.connect(ctx, url); err != nil {
		q.Close()
		return nil, fmt.Errorf("queue: %w", err)
	}
	if c.syncEvery > 0 {
		c.log.Warn("what was submitted is lost if the power fails or the kernel crashes within this time (queue.SyncEvery)", "time", c.syncEvery)
	}
	return q, nil
}

func (q *Queue) connect(ctx context.Context, url string) (err error) {
	conn := append([]nats.Option{nats.Name("sandbox"), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.RetryOnFailedConnect(true),
		nats.DisconnectErrHandler(q.disconnected), nats.ReconnectHandler(q.reconnected), nats.ReconnectErrHandler(q.unreached), nats.ErrorHandler(q.refused)}, q.config.conn...)
	if url == "" {
		if err := q.startServer(); err != nil {
			return err
		}
		conn = append(conn, nats.InProcessServer(q.embedded))
		if q.config.token != "" {
			conn = append(conn, nats.Token(q.config.token))
		}
	}
	if q.nc, err = nats.Connect(url, conn...); err != nil {
		return err
	}
	if q.embedded != nil {
		q.watching.Go(q.watchDisk)
	} else if err := q.hearDisk(); err != nil {
		return err
	}
	if err := q.awaitConnection(ctx); err != nil {
		return err
	}
	if v := q.nc.ConnectedServerVersion(); tooOld(v) {
		return fmt.Errorf("the server is NATS %s: take 2.12 or newer", v)
	}
	// An API call that no server answers is tried again: a cluster may be choosing a leader.
	if q.js, err = jetstream.New(q.nc, jetstream.WithDefaultTimeout(tryTime)); err != nil {
		return err
	}
	if err := q.awaitStreams(ctx); err != nil {
		// Which knows more, such as that the token is wrong.
		return errors.Join(err, q.nc.LastError())
	}
	q.watching.Go(q.mendStreams)
	return nil
}

// tooOld reports whether servers of that version can't answer without headers, as read asks.
func tooOld(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major < 2 || major == 2 && minor < 12)
}

// awaitConnection waits until the queue is connected. A server that is killed at that moment looks
// once like one that refuses a certificate.
func (q *Queue) awaitConnection(ctx context.Context) error {
	for ; !q.nc.IsConnected(); pause(ctx, 20*time.Millisecond) {
		err, again := q.nc.LastError(), q.nc.Stats().Reconnects > 0
		switch {
		case ctx.Err() != nil:
			if last := q.tried.Load(); err == nil && last != nil {
				err = *last
			}
			return errors.Join(fmt.Errorf("no server could be reached: %w", context.Cause(ctx)), err)
		case q.nc.IsClosed() || errors.Is(err, nats.ErrTLS) && again:
			return errors.Join(errors.New("the connection was refused"), err)
		}
	}
	return nil
}

// Close closes the connection, and stops the server in this process, if there is one. Workers of
// the queue must have returned before.
func (q *Queue) Close() {
	q.stop()
	if q.nc != nil {
		q.nc.Close()
	}
	q.watching.Wait()
	if q.embedded != nil {
		q.embedded.stop()
	}
	q.unlock()
}

// URL returns what another process of this machine can open the queue with. It is empty for one in
// this process without Listen. It may have a secret in it.
func (q *Queue) URL() string {
	if q.embedded == nil {
		return q.url
	}
	if q.config.listen == "" {
		return ""
	}
	scheme := "nats://"
	if q.config.serverTLS != nil {
		scheme = "tls://"
	}
	return scheme + q.config.token + "@" + q.embedded.address()
}

// shared reports whether workers of other processes may have the same tasks.
func (q *Queue) shared() bool { return q.embedded == nil || q.config.listen != "" }

// subject returns the subject of a kind of record of a task, which it is also filed under for
// permissions: farm.state.linux.normal.4f2a...
func (q *Queue) subject(kind, id string) string { return q.config.name + "." + kind + "." + id }

// idOf is the inverse of subject.
func (q *Queue) idOf(kind, subject string) string {
	return strings.TrimPrefix(subject, q.config.name+"."+kind+".")
}

// bindStreams finds the queue's streams, and makes those that are missing.
func (q *Queue) bindStreams(ctx context.Context) (err error) {
	n := q.config.name
	for _, s := range []struct {
		stream *jetstream.Stream
		name   string
		set    func(*jetstream.StreamConfig)
	}{
		{&q.tasks, "tasks", func(c *jetstream.StreamConfig) {
			c.Subjects = []string{n + ".task.*.*.*"}
			c.Retention = jetstream.WorkQueuePolicy
			c.Discard, c.MaxMsgs, c.MaxBytes = jetstream.DiscardNew, maxTasks, maxTaskBytes
			// Says that a lane has a task: see pull.go.
			c.RePublish = &jetstream.RePublish{Source: n + ".task.*.*.*", Destination: n + ".new.{{wildcard(1)}}.{{wildcard(2)}}", HeadersOnly: true}
		}},
		{&q.states, "states", func(c *jetstream.StreamConfig) {
			c.Subjects = []string{n + ".state.*.*.*"}
			c.MaxMsgsPerSubject = 1
			// What is republished has been accepted; what is published need not be.
			c.RePublish = &jetstream.RePublish{Source: n + ".state.*.*.*", Destination: n + ".now.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}"}
		}},
		{&q.dead, "dead", func(c *jetstream.StreamConfig) {
			c.Subjects, c.MaxMsgsPerSubject, c.MaxAge = []string{n + ".dead.*.*.*"}, 1, q.config.retention
		}},
		{&q.blobs, "blobs", func(c *jetstream.StreamConfig) {
			c.Subjects = []string{n + ".blob.*", n + ".chunk.*.*", n + ".turn"}
			// Whose turn it is to collect: see collect.go.
			c.MaxMsgsPerSubject, c.Duplicates = 1, collectEvery
			c.Discard, c.MaxBytes = jetstream.DiscardNew, q.config.blobBytes
		}},
		{&q.services, "services", func(c *jetstream.StreamConfig) {
			c.Subjects, c.MaxMsgsPerSubject = []string{n + ".service.*"}, 1
			c.Discard, c.MaxMsgs = jetstream.DiscardNew, maxServices
		}},
	} {
		if *s.stream, err = q.bind(ctx, s.name, s.set); err != nil {
			return err
		}
		if err := q.adopt(&q.tasks.CachedInfo().Config); err != nil { // the first one, which the others follow
			return err
		}
	}
	if err := q.bindMemory(ctx); !errors.Is(err, errMissing) {
		return err
	}
	q.config.log.Warn("there are no logs, workers and health of services", "error", err)
	return nil
}

// bind finds a stream of the queue, or makes it.
func (q *Queue) bind(ctx context.Context, name string, set func(*jetstream.StreamConfig)) (jetstream.Stream, error) {
	c := jetstream.StreamConfig{Name: q.config.name + "-" + name, Storage: jetstream.FileStorage, AllowDirect: true,
		Metadata: map[string]string{leaseKey: q.config.lease.String(), retentionKey: q.config.retention.String()}}
	set(&c)
	stream, err := q.js.Stream(ctx, c.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if c.Replicas, err = q.replicas(ctx); err == nil {
			stream, err = q.makeStream(ctx, c)
		}
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another one was faster
		stream, err = q.js.Stream(ctx, c.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", c.Name, err)
	}
	return stream, nil
}

// What streams say of the queue that they were made for.
const (
	leaseKey     = "sandbox.lease"
	retentionKey = "sandbox.retention"
)

// adopt takes over the properties of a queue that was there.
func (q *Queue) adopt(c *jetstream.StreamConfig) error {
	properties := c.Metadata
	lease, err := time.ParseDuration(properties[leaseKey])
	if err != nil || lease < minLease || lease > maxLease {
		return fmt.Errorf("stream %s-tasks: %s is %q, and must be 3s to 1h: it was not made by this version", q.config.name, leaseKey, properties[leaseKey])
	}
	retention, err := time.ParseDuration(properties[retentionKey])
	if err != nil || retention < minRetention {
		return fmt.Errorf("stream %s-tasks: %s is %q: it was not made by this package", q.config.name, retentionKey, properties[retentionKey])
	}
	q.config.lease, q.config.retention = lease, retention
	return nil
}

// consumer returns what hands out tasks of a class, priority and lane. One that is there keeps its
// lease: changing it would cut short the leases that workers have.
func (q *Queue) consumer(ctx context.Context, class, route string) (jetstream.Consumer, error) {
	name := class + "-" + route
	q.mu.Lock()
	c := q.consumers[name]
	q.mu.Unlock()
	if c != nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime) // no answer comes while nobody leads it
	defer cancel()
	c, err := q.tasks.Consumer(ctx, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		// MaxAckPending is for all workers together, so there is none: their slots are the
		// limit.
		c, err = q.tasks.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: name, FilterSubject: q.subject("task", class+"."+route+".*"),
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.config.lease, MaxDeliver: -1, MaxAckPending: -1, MaxWaiting: 8192})
	}
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", name, err)
	}
	if lease := c.CachedInfo().Config.AckWait; lease < minLease || lease > maxLease {
		return nil, fmt.Errorf("consumer %s: its lease is %v, and must be 3s to 1h: it was not made by this version", name, lease)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.consumers[name] = c
	return c, nil
}

const (
	tryTime      = 5 * time.Second // for one answer of a server
	maxTasks     = 1 << 20
	maxTaskBytes = 4 << 30
	workerAge    = 30 * time.Second
	maxWorkers   = 1 << 14
)

// retry calls f until it succeeds, fails for another reason than that no server answered, or ctx
// ends.
func retry(ctx context.Context, f func(context.Context) error) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		try, cancel := context.WithTimeout(ctx, tryTime)
		err := f(try)
		cancel()
		if err == nil || !unanswered(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}

func unanswered(err error) bool {
	for _, e := range []error{context.DeadlineExceeded, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrDisconnected, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded,
		jetstream.ErrNoStreamResponse, jetstream.ErrNoHeartbeat} {
		if errors.Is(err, e) {
			return true
		}
	}
	var api *jetstream.APIError
	// Such as no leader, or not enough replicas, yet.
	return errors.As(err, &api) && api.Code == 503 && !errors.Is(full(err), ErrFull)
}

// conflict reports whether a record was not written because another one was there.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// publish writes a record and returns its sequence number once it is stored. If only the answer got
// lost, a record that expects what was there before is refused when it is tried again: conflict.
func (q *Queue) publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) (seq uint64, err error) {
	err = q.retry(ctx, func(ctx context.Context) error {
		seq, err = q.publishOnce(ctx, subject, data, opts...)
		return err
	})
	return seq, err
}

func (q *Queue) publishOnce(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) (uint64, error) {
	ack, err := q.js.Publish(ctx, subject, data, opts...)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func wrong(option, format string, args ...any) error {
	return &sandbox.OptionError{Option: option, Err: fmt.Errorf(format, args...)}
}
