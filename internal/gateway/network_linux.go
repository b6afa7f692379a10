package gateway

import (
	"sync"
	"time"

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
// its hostname, too, unless it may reach others by that.
func (n *Network) Join(c *cell.Cell, place *spec.Member, hostname string) (*Member, error) {
	g, err := n.gatewayIn(c)
	if err != nil {
		return nil, err
	}
	return g.take(place, hostname)
}

// gatewayIn returns the gateway of a cell, which it makes if there is none.
func (n *Network) gatewayIn(c *cell.Cell) (g *gateway, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errClosed()
	}
	if g = n.gateways[c]; g == nil {
		if g, err = newGateway(&n.config, n.roster, c); err != nil {
			return nil, err
		}
		n.gateways[c] = g
		go n.releaseLost(g)
	}
	return g, nil
}

// releaseLost releases a gateway when its cell has ended, which nobody else may learn of. By then
// what the cell's runs had sent is passed on.
func (n *Network) releaseLost(g *gateway) {
	select {
	case <-g.cell.Done():
	case <-g.ctx.Done():
		return
	}
	select {
	case <-time.After(drain + lingering):
		n.Release(g.cell)
	case <-g.ctx.Done():
	}
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

// Closed reports whether the network was closed.
func (n *Network) Closed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
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
