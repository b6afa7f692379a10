package sandbox

import (
	"slices"
	"time"

	"github.com/cellkit/sandbox/internal/spec"
)

// Network is what a run sees of networks: NetworkNone, NetworkNew, NetworkHost, or a place on a
// private network, which PrivateNetwork.As returns.
type Network interface {
	String() string
	set(c *spec.Spec)
}

type network int

const (
	// NetworkNone gives a run a network of its own with nothing in it but a loopback interface.
	// The default. Its namespace may have been that of a run before, which has ended, if
	// neither of them has a capability or a seccomp profile or filter that is not the default
	// one, and if the namespace is as it was when it was new: docs/NETWORK.md says what is
	// compared and why.
	NetworkNone network = iota
	// NetworkHost gives a run the host's network: its interfaces, its ports, its abstract unix
	// sockets. Such runs share a cell of their own.
	NetworkHost
	// NetworkNew is NetworkNone in a namespace that is made for this run, and that no other run
	// is ever in. It takes longer.
	NetworkNew
)

func (n network) String() string { return spec.Network(n).String() }

func (n network) set(c *spec.Spec) {
	c.Namespaces.Network, c.Place.Member = spec.Network(n), spec.Member{}
}

// WithHostname sets what the run sees as the machine's name, 1 to 64 ASCII characters, none of
// which is a space, "/" or ":". Default: sandbox.
func WithHostname(name string) Option { return func(c *spec.Spec) { c.Namespaces.Hostname = name } }

// WithUser sets the ids that the command has inside the run, 0 to 65533. On the host they are ids
// that belong to no user and no other live run, if the machine has such ids to give, except with
// WithoutUserNamespace. 0:0 is the run's root, still without capabilities. Default: 1000:1000,
// named sandbox.
func WithUser(uid, gid int) Option {
	return func(c *spec.Spec) {
		n := &c.Namespaces
		n.UID, n.GID = uid, gid
		if n.Image.Groups {
			n.Groups = nil // they were those of another user
		}
		n.Image = spec.ImageUser{}
	}
}

// WithGroups sets the supplementary groups that the command has inside the run, up to 256 ids of 0
// to 65533, in place of those given before: files that belong to one of them it may use as the
// group's permissions allow. A run has those groups that its user namespace maps: as root, or as a
// user with 4194304 ids in /etc/subgid, all of them; as an ordinary user with fewer, 0 and the
// group of WithUser; without any, none. Others are a *SetupError. With WithoutUserNamespace they
// are the host's groups, and 0 is refused. Default: none.
func WithGroups(gids ...int) Option {
	return func(c *spec.Spec) { c.Namespaces.Groups, c.Namespaces.Image.Groups = slices.Clone(gids), false }
}

// WithNetwork sets what the run sees of networks. Default: NetworkNone.
func WithNetwork(n Network) Option {
	return func(c *spec.Spec) {
		if n == nil {
			n = network(-1) // which is refused
		}
		n.set(c)
	}
}

// WithTimeOffset moves the run's monotonic and boot clocks: to the run the machine seems to have
// been up for d longer, or, if d is negative, for less. So deadlines and intervals can be tested at
// the limits of what clocks show, and a run can't tell how long the machine has been up. The time
// of day can't be moved: Linux has one for all namespaces (time_namespaces(7)). Up to 146 years;
// back no further than to the start of the machine, else Run fails with a *SetupError. It needs a
// kernel with time namespaces, which Linux 5.6 and later can be built with. Default: 0, the
// machine's own clocks.
func WithTimeOffset(d time.Duration) Option { return func(c *spec.Spec) { c.Namespaces.Clocks = d } }

// WithoutUserNamespace makes runs without a user namespace, for machines on which these are
// switched off (sysctl user.max_user_namespaces=0). It needs root. All other protections stay: the
// run has no capability in any set, no_new_privs, a seccomp filter, and namespaces of its own of
// every other kind. But its user and group ids are the host's, which means:
//   - To the kernel the run is the host's user of that id. It may use what that user may use of all
//     that it is shown, including sockets and named pipes in read-only binds. It shares that user's
//     quotas (processes, inotify instances, pending signals, pipe buffers) with that user and with
//     other runs of that id. That user's own processes on the host may signal and trace it. With
//     NetworkHost, services that ask for a peer's user id take it for that user. Choose an id with
//     WithUser that nothing else on the machine has, best a different one for each run.
//   - What sets the run up, until its command is executed, is root on the host, with some
//     capabilities. What breaks out of the run into that is root; with user namespaces it would be
//     nobody.
//
// In binds and writable roots files keep their owners: a run with id 1000 can write what the host's
// user 1000 may write there, and nothing else. It can't be combined with WithUser of uid or gid 0,
// WithCapabilities, WithScratch, WithScratchRoot, WithTimeOffset or WithoutSeccomp. Such runs share
// a cell of their own; see CellWithoutUserNamespace.
func WithoutUserNamespace() Option { return func(c *spec.Spec) { c.Namespaces.HostIDs = true } }
