package gateway

import (
	"sync"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Network is a network whose members are runs of one cell. Its gateway is made when the first of
// them needs it, and stays until the cell's end or Close.
type Network struct {
	config Config

	mu      sync.Mutex
	gateway *gateway
	closed  bool
}

// New returns a network, of which nothing is made yet.
func New(c Config) (*Network, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &Network{config: c}, nil
}

// Join makes a network namespace for one run of the cell, with a way to the gateway, and gives it
// its place there. Others find the run by the name once it is announced.
func (n *Network) Join(c *cell.Cell, place *spec.Member) (*Member, error) {
	var old *gateway
	defer func() { old.close() }() // which waits for observers, without the lock
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gateway != nil && n.gateway.cell != c && n.gateway.isEmpty() {
		old, n.gateway = n.gateway, nil
	}
	if err := n.ready(c); err != nil {
		return nil, err
	}
	return n.gateway.take(place)
}

// ready makes the gateway unless it is there. n.mu must be held.
func (n *Network) ready(c *cell.Cell) (err error) {
	switch {
	case n.closed:
		return errClosed()
	case n.gateway != nil && n.gateway.cell == c:
		return nil
	case n.gateway != nil:
		return fault.Option("WithNetwork", "runs of another cell are on the network: use the same cell for all, or a network for each")
	}
	n.gateway, err = newGateway(&n.config, c)
	return err
}

// IPv6 returns why runs on the network have IPv4 alone, as far as that is known.
func (n *Network) IPv6() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gateway == nil {
		return nil
	}
	return n.gateway.noIPv6
}

func errClosed() error { return fault.Option("WithNetwork", "the network was closed: make another") }

// Release closes the gateway if it was made in the cell, which has ended or is about to.
func (n *Network) Release(c *cell.Cell) {
	var old *gateway
	n.mu.Lock()
	if n.gateway != nil && n.gateway.cell == c {
		old, n.gateway = n.gateway, nil
	}
	n.mu.Unlock()
	old.close()
}

// Close takes the network away from its members, and admits no more.
func (n *Network) Close() {
	n.mu.Lock()
	old := n.gateway
	n.gateway, n.closed = nil, true
	n.mu.Unlock()
	old.close()
}
