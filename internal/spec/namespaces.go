package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Namespaces is what a run has of its own of what the kernel has one of.
type Namespaces struct {
	Hostname string
	UID, GID int
	Groups   []int // supplementary
	Network  Network
	HostIDs  bool          // there is no user namespace
	Clocks   time.Duration // that the monotonic and boot clocks are ahead
	Image    ImageUser
}

// Resolver is the address at which runs on private networks ask for names.
const Resolver = "198.18.0.1"

// Network is sandbox.Network.
type Network int

const (
	NetworkNone    Network = iota // loopback alone
	NetworkHost                   // the host's
	NetworkNew                    // as NetworkNone, in a namespace that no run was in before
	NetworkPrivate                // that of Place.Member
)

func (n Network) String() string {
	switch n {
	case NetworkNone:
		return "none"
	case NetworkHost:
		return "host"
	case NetworkNew:
		return "new"
	case NetworkPrivate:
		return "private"
	}
	return "unknown"
}

// Check refuses what is no Network.
func (n Network) Check() error {
	if n < NetworkNone || n > NetworkPrivate {
		return errors.New("nil is no network: NetworkNone is the default")
	}
	return nil
}

// Equal reports whether both have the same namespaces.
func (n *Namespaces) Equal(o *Namespaces) bool {
	return n.Hostname == o.Hostname && n.UID == o.UID && n.GID == o.GID && slices.Equal(n.Groups, o.Groups) && n.Network == o.Network &&
		n.HostIDs == o.HostIDs && n.Clocks == o.Clocks && n.Image == o.Image
}

const (
	// MaxID is the largest id of an option: 65534 stands for ids that the run does not have.
	MaxID = 65533

	maxHostname   = 64                         // sethostname(2)
	maxGroups     = 256                        // keeps a run's program within one message
	maxTimeOffset = 146 * 365 * 24 * time.Hour // what the kernel allows: timens_offsets, KTIME_SEC_MAX / 2
)

func (n *Namespaces) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, fault.Option(option, format, args...))
	}
	if why := checkHostname(n.Hostname); why != nil {
		bad("WithHostname", "%w", why)
	}
	most := n.maxID()
	if n.Image.Err != nil {
		errs = append(errs, n.subject().Wrong("%w: use WithUser", n.Image.Err))
	} else if n.UID < 0 || n.UID > most || n.GID < 0 || n.GID > most {
		errs = append(errs, n.subject().Wrong("%d:%d: ids go from 0 to %d", n.UID, n.GID, most))
	}
	if len(n.Groups) > maxGroups {
		bad("WithGroups", "%d groups, at most %d are possible", len(n.Groups), maxGroups)
	}
	if i := slices.IndexFunc(n.Groups, func(gid int) bool { return gid < 0 || gid > most }); i >= 0 {
		bad("WithGroups", "%d: ids go from 0 to %d", n.Groups[i], most)
	}
	if n.Clocks.Abs() > maxTimeOffset {
		bad("WithTimeOffset", "%v is more than 146 years", n.Clocks)
	}
	if err := n.Network.Check(); err != nil {
		bad("WithNetwork", "%w", err)
	}
	return errs
}

func checkHostname(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > maxHostname:
		return fmt.Errorf("%q is longer than %d bytes", name, maxHostname)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }):
		return fmt.Errorf("%q contains a character that no host name has", name)
	}
	return nil
}
