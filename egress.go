package sandbox

import "github.com/cellkit/sandbox/internal/gateway"

// Bandwidth limits what the runs of the network send to the outside and get from there, by TCP and
// UDP and also through WithPublish, to so many bytes per second each way, for all of them together
// and within a tenth. Their connections take turns. Not limited is what runs send each other, which
// the kernel forwards. 0 is no limit, the default.
func Bandwidth(bytesPerSecond int64) NetworkOption {
	return func(c *gateway.Config) { c.Bandwidth = bytesPerSecond }
}

// RunBandwidth is Bandwidth for each run by itself. With both, each holds.
func RunBandwidth(bytesPerSecond int64) NetworkOption {
	return func(c *gateway.Config) { c.RunBandwidth = bytesPerSecond }
}

// MaxNewConns sets how many connections each run of the network may begin in a second, and as many
// that come in to it, 1 to 1000000. More are reset. It may begin the connections of one second at
// once. Default: 1000.
func MaxNewConns(perSecond int) NetworkOption {
	return func(c *gateway.Config) { c.MaxNewConns = perSecond }
}
