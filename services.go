package sandbox

import (
	"github.com/cellkit/sandbox/internal/gateway"
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
