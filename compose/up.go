package compose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/service"
)

// ErrEnded is the error of Ready if the project was ended before.
var ErrEnded = errors.New("the project was ended before all of its services were ready")

// Running is a project that was started. Its methods are safe for concurrent use.
type Running struct {
	project *Project
	over    context.Context // ends when the project is to end
	end     context.CancelFunc
	ready   chan struct{} // closed when all services are
	ended   chan struct{} // closed when nothing of it is left
	err     error         // set before ended is closed
	board   board

	images  map[string]*image.Image // by what they were opened as
	scratch map[string]*sandbox.Scratch
	nets    []*sandbox.PrivateNetwork
	inputs  []*os.File
}

// Up begins to start the project: it fetches the images, and starts each service as soon as those
// are ready that it depends on. It returns at once. The project ends as a whole: if a service fails
// for good, if all have ended, by Close, or when ctx ends; each service gently, and before those
// that it depends on.
func (p *Project) Up(ctx context.Context) *Running {
	r := &Running{project: p, ready: make(chan struct{}), ended: make(chan struct{}), images: map[string]*image.Image{}, scratch: map[string]*sandbox.Scratch{}}
	r.over, r.end = context.WithCancel(ctx)
	r.board.begin(p)
	go func() {
		defer close(r.ended)
		defer r.end()
		err := r.live()
		r.err = errors.Join(err, r.release())
		r.board.close()
	}()
	return r
}

// Ready waits until all services are ready: healthy, if they have a healthcheck; ended, if others
// wait for that; else started. The error says which service failed, with its last lines; an image
// that can't be opened and a volume that can't be made are such errors, too.
func (r *Running) Ready() error {
	select {
	case <-r.ready:
		return nil
	case <-r.ended:
	}
	select {
	case <-r.ready: // and then all have ended
	default:
		if r.err == nil {
			return ErrEnded
		}
	}
	return r.err
}

// Ended returns a channel that is closed when nothing of the project is left.
func (r *Running) Ended() <-chan struct{} { return r.ended }

// Err waits until nothing of the project is left, and returns why it failed, or nil.
func (r *Running) Err() error {
	<-r.ended
	return r.err
}

// Close ends the project, if it has not ended, waits until nothing of it is left, and returns what
// Err returns. It may be called more than once.
func (r *Running) Close() error {
	r.end()
	return r.Err()
}

// Service returns the instance of a service, or nil as long as it has none, and if there is no such
// service. One with several replicas has an instance for all of them, whose Replicas returns each.
func (r *Running) Service(name string) *service.Instance { return r.board.instance(name) }

// Addr returns the address at which a TCP port of a service is published, such as "127.0.0.1:8080",
// while it runs. A port that the file gives no address changes with restarts. It panics if ports
// does not list the port, as an empty address means another server to many clients; if the service
// does not run, it returns "127.0.0.1:0", which nobody listens at.
func (r *Running) Addr(name string, target int) string {
	for _, p := range r.project.services {
		if p.name == name {
			for i, port := range p.ports {
				if port.target == target && port.protocol == "tcp" {
					if now := published(r.Service(name)); i < len(now) {
						return now[i]
					}
					return "127.0.0.1:0"
				}
			}
		}
	}
	panic(fmt.Sprintf("compose: port %d of %q is not published: add it to services.%s.ports", target, name, name))
}

// Line is a line of a service's output.
type Line struct {
	Service string
	service.Line
}

// Name returns the service's name, with a replica's number: "web.2".
func (l Line) Name() string { return replicaName(l.Service, l.Replica) }

// Follow yields what is kept of the output of the services with these names, or of all, and what
// they write from then on, until ctx or the project ends. Nobody waits for who follows: Missed of a
// line counts what was given up meanwhile.
func (r *Running) Follow(ctx context.Context, names ...string) iter.Seq[Line] {
	if len(names) == 0 {
		names = r.project.Services()
	}
	return func(yield func(Line) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		lines := make(chan Line)
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() {
				i := r.board.await(ctx, name)
				if i == nil {
					return
				}
				for line := range i.Follow(ctx) {
					select {
					case lines <- Line{name, line}:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		go func() { all.Wait(); close(lines) }()
		for line := range lines {
			if !yield(line) {
				return
			}
		}
	}
}

// live is the life of a project.
func (r *Running) live() error {
	if err := r.fetch(); err != nil {
		return err
	}
	services, err := r.make()
	switch {
	case r.over.Err() != nil:
		return nil // it was to end
	case err != nil:
		return err
	}
	group, err := service.StartAll(r.over, services...)
	if err != nil {
		if r.over.Err() != nil && !errors.As(err, new(*service.Error)) {
			return nil // it was to end
		}
		return err
	}
	close(r.ready)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for _, s := range services {
			<-group.Service(s.Name()).Ended()
		}
	}()
	select {
	case <-gone:
	case <-group.Ended():
	}
	return group.Close()
}

const (
	parallelFetches = 3
	forever         = 100 * 365 * 24 * time.Hour
)

// fetch opens the images, some at a time.
func (r *Running) fetch() error {
	ctx, cancel := context.WithCancelCause(r.over)
	defer cancel(nil)
	turns := make(chan struct{}, parallelFetches)
	var all sync.WaitGroup
	var mu sync.Mutex
	users := map[string][]string{}
	for _, p := range r.project.services {
		users[p.imageKey()] = append(users[p.imageKey()], p.name)
	}
	for _, p := range r.project.services {
		names := users[p.imageKey()]
		if names[0] != p.name {
			continue // another service has it opened
		}
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if ctx.Err() != nil {
				return
			}
			img, err := r.open(ctx, p, names)
			if err != nil {
				for _, name := range names {
					r.board.enter(Event{Service: name, State: Failed, Err: err})
				}
				cancel(fmt.Errorf("service %s: %w", p.name, err))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			r.images[p.imageKey()] = img
		})
	}
	all.Wait()
	if r.over.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// imageKey is what the image of a service was opened as.
func (p *plan) imageKey() string { return p.platform + " " + p.image }

func (r *Running) open(ctx context.Context, p *plan, names []string) (*image.Image, error) {
	opts := append(slices.Clip(r.project.conf.images), image.WithProgress(func(done image.Progress) {
		for _, name := range names {
			r.board.enter(Event{Service: name, State: Fetching, Fetch: done})
		}
	}))
	if p.platform != "" {
		opts = append(opts, image.WithPlatform(p.platform))
	}
	for _, name := range names {
		r.board.enter(Event{Service: name, State: Fetching})
	}
	img, err := image.Open(ctx, p.image, opts...)
	if err == nil {
		for _, name := range names {
			r.board.enter(Event{Service: name, State: Pending})
		}
	}
	return img, err
}

// make makes the volumes, the network, and the services on it.
func (r *Running) make() (services []*service.Service, err error) {
	if r.over.Err() != nil {
		return nil, r.over.Err()
	}
	shared, err := r.newNetwork(r.project.conf.network...)
	if err != nil {
		return nil, err
	}
	for _, p := range r.project.inOrder() {
		s, err := r.service(p, shared)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", p.name, err)
		}
		services = append(services, s)
	}
	return services, nil
}

func (r *Running) newNetwork(opts ...sandbox.NetworkOption) (*sandbox.PrivateNetwork, error) {
	n, err := sandbox.NewNetwork(opts...)
	if err == nil {
		r.nets = append(r.nets, n)
	}
	return n, err
}

// service makes a service of a plan.
func (r *Running) service(p *plan, shared *sandbox.PrivateNetwork) (*service.Service, error) {
	img := r.images[p.imageKey()]
	if p.user != "" {
		img = img.As(p.user)
	}
	for _, dir := range p.made {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
		}
	}
	// Docker sets it too. The image may have another.
	opts := []sandbox.Option{sandbox.WithEnv("HOSTNAME=" + p.hostname)}
	opts = append(opts, img.Options()...)
	opts = append(opts, p.command(img), p.stop(img.StopSignal()))
	if p.stdin {
		in, err := r.openInput()
		if err != nil {
			return nil, err
		}
		opts = append(opts, sandbox.WithStdin(in))
	}
	opts = append(opts, p.opts...)
	tail := []service.Option{service.Scale(p.scale), service.Restart(p.restarts)}
	if p.again {
		tail = append(tail, service.RestartEnded())
	}
	named, own, err := r.mountVolumes(p)
	if err != nil {
		return nil, err
	}
	opts, tail = append(opts, named...), append(tail, own...)
	if !r.project.writesHere() {
		opts = append(opts, sandbox.WithSetID())
	}
	on := shared
	if p.alone {
		var err error
		if on, err = r.newNetwork(); err != nil {
			return nil, err
		}
	}
	opts = append(opts, sandbox.WithNetwork(on.As(p.name, append(r.project.reaches(p), sandbox.Aliases(p.aliases...))...)))
	tail = append(tail, service.After(p.after...), service.Observe(r.board.observe))
	health := p.health.with(img.Healthcheck())
	if health == nil && p.needsHealth != nil {
		return nil, p.needsHealth
	}
	switch {
	case p.exits:
		tail = append(tail, service.Ready(service.Exits()), service.StartTimeout(forever))
	case health != nil:
		r.board.checked(p.name)
		tail = append(tail, health.options(p.listens(img))...)
	}
	box := sandbox.New(opts...)
	if err := r.fillVolumes(p, box); err != nil {
		return nil, err
	}
	return service.New(p.name, box, tail...), nil
}

// openInput returns a standard input on which nothing comes, and no end.
func (r *Running) openInput() (*os.File, error) {
	in, other, err := os.Pipe()
	if err == nil {
		r.inputs = append(r.inputs, in, other)
	}
	return in, err
}

// reaches returns what a service reaches: those that are on one of its networks, other replicas of
// its own among them. Where all are, nothing has to be said, and for what is alone neither.
func (p *Project) reaches(of *plan) []sandbox.PlaceOption {
	if of.alone {
		if of.scale > 1 {
			return []sandbox.PlaceOption{sandbox.Reaches()} // nor the other replicas
		}
		return nil
	}
	var names []string
	for _, other := range p.services {
		if (other != of || of.scale > 1) && !other.alone && slices.ContainsFunc(other.networks, func(n string) bool { return slices.Contains(of.networks, n) }) {
			names = append(names, other.name)
		}
	}
	all := !slices.ContainsFunc(p.services, func(s *plan) bool { return !s.alone && !slices.Equal(s.networks, p.services[0].networks) })
	if all {
		return nil
	}
	return []sandbox.PlaceOption{sandbox.Reaches(names...)}
}

// release gives back what services had.
func (r *Running) release() error {
	var errs []error
	for _, n := range r.nets {
		errs = append(errs, n.Close())
	}
	for _, s := range r.scratch {
		errs = append(errs, s.Close())
	}
	for _, f := range r.inputs {
		errs = append(errs, f.Close())
	}
	for _, img := range r.images {
		errs = append(errs, img.Close())
	}
	return errors.Join(errs...)
}

// shown returns a port as docker ps shows it.
func (p port) shown(at string) string {
	if at == "" {
		if at = p.host; at != "" {
			if host, number, err := net.SplitHostPort(at); err == nil && number == "0" {
				at = net.JoinHostPort(host, "any")
			}
		}
	}
	return at + "->" + strconv.Itoa(p.target) + "/" + p.protocol
}
