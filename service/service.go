// Package service runs what programs and tests depend on: databases, caches, servers. A service is
// a sandbox whose command goes on: it is started and waited for until it is ready, watched,
// restarted when it fails, and ended gently.
//
//	redis := sandbox.New(sandbox.WithCommand("redis-server", "--protected-mode", "no"))
//	db := service.New("db", redis, service.Port(6379), service.Ready(service.Log("Ready to")))
//	running, err := db.Start(ctx)
//	defer running.Close()
//	conn, err := net.Dial("tcp", running.Addr(6379))
//
// Everything else is the sandbox's: its root, such as that of a container image (module image),
// its limits, and what it reaches, if it is on a private network. It works as root and as an
// ordinary user, without a daemon, and nothing of a service outlives this process.
// docs/SERVICES.md has more.
package service

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Service describes a service. It is immutable and safe for concurrent use: each Start makes
// another instance of it.
type Service struct {
	name string
	s    *sandbox.Sandbox
	open func(context.Context, func(Progress)) (*sandbox.Sandbox, error) // of Open, or nil
	conf config
}

// New describes a service: what its sandbox executes, under a name of 1 to 63 of a-z, 0-9, - and _,
// by which other services of its group find it. It never fails: Start reports wrong options.
//
// A sandbox that is on no network gets a place on a private one, from which only other services of
// its group are reached. One that is to reach more has WithNetwork(net.As(name)) with a network of
// the caller's, which others of the group may share. Unless the sandbox has WithStopSignal, a
// service is ended by SIGTERM, with 10 s until it is killed. Its output is kept as its logs: the
// sandbox must have neither WithStdout nor WithStderr, nor WithTerminal or WithHold.
func New(name string, s *sandbox.Sandbox, opts ...Option) *Service {
	return &Service{name: name, s: s, conf: newConfig(opts)}
}

// Open describes a service whose sandbox is made when an instance of it starts, by the function,
// which may take long, as fetching an image does. What it reports meanwhile is for Observe. The
// function is called by each Start, and must return when ctx ends; its time does not count for
// StartTimeout. All else is as for New.
//
//	pg := service.Open("pg", image.Sandbox("postgres:16"), service.Port(5432),
//		service.With(sandbox.WithEnv("POSTGRES_PASSWORD=x")))
func Open(name string, open func(ctx context.Context, report func(Progress)) (*sandbox.Sandbox, error), opts ...Option) *Service {
	return &Service{name: name, open: open, conf: newConfig(opts)}
}

func newConfig(opts []Option) config {
	conf := config{startTimeout: time.Minute, logLimit: sandbox.MiB, scale: 1}
	for _, opt := range opts {
		if opt != nil {
			opt(&conf)
		}
	}
	return conf
}

// opened returns the service with its sandbox.
func (s *Service) opened(ctx context.Context) (*Service, error) {
	made := *s
	if s.open != nil {
		err := errors.Join(s.check()...)
		if err != nil {
			return nil, err
		}
		report := func(p Progress) { s.conf.prepares(Event{Service: s.name, Progress: p}) }
		report(Progress{})
		if made.s, err = s.open(ctx, report); err != nil {
			return nil, &Error{Service: s.name, Err: err}
		}
	}
	if made.s != nil {
		made.s = made.s.With(s.conf.with...)
	}
	return &made, errors.Join(append(made.check(), made.checkSandbox()...)...)
}

// Name returns the name that New was given.
func (s *Service) Name() string { return s.name }

// Start starts an instance and waits until it is ready, as Ready says. The instance lives until
// Close, until it fails or until ctx ends, which ends it as Close does.
//
// The error is a *Error, with the last lines of output, if the service ended before it was ready or
// took longer than StartTimeout allows; else the errors of sandbox.Sandbox.Start. Nothing is left
// running then.
func (s *Service) Start(ctx context.Context) (*Instance, error) {
	net, err := sandbox.NewNetwork()
	if err != nil {
		return nil, err
	}
	i, err := s.start(ctx, ctx, net, net)
	if err != nil {
		return nil, errors.Join(err, net.Close())
	}
	return i, nil
}

// start waits until the instance is ready or wait ends. It lives until life ends, and then closes
// its own network, if it has one.
func (s *Service) start(life, wait context.Context, net, own *sandbox.PrivateNetwork) (*Instance, error) {
	s, err := s.opened(wait)
	if err != nil {
		return nil, err
	}
	i, err := s.newInstance(life, wait, net)
	if err != nil {
		return nil, &Error{Service: s.name, Err: err}
	}
	i.network = own
	go i.live()
	select {
	case <-i.ready:
	case <-i.ended:
	case <-wait.Done():
		i.cancel()
		<-i.ended
	}
	// It may have exited since, as Exits has it.
	if i.wasReady() && i.Err() == nil && wait.Err() == nil {
		return i, nil
	}
	_ = i.stop()
	if err := i.Err(); err != nil {
		return nil, err
	}
	return nil, i.failure(fault.NotStarted(wait))
}

// options are what the instance's sandbox has besides its own.
func (i *Instance) options(net *sandbox.PrivateNetwork) (opts []sandbox.Option) {
	place := func(c *spec.Spec) {
		if c.Namespaces.Network == spec.NetworkNone {
			sandbox.WithNetwork(net.As(i.service.name)).Apply(c)
		}
		i.place = c.Place.Member
		if c.Supervision.StopGrace == 0 {
			sandbox.WithStopSignal(syscall.SIGTERM, 10*time.Second).Apply(c)
		}
	}
	opts = append(opts, place)
	for _, p := range i.ports {
		opts = append(opts, sandbox.WithPublish(p.addr, p.port))
	}
	for n, v := range i.service.conf.volumes {
		opts = append(opts, sandbox.WithScratch(v.dst, i.volumes[n]))
	}
	return opts
}

// check returns what is wrong with the service's options.
func (s *Service) check() []error {
	errs := s.conf.check()
	if !spec.IsLabel(s.name) {
		errs = append(errs, fault.Option("service.New", "%q is no name of a service: 1 to 63 of a-z, 0-9, - and _, the first and last no -", s.name))
	}
	return errs
}

// checkSandbox returns why the sandbox is none for a service. The rest is found by itself.
func (s *Service) checkSandbox() (errs []error) {
	if s.s == nil {
		return []error{fault.Option("service.New", "the sandbox is nil: make one by sandbox.New")}
	}
	s.s.With(func(c *spec.Spec) {
		for _, o := range []struct {
			name  string
			given bool
			why   string
		}{
			{"WithStdout", c.Streams.Stdout != nil, "a service keeps its output: leave it out, and use Instance.Follow"},
			{"WithStderr", c.Streams.Stderr != nil, "a service keeps its output: leave it out, and use Instance.Follow"},
			{"WithTerminal", c.Command.Terminal.On, "a service has no terminal: leave it out"},
			{"WithHold", c.Command.Hold, "a service is its command: use WithCommand"},
			{"WithNetwork", isAlone(c.Place.Member.Of), "a network for each run has no place for others: use what As of a PrivateNetwork returns, or leave it out"},
			{"WithNetwork", len(s.conf.ports) > 0 && !slices.Contains([]spec.Network{spec.NetworkNone, spec.NetworkPrivate}, c.Namespaces.Network),
				"a service with service.Port is on a private network: leave it out, or use what PrivateNetwork.As returns"},
		} {
			if o.given {
				errs = append(errs, fault.Option(o.name, "%s", o.why))
			}
		}
		if s.conf.scale > 1 {
			errs = append(errs, checkScale(c)...)
		}
	})
	return errs
}

// isAlone reports whether what a place is on is the description of a network for each run.
func isAlone(of any) bool {
	_, alone := of.(interface{ Check() error })
	return alone
}

// At returns an instance that stands for the service where somebody else runs it: at the host, at
// the ports of Port themselves. It is for a service that is there already, and for programs on a
// network where the host is the service's name. It has no logs, and Close does nothing.
func (s *Service) At(host string) *Instance {
	i := &Instance{service: s, ready: make(chan struct{}), ended: make(chan struct{}), log: newLog(1), state: Running}
	for _, p := range s.conf.ports {
		i.ports = append(i.ports, published{port: p, addr: net.JoinHostPort(host, strconv.Itoa(p))})
	}
	close(i.ready)
	i.log.close(0)
	return i
}
