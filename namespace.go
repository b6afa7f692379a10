package sandbox

import (
	"fmt"
	"slices"
	"strings"
	"time"
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
	hostIDs  bool
	clocks   time.Duration
	groups   []int
	ofImage  imageUser
}

func (n *namespaceConfig) same(o *namespaceConfig) bool {
	return n.hostname == o.hostname && n.uid == o.uid && n.gid == o.gid && n.network == o.network && n.hostIDs == o.hostIDs &&
		n.clocks == o.clocks && slices.Equal(n.groups, o.groups) && n.ofImage.groups == o.ofImage.groups
}

const (
	userName    = "sandbox"
	maxHostname = 64    // sethostname(2)
	maxID       = 65533 // 65534 stands for ids that the run does not have

	maxGroups = 256 // keeps a run's program within one message

	maxTimeOffset = 146 * 365 * 24 * time.Hour // what the kernel allows: timens_offsets, KTIME_SEC_MAX / 2
)

// WithHostname sets what the run sees as the machine's name, 1 to 64
// characters of ASCII, of which none is a space, "/" or ":".
// Default: sandbox.
func WithHostname(name string) Option { return func(c *config) { c.namespace.hostname = name } }

// WithUser sets the ids that the command has inside the run, 0 to 65533.
// Outside they are ids that belong to no user and no other live run, where
// the machine has such ids to give, but for WithoutUserNamespace. 0:0 is the run's root, still without
// capabilities. Default: 1000:1000, named sandbox.
func WithUser(uid, gid int) Option {
	return func(c *config) {
		n := &c.namespace
		n.uid, n.gid = uid, gid
		if n.ofImage.groups {
			n.groups = nil // they are another user's
		}
		n.ofImage = imageUser{}
	}
}

// WithGroups sets the supplementary groups that the command has inside the run, up to 256 ids of 0
// to 65533, in place of those given before: what belongs to one of them it may use as the group's
// permissions say. A run has those groups that its user namespace maps: as root, or as a user with
// 4194304 ids in /etc/subgid, all of them; as an ordinary user with fewer, 0 and the group of
// WithUser; without any, none. Others are a *SetupError. With WithoutUserNamespace they are the
// host's groups, and 0 is refused. Default: none.
func WithGroups(gids ...int) Option {
	return func(c *config) { c.namespace.groups, c.namespace.ofImage.groups = slices.Clone(gids), false }
}

// WithNetwork sets what the run sees of networks. Default: NetworkNone.
func WithNetwork(n Network) Option { return func(c *config) { c.namespace.network = n } }

// WithTimeOffset moves the run's monotonic and boot clocks: what has happened so far on the machine seems to it to have taken d longer, or, if d is
// negative, shorter. Deadlines and intervals can so be tested at the ends of what clocks show, and a run can't tell how long the machine has been up.
// The time of day can't be moved: Linux has one for all namespaces (time_namespaces(7)).
// Up to 146 years; back no further than to the start of the machine, else Run fails with a *SetupError. It needs a kernel with time
// namespaces, which Linux 5.6 and later can be built with. Default: 0, the machine's own clocks.
func WithTimeOffset(d time.Duration) Option { return func(c *config) { c.namespace.clocks = d } }

// WithoutUserNamespace runs without the wall that user namespaces are, for machines where they are
// switched off (sysctl user.max_user_namespaces=0). It needs root. All other walls stand: the run has no capability
// in any set, no_new_privs, seccomp, and namespaces of its own of every other kind. But its
// user and group ids are the host's, and so:
//   - to the kernel it is the host's user of that id: it may use what that user may use of all it is shown, sockets and named
//     pipes in read-only binds too, shares that user's quotas (processes, inotify instances, pending signals, pipe buffers) with it and
//     with other runs of that id, and that user's own processes on the host may signal and trace it. With NetworkHost,
//     services that ask for a peer's user id take it for that user. Choose an id with
//     WithUser that nothing else on the machine has, best one for each run;
//   - what sets it up, up to its command, is root on the host, with some capabilities. What breaks out of the run into that
//     is root; with user namespaces it would be nobody.
//
// In binds and writable roots files keep their owners: a run with id 1000 can write what the host's user 1000
// may write there, and nothing else. Refused together with WithUser of uid or gid 0, with WithCapabilities, WithScratch, WithScratchRoot, WithTimeOffset and
// WithoutSeccomp. Such runs share a cell of their own; see CellWithoutUserNamespace.
func WithoutUserNamespace() Option { return func(c *config) { c.namespace.hostIDs = true } }

// checkHostIDs refuses what only the missing user namespace makes harmless.
func (c *config) checkHostIDs() (errs []error) {
	n := &c.namespace
	if !n.hostIDs {
		return nil
	}
	if n.uid == 0 || n.gid == 0 {
		errs = append(errs, n.subject().wrong("%d:%d: with WithoutUserNamespace that is the host's root, who owns its files: use %s", n.uid, n.gid, n.ofImage.remedy()))
	}
	if !n.ofImage.groups && slices.Contains(n.groups, 0) {
		errs = append(errs, optionError("WithGroups", "0: with WithoutUserNamespace that is the host's group of root, which may use what is root's: leave it out"))
	}
	if len(c.security.capabilities) > 0 {
		errs = append(errs, optionError("WithCapabilities", "with WithoutUserNamespace capabilities are the host's, and give power over all of it: leave one of the two out"))
	}
	if slices.ContainsFunc(c.root.mounts, func(m mount) bool { return m.kind == scratchMount }) {
		errs = append(errs, optionError("WithScratch", "with WithoutUserNamespace owners can't be mapped: leave one of the two out, or bind a directory that the run's user owns"))
	}
	if c.root.hasUpper {
		errs = append(errs, optionError("WithScratchRoot", "with WithoutUserNamespace owners can't be mapped: leave one of the two out, or use WithWritableRoot"))
	}
	if n.clocks != 0 {
		errs = append(errs, optionError("WithTimeOffset", "with WithoutUserNamespace that takes CAP_SYS_TIME, with which what sets up a run could set the host's clock: leave one of the two out"))
	}
	if c.security.noSeccomp {
		errs = append(errs, optionError("WithoutSeccomp", "with WithoutUserNamespace seccomp is what keeps a run from the host's keyrings and the kernel's rarer interfaces: leave one of the two out, or use WithSeccomp"))
	}
	return errs
}

func (n *namespaceConfig) check() (errs []error) {
	switch {
	case n.hostname == "":
		errs = append(errs, optionError("WithHostname", "the name is empty"))
	case len(n.hostname) > maxHostname:
		errs = append(errs, optionError("WithHostname", "%q is longer than %d bytes", n.hostname, maxHostname))
	case strings.ContainsFunc(n.hostname, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }):
		errs = append(errs, optionError("WithHostname", "%q contains a character that no host name has", n.hostname))
	}
	if most := n.maxID(); n.ofImage.err != nil {
		errs = append(errs, n.subject().wrong("%w: use WithUser", n.ofImage.err))
	} else if n.uid < 0 || n.uid > most || n.gid < 0 || n.gid > most {
		errs = append(errs, n.subject().wrong("%d:%d: ids go from 0 to %d", n.uid, n.gid, most))
	}
	if len(n.groups) > maxGroups {
		errs = append(errs, optionError("WithGroups", "%d groups, at most %d are possible", len(n.groups), maxGroups))
	}
	for _, gid := range n.groups {
		if gid < 0 || gid > n.maxID() {
			errs = append(errs, optionError("WithGroups", "%d: ids go from 0 to %d", gid, n.maxID()))
			break
		}
	}
	if n.clocks.Abs() > maxTimeOffset {
		errs = append(errs, optionError("WithTimeOffset", "%v is more than 146 years", n.clocks))
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
