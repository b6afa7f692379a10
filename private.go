package sandbox

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/spec"
)

// PrivateNetwork is a network of runs, which reach from it what its options list, and nothing else.
// Runs are on it with WithNetwork(n.As(name)). It works as root and as an ordinary user. Nothing of
// it exists while no run needs it, and nothing leads out of it when this process has died.
// docs/PRIVATE_NETWORKS.md says how it works and what it promises.
type PrivateNetwork struct{ is *networkImpl }

// NetworkOption changes one thing of a private network.
type NetworkOption func(*gateway.Config)

// NewNetwork describes a private network. Without options its runs reach nothing. The error is the
// *OptionErrors of wrong options, joined.
func NewNetwork(opts ...NetworkOption) (*PrivateNetwork, error) {
	is, err := newNetwork(networkConfig(opts))
	if err != nil {
		return nil, err
	}
	return &PrivateNetwork{is}, nil
}

// As returns a place on the network, for WithNetwork, with a name of 1 to 63 of a-z, 0-9, - and _.
// By this name, and the same with ".internal" after it, the other runs of the network find the run
// from its start to its end, at an address of its own, and may use all of its ports, as it may use
// theirs. If several runs have the same name, it leads to all of them. Aliases adds names, and
// Reaches limits which others it reaches. The run finds itself, by its name and by that of
// WithHostname, unless others have that, which it may reach, at the same address. They may be of
// several cells; what those send each other passes through this process.
func (n *PrivateNetwork) As(name string, opts ...PlaceOption) Network {
	m := spec.Member{Name: name}
	if n != nil && n.is != nil {
		m.Of = n.is
	}
	for _, opt := range opts {
		if opt != nil {
			opt(&m)
		}
	}
	return member(m)
}

// Close takes the network away from the runs that are on it, which go on with their loopback alone.
// Later runs on it fail with an *OptionError. What is left of a network that is not closed ends
// with its runs' cell, as for Shutdown.
func (n *PrivateNetwork) Close() error {
	if n == nil || n.is == nil {
		return errors.New("sandbox: Close: the network was not made by NewNetwork: look at the error of that")
	}
	closeNetwork(n.is)
	return nil
}

type member spec.Member

func (m member) String() string { return m.Name }

func (m member) set(c *spec.Spec) {
	c.Namespaces.Network, c.Place.Member = spec.NetworkPrivate, spec.Member(m)
}

// MaxConns sets how many connections each run of the network may have at a time, 1 to 65536. What a
// port of the run and one of a host send each other by UDP is one, too. Each takes two to six
// descriptors of this process. More are reset. Default: 256.
func MaxConns(n int) NetworkOption { return func(c *gateway.Config) { c.MaxConns = n } }

// NetworkResolver sets what looks names up when runs connect to them. Default: net.DefaultResolver.
func NetworkResolver(r *net.Resolver) NetworkOption {
	return func(c *gateway.Config) { c.Resolver = r }
}

// NetworkObserver calls f for each connection of a run through the network when that is over or was
// refused, and once in a run for each name that it was refused, and for each destination at a port
// that no option lists, which the kernel refuses; 4096 of each at most in six minutes. Of
// connections over MaxConns those are left out that come while another is being told. It is called
// by several goroutines at a time, each of which waits for it. It must not call this package, which
// may wait for it as well. It takes a kernel with packet sockets (CONFIG_PACKET), as distributions
// have it, and CAP_NET_RAW where there is no user namespace.
func NetworkObserver(f func(Conn)) NetworkOption {
	return func(c *gateway.Config) {
		if c.Observe = nil; f == nil {
			return
		}
		c.Observe = func(conn gateway.Conn) {
			f(Conn{conn.Run, conn.Name, conn.Port, conn.Address, conn.Sent, conn.Received, conn.Begin, conn.Duration, conn.Published, conn.UDP(), conn.Ping(), Verdict(conn.Verdict), conn.Rule, conn.Err})
		}
	}
}

// Verdict is what became of a connection.
type Verdict int

const (
	// Allowed means that there was a connection.
	Allowed Verdict = iota
	// Refused means that no rule allows it, that the run showed the server another name than
	// the one that it asked for, that a response showed a secret of InjectHeader or could not
	// be searched for it, or that MaxConns or MaxNewConns was reached.
	Refused
	// Failed means that it is allowed, but the name could not be looked up, or the host did not
	// answer.
	Failed
)

func (v Verdict) String() string { return gateway.Verdict(v).String() }

// Conn is a connection of a run through a private network, or a name that was refused.
type Conn struct {
	Run      string         // the name that As gave the run
	Name     string         // that was asked for, "" if the run used an address
	Port     uint16         // 0 if a name was refused
	Address  netip.AddrPort // of the other side, not valid if none was found
	Sent     int64          // bytes from the run
	Received int64          // bytes to the run
	Begin    time.Time
	Duration time.Duration
	// Published means that the connection came in, through WithPublish, to Port.
	Published bool
	// UDP means datagrams between two addresses and ports, until there were none for 30
	// seconds, or for two minutes if there was an answer; with Published, until the other side
	// has sent none for a minute.
	UDP bool
	// Ping means echo requests to an address, until there were none for 30 seconds, and their
	// answers. Port is 0.
	Ping    bool
	Verdict Verdict
	Rule    string // the name or addresses of the option that allows it, as given there
	Err     error  // why it is not Allowed, or was cut off
}
