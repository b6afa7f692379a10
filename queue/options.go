package queue

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Option changes one thing of Open.
type Option func(*config)

type config struct {
	name      string
	dir       string
	syncEvery time.Duration
	listen    string
	serverTLS *tls.Config
	token     string // of those that connect to the server in this process
	lease     time.Duration
	retention time.Duration
	grace     time.Duration // blobGrace
	replicas  int           // 0: as the servers are a cluster
	blobBytes int64
	progress  func(Transfer)
	conn      []nats.Option
	log       *slog.Logger
	errs      []error
	server    []string // options given that are for a server in this process alone
}

// Name sets the queue's name, with which the names of its streams and subjects begin, so that
// servers may have several: 1 to 32 of a-z, 0-9 and -. Default: sandbox.
func Name(name string) Option { return func(c *config) { c.name = name } }

// Dir sets where a server in this process keeps its files; it is made if it is missing. Whoever can
// write there can do what workers may. Default: sandbox/queue in $XDG_STATE_HOME or ~/.local/state.
func Dir(dir string) Option {
	return func(c *config) { c.dir, c.server = dir, append(c.server, "queue.Dir") }
}

// SyncEvery has the server in this process sync its files so often instead of before each answer:
// tasks are submitted faster, and when the power fails or the kernel crashes, what was answered
// since is lost. docs/QUEUE.md has a table. Default, and 0: before each answer.
func SyncEvery(d time.Duration) Option {
	return func(c *config) { c.syncEvery, c.server = d, append(c.server, "queue.SyncEvery") }
}

// Listen has the server in this process listen on an address of TCP, such as "127.0.0.1:4222", for
// other processes, which open what URL returns. They need a token, which is made once and kept in
// the file token in Dir, for its owner to read. An address that is not a loopback one also needs
// ListenTLS. Default: it listens on nothing.
func Listen(address string) Option {
	return func(c *config) { c.listen, c.server = address, append(c.server, "queue.Listen") }
}

// ListenTLS sets the certificates of a server in this process that listens.
func ListenTLS(t *tls.Config) Option {
	return func(c *config) { c.serverTLS, c.server = t, append(c.server, "queue.ListenTLS") }
}

// TLS sets how to connect to servers elsewhere by TLS: which authorities to trust, and the
// certificate to show. Default: the system's authorities, if the URL begins with tls://.
func TLS(t *tls.Config) Option {
	return func(c *config) { c.conn = append(c.conn, nats.Secure(t)) }
}

// NKey sets the file of the seed of an nkey, by which the servers know this process. What they
// answer goes to subjects that begin with _INBOX and its public key, so that they can keep other
// users from it.
func NKey(file string) Option {
	return func(c *config) {
		o, err := nats.NkeyOptionFromSeed(file)
		c.user("queue.NKey", file, o, err)
	}
}

// Credentials sets the file of a user's JWT and nkey, as nsc makes it. Answers go to subjects of
// the nkey, as NKey says. The file is read again at each reconnect: a new JWT may be put there, but
// the nkey must stay.
func Credentials(file string) Option {
	return func(c *config) { c.user("queue.Credentials", file, nats.UserCredentials(file), nil) }
}

// user has the process connect as the user whose nkey is in a file.
func (c *config) user(option, file string, o nats.Option, err error) {
	var public string
	if err == nil {
		public, err = publicKey(file)
	}
	if err != nil {
		c.errs = append(c.errs, wrong(option, "%w", err))
		return
	}
	c.conn = append(c.conn, o, nats.CustomInboxPrefix("_INBOX."+public))
}

func publicKey(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	k, err := nkeys.ParseDecoratedNKey(b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	defer k.Wipe()
	return k.PublicKey()
}

// Lease sets for how long a worker that is not heard of keeps its task: the task of a worker that
// was killed starts again so much later. A worker counts with a second less, which a server that is
// started anew may forget: one that can't renew its lease kills the run after half of that, and a
// worker's process that can't even do that is killed by the kernel after three quarters. It is a
// property of the queue: the lease of one that is there stays. 3 s to 1 h. Default: 15 s.
func Lease(d time.Duration) Option { return func(c *config) { c.lease = d } }

// Retention sets for how long results, dead letters and what was logged are kept, and so for how
// long a task that is submitted again with the same key is the same. A property of the queue, as
// Lease is. A minute or more. Default: 7 days.
func Retention(d time.Duration) Option { return func(c *config) { c.retention = d } }

// Replicas sets on how many servers each record is: 1, 3 or 5. With 3, one of them may be lost,
// with 5 two: a record is answered when most of them have it. A property of the queue, as Lease is.
// Default: 3 on a cluster, which must have as many; 1 on a server that is none.
func Replicas(n int) Option { return func(c *config) { c.replicas = n } }

// BlobBytes limits how many bytes the contents of inputs and outputs that are kept take together.
// Submit and the task that would go beyond fail. A property of the queue, as Lease is. Default:
// 16 GiB.
func BlobBytes(n int64) Option { return func(c *config) { c.blobBytes = n } }

const (
	minLease, maxLease = 3 * time.Second, time.Hour
	minRetention       = time.Minute
)

// schemes are those that NATS knows.
var schemes = []string{"nats", "tls", "ws", "wss"}

var tokenPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func newConfig(url string, opts []Option) (config, error) {
	c := config{name: "sandbox", lease: 15 * time.Second, retention: 7 * 24 * time.Hour, grace: blobGrace, blobBytes: 16 << 30, log: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		if o != nil {
			o(&c)
		}
	}
	check := func(ok bool, option, format string, args ...any) {
		if !ok {
			c.errs = append(c.errs, wrong(option, format, args...))
		}
	}
	check(tokenPattern.MatchString(c.name), "queue.Name", "%q: a name is 1 to 32 of a-z, 0-9 and -", c.name)
	check(c.lease >= minLease && c.lease <= maxLease, "queue.Lease", "%v: must be 3s to 1h: workers count with a second less", c.lease)
	check(c.retention >= minRetention, "queue.Retention", "%v: must be a minute or more", c.retention)
	check(c.replicas == 0 || c.replicas == 1 || c.replicas == 3 || c.replicas == 5, "queue.Replicas", "%d: must be 1, 3 or 5", c.replicas)
	check(c.blobBytes > 0, "queue.BlobBytes", "%d: must be positive", c.blobBytes)
	check(c.syncEvery >= 0, "queue.SyncEvery", "%v: must not be negative", c.syncEvery)
	if url != "" {
		for server := range strings.SplitSeq(url, ",") {
			scheme, _, given := strings.Cut(strings.TrimSpace(server), "://")
			check(!given || slices.Contains(schemes, scheme), "queue.Open", "%q is no scheme of NATS: a URL is like nats://host:4222 or tls://host", scheme)
		}
		for _, o := range c.server {
			check(false, o, "is for a server in this process, which the URL \"\" asks for")
		}
		return c, errors.Join(c.errs...)
	}
	check(len(c.conn) == 0, "queue.TLS", "and NKey and Credentials are for servers elsewhere, whose URL is to be given")
	check(c.replicas <= 1, "queue.Replicas", "%d: a server in this process is one", c.replicas)
	c.replicas = 1
	check(c.serverTLS == nil || c.listen != "", "queue.ListenTLS", "the server listens on nothing: set Listen too")
	if c.listen != "" {
		a, err := netip.ParseAddrPort(c.listen)
		check(err == nil, "queue.Listen", "%q: must be an address and a port, such as 127.0.0.1:4222", c.listen)
		check(err != nil || a.Addr().IsLoopback() || c.serverTLS != nil, "queue.Listen", "%s can be reached from other machines, which takes ListenTLS", c.listen)
	}
	if c.dir == "" {
		c.dir = defaultDir()
		check(c.dir != "", "queue.Dir", "there is no home directory: set one")
	}
	return c, errors.Join(c.errs...)
}

func defaultDir() string {
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "sandbox", "queue")
	}
	home, err := os.UserHomeDir()
	if err != nil || strings.TrimSpace(home) == "" {
		return ""
	}
	return filepath.Join(home, ".local", "state", "sandbox", "queue")
}
