//go:build linux

package run

import (
	"errors"
	"net/netip"
	"os"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/hint"
)

// joinNetwork gives the run its place on a private network, if it is to be on one.
func (r *clone) joinNetwork() (err error) {
	m := &r.spec.Place.Member
	n, ok := m.Of.(*gateway.Network)
	if c, alone := m.Of.(*gateway.Config); alone {
		if n, err = gateway.New(*c); err != nil {
			return err
		}
		r.alone = n
	} else if !ok {
		return nil
	}
	r.engine.networks.add(n)
	defer func() {
		if n.Closed() { // maybe before it was added
			r.engine.networks.remove(n)
		}
	}()
	var wrong *fault.OptionError
	if r.member, err = n.Join(r.cell, m, r.spec.Namespaces.Hostname); err != nil && !errors.Is(err, cell.ErrLost) && !errors.As(err, &wrong) {
		return &fault.SetupError{Stage: "private network", Err: err, Hint: hint.Private(err)}
	}
	return err
}

// publish publishes what the options say. Others find the run by its name from now on.
func (r *Run) publish() error {
	if r.member == nil {
		return nil
	}
	if err := r.member.Err(); err != nil {
		return err
	}
	r.member.ReadyWhen(r.spec.Supervision.Ready)
	for _, p := range r.spec.Supervision.Publish {
		at, err := r.member.Publish(p)
		if err != nil {
			return &fault.SetupError{Stage: "WithPublish", Err: err, Hint: "choose an address of this machine whose port is free and may be used by this user, or port 0 for any"}
		}
		r.published = append(r.published, at)
	}
	r.member.Announce()
	return nil
}

// Published returns the addresses at which the run is published, in the order of the options.
func (r *Run) Published() []netip.AddrPort { return r.published }

// namespace returns the network namespace that the run begins in, nil for one of its own making.
func (r *clone) namespace() (ns *os.File, done func(), err error) {
	switch {
	case r.member != nil:
		return r.member.Namespace(), func() {}, nil
	case r.network != nil:
		if ns, err = r.network.Open(); err != nil {
			return nil, nil, &fault.SetupError{Stage: "network namespace", Err: err}
		}
		return ns, func() { ns.Close() }, nil
	}
	return nil, func() {}, nil
}

// leaveNetwork takes the run from its private network.
func (r *clone) leaveNetwork() {
	if r.member != nil {
		r.member.Leave()
	}
	if r.alone != nil {
		r.engine.CloseNetwork(r.alone)
	}
}

// CloseNetwork closes a private network.
func (e *Engine) CloseNetwork(n *gateway.Network) {
	n.Close()
	e.networks.remove(n)
}

// leaveNetworks closes what private networks have in a cell that has ended.
func (e *Engine) leaveNetworks(c *cell.Cell) {
	for _, n := range e.networks.list() {
		n.Release(c)
	}
}
