package sandbox

import (
	"strings"

	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/spec"
)

// networkConfig applies the options of a network.
func networkConfig(opts []NetworkOption) gateway.Config {
	c := gateway.Config{MaxConns: gateway.DefaultMaxConns, MaxNewConns: gateway.DefaultMaxNewConns}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	return c
}

// Private returns, for WithNetwork, a private network of one run. Each run of the sandbox has one
// of its own, made at its start and closed at its end; so has each that waits by WithPrepared, and
// each worker of a function. There it is called "run". It takes half as long again to start as a
// run on a network of NewNetwork. NetworkObserver is called for the last connections soon after
// Wait.
//
// Wrong options are *OptionErrors of Run and of what else starts runs.
func Private(opts ...NetworkOption) Network {
	c := networkConfig(opts)
	return member{Of: &c, Name: "run"}
}

// PlaceOption changes one thing of a run's place on a network.
type PlaceOption func(*spec.Member)

// Reaches limits which other runs of the network the run may open connections to, by TCP, UDP and
// ping: those that As gave one of the names, now or later, and none without names; each use adds
// some. The resolver answers for no others. The kernel's routes enforce it, so that what counts as
// an answer is told by its port: the run may send to those that may open connections to it, at
// their ports from 32768 to 60999, from which programs connect, and may ping them. A service that
// such runs must not reach has to listen below. What a network allows outside is not changed.
// Default: all runs of the network. It takes a kernel with CONFIG_IP_MULTIPLE_TABLES.
func Reaches(names ...string) PlaceOption {
	return func(m *spec.Member) {
		m.Limited = true
		for _, name := range names {
			m.Reaches += name + ","
		}
	}
}

// Aliases adds names by which other runs of the network find the run, besides that of As: 1 to 253
// of a-z, 0-9, -, _ and dots; another one is an *OptionError of the run. If several runs have the
// same name, it leads to all of them. Reaches does not know aliases. Those with a dot stay names of
// runs, which no pattern of AllowHost lets out, until the network is closed: the latest 4096 of
// those that no run has any more. Default: none.
func Aliases(names ...string) PlaceOption {
	return func(m *spec.Member) {
		for _, name := range names {
			m.Aliases += name + ","
		}
	}
}

// WithPublish passes what comes to an address of this machine on to a port of the run, as long as
// it lives: "127.0.0.1:8080" or "[::1]:8080", ":8080" for all of the machine's addresses, port 0
// for any that is free, which Process.Published returns. It is for TCP; with "/udp" after it, as
// for Docker ("127.0.0.1:5353/udp"), for UDP. The run must be on a private network and listen on
// its own address, or on 0.0.0.0; until it does, connections are reset and datagrams lost. It may
// have as many connections at a time as MaxConns says, besides its own; so many senders of UDP are
// told apart, each until it has sent nothing for a minute, or until nothing has passed for a
// second, if others wait for its place. Each use adds one. If this process can't listen there,
// Start fails with a *SetupError.
func WithPublish(address string, port int) Option {
	p := spec.Published{Address: address, Protocol: "tcp", Port: port}
	if a, protocol, given := strings.Cut(address, "/"); given {
		p.Address, p.Protocol = a, protocol
	}
	return func(c *spec.Spec) { c.Supervision.Publish = append(c.Supervision.Publish, p) }
}
