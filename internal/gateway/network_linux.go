package gateway

import (
	"sync"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Network is a network of runs. In each of their cells a gateway is made when the first of them
// needs it, which stays until the cell's end or Close.
type Network struct {
	config Config
	roster *roster

	mu       sync.Mutex
	gateways map[*cell.Cell]*gateway
	closed   bool
}

// New returns a network, of which nothing is made yet.
func New(c Config) (*Network, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &Network{config: c, roster: newRoster(&c), gateways: map[*cell.Cell]*gateway{}}, nil
}

// Join makes a network namespace for one run of the cell, with a way to the gateway, and gives it
// its place there. Others find the run by its names there once it is announced; it finds itself by
// its hostname, too, unless somebody else has that.
func (n *Network) Join(c *cell.Cell, place *spec.Member, hostname string) (*Member, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.gateways[c]
	if n.closed {
		return nil, errClosed()
	}
	if g == nil {
		var err error
		if g, err = newGateway(&n.config, n.roster, c); err != nil {
			return nil, err
		}
		n.gateways[c] = g
	}
	return g.take(place, hostname)
}

// IPv6 returns why runs on the network have IPv4 alone, as far as that is known.
func (n *Network) IPv6() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.gateways {
		return g.noIPv6
	}
	return nil
}

func errClosed() error { return fault.Option("WithNetwork", "the network was closed: make another") }

// Release closes the gateway that was made in the cell, which has ended or is about to.
func (n *Network) Release(c *cell.Cell) {
	n.mu.Lock()
	old := n.gateways[c]
	delete(n.gateways, c)
	n.mu.Unlock()
	old.close()
}

// Close takes the network away from its members, and admits no more.
func (n *Network) Close() {
	n.mu.Lock()
	old := n.gateways
	n.gateways, n.closed = nil, true
	n.mu.Unlock()
	for _, g := range old {
		g.close()
	}
}
