package sandbox

import (
	"fmt"
	"strings"
)

// Network is what a run sees of networks.
type Network int

const (
	// NetworkNone gives a run a network of its own with nothing in it but a
	// loopback interface. The default.
	NetworkNone Network = iota
	// NetworkHost gives a run the host's network: its interfaces, its ports,
	// its abstract unix sockets. Such runs share a cell of their own.
	NetworkHost
)

func (n Network) String() string {
	switch n {
	case NetworkNone:
		return "none"
	case NetworkHost:
		return "host"
	}
	return "unknown"
}

type namespaceConfig struct {
	hostname string
	uid, gid int
	network  Network
}

const (
	userName    = "sandbox"
	maxHostname = 64    // sethostname(2)
	maxID       = 65533 // 65534 stands for ids that the run does not have
)

// WithHostname sets what the run sees as the machine's name, 1 to 64
// characters of ASCII, of which none is a space, "/" or ":".
// Default: sandbox.
func WithHostname(name string) Option { return func(c *config) { c.namespace.hostname = name } }

// WithUser sets the ids that the command has inside the run, 0 to 65533.
// Outside they are ids that belong to no user and no other live run, where
// the machine has such ids to give. 0:0 is the run's root, still without
// capabilities. Default: 1000:1000, named sandbox.
func WithUser(uid, gid int) Option {
	return func(c *config) { c.namespace.uid, c.namespace.gid = uid, gid }
}

// WithNetwork sets what the run sees of networks. Default: NetworkNone.
func WithNetwork(n Network) Option { return func(c *config) { c.namespace.network = n } }

func (n *namespaceConfig) check() (errs []error) {
	switch {
	case n.hostname == "":
		errs = append(errs, optionError("WithHostname", "the name is empty"))
	case len(n.hostname) > maxHostname:
		errs = append(errs, optionError("WithHostname", "%q is longer than %d bytes", n.hostname, maxHostname))
	case strings.ContainsFunc(n.hostname, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }):
		errs = append(errs, optionError("WithHostname", "%q contains a character that no host name has", n.hostname))
	}
	if n.uid < 0 || n.uid > maxID || n.gid < 0 || n.gid > maxID {
		errs = append(errs, optionError("WithUser", "%d:%d: ids go from 0 to %d", n.uid, n.gid, maxID))
	}
	if err := n.network.check(); err != nil {
		errs = append(errs, optionError("WithNetwork", "%w", err))
	}
	return errs
}

func (n Network) check() error {
	if n != NetworkNone && n != NetworkHost {
		return fmt.Errorf("%d is neither NetworkNone nor NetworkHost", int(n))
	}
	return nil
}
