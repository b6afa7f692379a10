package service

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Instance is a service that was started. Its methods are safe for concurrent use.
type Instance struct {
	service *Service
	s       *sandbox.Sandbox
	network *sandbox.PrivateNetwork // of this instance alone, which it closes, or nil
	place   spec.Member
	ports   []published
	volumes []*sandbox.Scratch
	log     *lines // of all replicas

	replica  int         // its number, if it is one, or 0
	whole    *Instance   // of which it is one, or nil
	replicas []*Instance // of this instance, which has no run then

	ctx    context.Context
	cancel context.CancelFunc
	ready  chan struct{} // closed when it is ready for the first time
	ended  chan struct{} // closed when it is over for good

	once sync.Once // closes ready

	mu      sync.Mutex
	process *sandbox.Process // nil while there is none
	state   State
	err     error
}

// published is a port of the service, and the address at which it is published.
type published struct {
	port int
	addr string
	keep io.Closer // what keeps the address from others
}

// newInstance makes an instance, and its replicas, with all that stays through restarts, before
// wait ends.
func (s *Service) newInstance(life, wait context.Context, net *sandbox.PrivateNetwork) (_ *Instance, err error) {
	i := &Instance{service: s, log: newLog(s.conf.logLimit), state: Preparing}
	i.begin(life)
	defer func() {
		if err != nil {
			i.discard(err)
		}
	}()
	if err := i.reservePorts(); err != nil {
		return nil, err
	}
	if s.conf.scale > 1 {
		return i, i.addReplicas(net, wait)
	}
	if err := i.makeVolumes(wait); err != nil {
		return nil, err
	}
	i.s = s.s.With(i.options(net)...)
	return i, nil
}

// begin makes what every instance has.
func (i *Instance) begin(life context.Context) {
	i.ready, i.ended = make(chan struct{}), make(chan struct{})
	i.ctx, i.cancel = context.WithCancel(life)
}

// discard ends an instance that can't be started.
func (i *Instance) discard(why error) {
	i.cancel()
	i.release()
	for _, r := range i.replicas {
		r.discard(why)
	}
	i.mu.Lock()
	i.state, i.err = Failed, &Error{i.Name(), i.replica, why, nil}
	i.mu.Unlock()
	i.log.close(i.replica)
	close(i.ended)
}

func (i *Instance) reservePorts() error {
	for _, p := range i.service.conf.ports {
		addr, keep, err := reserve()
		if err != nil {
			return fmt.Errorf("sandbox: service.Port: %w", err)
		}
		i.ports = append(i.ports, published{p, addr, keep})
	}
	return nil
}

// prepares reports how far something is that is prepared for the instance.
func (i *Instance) prepares(p Progress) {
	i.service.conf.prepares(Event{Service: i.Name(), Replica: i.replica, Progress: p, Instance: i})
}

// live runs the instance until it has ended for good.
func (i *Instance) live() {
	if i.replicas == nil {
		i.supervise()
	} else {
		i.superviseAll()
	}
}

// release gives back what stays through restarts.
func (i *Instance) release() {
	for _, p := range i.ports {
		_ = p.keep.Close()
	}
	for _, v := range i.volumes {
		_ = v.Close()
	}
	if i.network != nil {
		_ = i.network.Close() // it is one, so this does not fail
	}
}

// Name returns the service's name.
func (i *Instance) Name() string { return i.service.name }

// Addr returns the address of this machine at which a port of Port is published, such as
// "127.0.0.1:41234". It panics for a port that is none of Port's, as an empty address means another
// server to many clients.
func (i *Instance) Addr(port int) string {
	n := slices.IndexFunc(i.ports, func(p published) bool { return p.port == port })
	if n < 0 {
		panic(fmt.Sprintf("service: %s: port %d is not published: add service.Port(%d)", i.Name(), port, port))
	}
	return i.ports[n].addr
}

// Reach returns an option for sandboxes whose runs are to reach the service, by its name and any
// port of it, and nothing else, unless it is on a network of the caller's that leads outside.
// Several of a group's instances add up; others, on another network, are an *OptionError when the
// run starts. For an instance of At it changes nothing.
func (i *Instance) Reach() sandbox.Option {
	return func(c *spec.Spec) {
		if i.cancel == nil { // of At
			return
		}
		// A name that no service is likely to have: others would find this run by it, too.
		name := "client-of-" + i.place.Name
		m := spec.Member{Of: i.place.Of, Name: strings.TrimRight(name[:min(len(name), 63)], "-"), Limited: true}
		if old := c.Place.Member; c.Namespaces.Network == spec.NetworkPrivate && old.Limited {
			if m = old; old.Of != i.place.Of {
				m.Of = apart{i.Name(), old.Reaches}
			}
		}
		m.Reaches += i.place.Name + ","
		c.Namespaces.Network, c.Place.Member = spec.NetworkPrivate, m
	}
}

// apart is the network of a run that is to reach services of several.
type apart struct{ name, others string }

func (a apart) Check() error {
	return fault.Option("Instance.Reach", "%s is on another network than %s: a run reaches services of one, those of one StartAll", a.name, strings.TrimSuffix(a.others, ","))
}

// Process returns the service's present run, or nil while there is none. A restart makes another.
// With Scale it returns that of one of the replicas, one that is ready if there is such.
func (i *Instance) Process() *sandbox.Process {
	if i.replicas != nil {
		return anyProcess(i.replicas)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.process
}

// Exec executes a command in the service's present run, as sandbox.Process.Exec does. While there
// is no run, the error is os.ErrProcessDone.
func (i *Instance) Exec(ctx context.Context, opts ...sandbox.Option) (*sandbox.Process, error) {
	p := i.Process()
	if p == nil {
		return nil, os.ErrProcessDone
	}
	return p.Exec(ctx, opts...)
}

// State returns what the instance is doing. With Scale it is Running as long as one of the replicas
// is, and Failed when one has failed for good.
func (i *Instance) State() State {
	if i.replicas != nil {
		return stateOf(i.replicas)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// Logs returns the output of the service, of all its runs, as far as it is kept: LogLimit, which
// replicas have in common.
func (i *Instance) Logs() []Line { return i.log.last(i.replica, math.MaxInt) }

// Follow yields the lines that are kept, and what the service writes from then on, until ctx or the
// instance ends. The service does not wait for whoever follows it: Line.Missed counts what was
// given up meanwhile.
func (i *Instance) Follow(ctx context.Context) iter.Seq[Line] { return i.log.follow(ctx, i.replica) }

// Ended returns a channel that is closed when the instance is over for good: by Close, by its
// context, by itself, or as it failed.
func (i *Instance) Ended() <-chan struct{} { return i.ended }

// Err returns a *Error if the service has failed for good, and nil if it has not, or has ended
// well.
func (i *Instance) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// Close ends the service gently, if it has not ended, waits until nothing of it is left, and
// returns what Err returns. It may be called more than once.
func (i *Instance) Close() error { return i.stop() }

func (i *Instance) stop() error {
	if i.cancel == nil { // of At
		return nil
	}
	i.cancel()
	<-i.ended
	return i.Err()
}

// failure returns the error of a service that failed.
func (i *Instance) failure(err error) error {
	return &Error{i.Name(), i.replica, err, i.log.last(i.replica, lastLines)}
}

// stream returns an output stream for a run.
func (i *Instance) stream(stderr bool) *stream {
	return &stream{to: i.log, replica: i.replica, stderr: stderr}
}

func (i *Instance) setProcess(p *sandbox.Process) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.process = p
}

// enter records a new state and reports it.
func (i *Instance) enter(s State, err error) {
	if s == Failed && i.service.conf.fails != nil {
		// Whoever sees that it has failed may close its group at once, which must not be
		// why the group has ended.
		i.service.conf.fails(err)
	}
	i.mu.Lock()
	i.state = s
	if s == Failed {
		i.err = err
	}
	i.mu.Unlock()
	i.service.conf.report(Event{Service: i.Name(), Replica: i.replica, State: s, Time: time.Now(), Err: err, Instance: i})
}
