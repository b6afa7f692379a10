package service

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// Group is services that were started together, on one network, where they find each other by name.
// Its methods are safe for concurrent use.
type Group struct {
	network *sandbox.PrivateNetwork
	members []*member
	over    context.Context // ends when the members are to end; its cause is why
	end     context.CancelCauseFunc
	ended   chan struct{}
}

// member is a service of a group.
type member struct {
	service  *Service
	needs    []*member
	neededBy []*member
	instance *Instance     // set before ready is closed
	ready    chan struct{} // closed when it is
	gone     chan struct{} // closed when nothing of it is left
}

var errClosed = errors.New("the group was closed")

// StartAll starts services as one: each as soon as those are ready that its After names, at once
// where these allow it. It returns when all are ready. If one fails before that, or fails for good
// later, or Close is called or ctx ends, all are ended: each when those have ended that are After
// it.
//
// The error is that of the service that failed first, a *Error, or the joined *sandbox.OptionErrors
// of names that are wrong.
func StartAll(ctx context.Context, services ...*Service) (*Group, error) {
	g := &Group{ended: make(chan struct{})}
	if err := g.arrange(services); err != nil {
		return nil, err
	}
	var err error
	if g.network, err = sandbox.NewNetwork(); err != nil {
		return nil, err
	}
	g.over, g.end = context.WithCancelCause(ctx)
	var all sync.WaitGroup
	for _, m := range g.members {
		all.Go(func() { g.live(context.WithoutCancel(ctx), m) })
	}
	go func() {
		all.Wait()
		_ = g.network.Close() // it is one, so this does not fail
		close(g.ended)
	}()
	if awaitAll(g.over, g.members, func(m *member) <-chan struct{} { return m.ready }) {
		return g, nil
	}
	<-g.ended
	if err := g.Err(); err != nil {
		return nil, err
	}
	return nil, fault.NotStarted(ctx)
}

// live is the life of a member.
func (g *Group) live(ctx context.Context, m *member) {
	defer close(m.gone)
	if !awaitAll(g.over, m.needs, func(m *member) <-chan struct{} { return m.ready }) {
		return
	}
	var err error
	s := *m.service
	s.conf.fails = g.end
	if m.instance, err = s.start(ctx, g.over, g.network, nil); err != nil {
		g.end(err)
		return
	}
	close(m.ready)
	select {
	case <-m.instance.Ended():
		<-g.over.Done() // it may have ended well, and the others go on
	case <-g.over.Done():
	}
	awaitAll(context.Background(), m.neededBy, func(m *member) <-chan struct{} { return m.gone })
	_ = m.instance.Close() // what failed after the end was wanted is no failure
}

// awaitAll waits for all of the members, and reports whether ctx did not end before that.
func awaitAll(ctx context.Context, members []*member, what func(*member) <-chan struct{}) bool {
	for _, m := range members {
		select {
		case <-what(m):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// arrange makes the members, in an order in which each comes after those that it needs.
func (g *Group) arrange(services []*Service) error {
	var errs []error
	wrong := func(option, format string, args ...any) {
		errs = append(errs, fault.Option(option, format, args...))
	}
	named := map[string]*member{}
	for _, s := range services {
		if s == nil {
			wrong("service.StartAll", "a service is nil: make it by service.New")
			continue
		}
		if named[s.name] != nil {
			wrong("service.StartAll", "two services have the name %q", s.name)
		}
		named[s.name] = &member{service: s, ready: make(chan struct{}), gone: make(chan struct{})}
	}
	for name, m := range named {
		for _, need := range m.service.conf.after {
			other := named[need]
			if other == nil {
				wrong("service.After", "%s is to start after %q, which is not in the group", name, need)
				continue
			}
			m.needs, other.neededBy = append(m.needs, other), append(other.neededBy, m)
		}
	}
	for len(named) > 0 && errs == nil {
		before := len(named)
		for _, s := range services {
			m := named[s.name]
			if m != nil && !slices.ContainsFunc(m.needs, func(o *member) bool { return named[o.service.name] != nil }) {
				g.members = append(g.members, m)
				delete(named, s.name)
			}
		}
		if len(named) == before {
			for name := range named {
				wrong("service.After", "%s waits, by way of others, for itself", name)
			}
		}
	}
	return errors.Join(errs...)
}

// Service returns the instance of the service with that name, or nil if the group has none.
func (g *Group) Service(name string) *Instance {
	for _, m := range g.members {
		if m.service.name == name {
			return m.instance
		}
	}
	return nil
}

// Ended returns a channel that is closed when nothing of the group is left.
func (g *Group) Ended() <-chan struct{} { return g.ended }

// Err returns the *Error of the service that failed, for which all others end, and nil if none has.
func (g *Group) Err() error {
	why := context.Cause(g.over)
	if errors.As(why, new(*Error)) || errors.As(why, new(*sandbox.OptionError)) {
		return why
	}
	return nil
}

// Close ends all services, if they have not ended, waits until nothing of them is left, and returns
// what Err returns. It may be called more than once.
func (g *Group) Close() error {
	g.end(errClosed)
	<-g.ended
	return g.Err()
}
