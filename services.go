package sandbox

import (
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/spec"
)

// networkConfig applies the options of a network.
func networkConfig(opts []NetworkOption) gateway.Config {
	c := gateway.Config{MaxConns: gateway.DefaultMaxConns}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	return c
}

// Private returns, for WithNetwork, a private network of one run. Each run of the sandbox has one
// of its own, made at its start and closed at its end; so has each that waits by WithPrepared, and
// each worker of a function. There it is called "run". It takes half as long again to start as a run
// on a network of NewNetwork. The observer is told of the last connections
// soon after Wait. Wrong options are *OptionErrors of Run and of what else starts runs.
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
