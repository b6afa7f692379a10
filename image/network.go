//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// network connects to a registry. It bounds the answers by what was asked for, the time that they
// take, and the addresses that they lead to.
type network struct {
	host            string // the registry's, as the caller named it
	direct, proxied *http.Transport
	patience        time.Duration

	mu  sync.Mutex
	own *reach // the registry's, once it was reached
}

// newNetwork uses certificates and the like from remote.DefaultTransport, which programs may have
// set. Its connections are its own.
func newNetwork(registry string, patience time.Duration) *network {
	n := &network{host: hostname(registry), patience: patience}
	base, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		base = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}
	}
	n.direct = base.Clone()
	n.direct.DisableCompression = true // blobs must arrive unchanged
	n.direct.MaxResponseHeaderBytes = maxAnswer
	n.proxied = n.direct.Clone()
	n.direct.Proxy, n.direct.DialContext = nil, n.dial
	n.direct.DialTLSContext = nil
	//lint:ignore SA1019 a program may have set it, and it would be used in place of DialContext
	n.direct.DialTLS = nil
	if addr, err := netip.ParseAddr(n.host); err == nil {
		own := reachOf(addr)
		n.own = &own
	}
	return n
}

func (n *network) close() {
	n.direct.CloseIdleConnections()
	n.proxied.CloseIdleConnections()
}

// hostname returns the host of "host", "host:port" or "[address]:port".
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.Trim(host, "[]")
}

type limitKey struct{}

// withLimit returns the context of a request for that many bytes. Without it, an answer has at most
// maxAnswer bytes: the registry's first greeting, a token, an error.
func withLimit(ctx context.Context, bytes int64) context.Context {
	return context.WithValue(ctx, limitKey{}, bytes)
}

// pauses are the pauses between tries.
var pauses = []time.Duration{time.Second, 3 * time.Second}

// RoundTrip tries again after errors that may be temporary.
func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	hops := 0
	for at := r; at != nil && at.Response != nil; at = at.Response.Request {
		if hops++; hops > maxHops {
			return nil, fmt.Errorf("%w: more than %d redirects", errHostile, maxHops)
		}
	}
	for try := 0; ; try++ {
		resp, err := n.once(r)
		if try == len(pauses) || r.Body != nil || !isPassing(resp, err) {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(pauses[try]):
		}
	}
}

// isPassing reports whether the next try may have another outcome.
func isPassing(resp *http.Response, err error) bool {
	if err != nil {
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func (n *network) once(r *http.Request) (*http.Response, error) {
	through, err := n.through(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	slow := time.AfterFunc(n.patience, func() { cancel(n.tooSlow()) })
	resp, err := through.RoundTrip(r.WithContext(ctx))
	slow.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	limit, asked := ctx.Value(limitKey{}).(int64)
	failed := resp.StatusCode != http.StatusOK
	if !asked || failed {
		limit = maxAnswer
	}
	resp.Body = &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, network: n, left: limit, limit: limit, failed: failed}
	return resp, nil
}

// through chooses between this machine's own network and the proxy of the environment. The proxy's
// own address is the caller's and always allowed. The proxy resolves names itself, so only
// addresses can be refused there, not names.
func (n *network) through(r *http.Request) (http.RoundTripper, error) {
	if n.proxied.Proxy == nil {
		return n.direct, nil
	}
	proxy, err := n.proxied.Proxy(r)
	if err != nil || proxy == nil {
		return n.direct, err
	}
	host := r.URL.Hostname()
	if strings.EqualFold(host, n.host) {
		return n.proxied, nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil && (strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")) {
		addr, err = netip.IPv6Loopback(), nil
	}
	if err == nil {
		return n.proxied, n.check(host, addr)
	}
	return n.proxied, nil
}

// minProgress is how much a registry must send within its patience.
const minProgress = 64 << 10

func (n *network) tooSlow() error {
	return fmt.Errorf("the registry sent less than %d bytes in %s", minProgress, n.patience)
}

// body is the body of an answer. It ends after the limit, with an error unless the answer is itself
// an error. Data that comes too slowly is an error; only the time that a reader waits counts.
type body struct {
	io.ReadCloser
	ctx         context.Context
	cancel      context.CancelCauseFunc
	network     *network
	left, limit int64
	failed      bool
	got         int64
	waited      time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	start := time.Now()
	slow := time.AfterFunc(b.network.patience-b.waited, func() { b.cancel(b.network.tooSlow()) })
	n, err := b.ReadCloser.Read(p)
	slow.Stop()
	b.waited += time.Since(start)
	if b.got += int64(n); b.got >= minProgress {
		b.got, b.waited = 0, 0
	}
	if b.left -= int64(n); b.left < 0 {
		if b.failed {
			return max(0, n+int(b.left)), io.EOF
		}
		return 0, fmt.Errorf("%w: the registry sends more than %d bytes", errHostile, b.limit)
	}
	if cause := context.Cause(b.ctx); err != nil && err != io.EOF && cause != nil {
		err = cause
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// dial connects to the registry, whatever its address is, and to the addresses that it leads to,
// unless they are nearer to this machine than its own.
func (n *network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	own := strings.EqualFold(hostname(addr), n.host)
	// Control sees the address that the name was resolved to, so it does not matter if it
	// resolves differently another time.
	d.ControlContext = func(_ context.Context, _, to string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		n.mu.Lock()
		first := own && n.own == nil
		n.mu.Unlock()
		if first {
			return nil
		}
		return n.check(addr, at.Addr())
	}
	conn, err := d.DialContext(ctx, network, addr)
	if err == nil && own {
		if to, parseErr := netip.ParseAddrPort(conn.RemoteAddr().String()); parseErr == nil {
			n.reached(to.Addr())
		}
	}
	return conn, err
}

// reached records where the registry is.
func (n *network) reached(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own == nil {
		own := reachOf(addr)
		n.own = &own
	}
}

// check refuses an address that is not public, unless the registry's own is of the same kind.
func (n *network) check(name string, addr netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if to := reachOf(addr); to != public && (n.own == nil || *n.own != to) {
		return fmt.Errorf("%w: the registry leads to %s, which is %s: a %s address", errHostile, name, addr, to)
	}
	return nil
}

// reach says from where an address can be reached.
type reach string

const (
	public    reach = "public"
	private   reach = "private"
	linkLocal reach = "link-local"
	loopback  reach = "loopback"
	group     reach = "multicast or reserved"
)

// special are the addresses that are not public: IANA's registries of special-purpose addresses
// (RFC 6890), except those for documentation, which nobody uses.
var special = []struct {
	reach    reach
	prefixes []netip.Prefix
}{
	{loopback, prefixes("0.0.0.0/8", "127.0.0.0/8", "::/127")},               // Linux takes 0.0.0.0 and :: for this machine
	{linkLocal, prefixes("169.254.0.0/16", "fe80::/10", "168.63.129.16/32")}, // the last is Azure's for what others have at 169.254.169.254
	{private, prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15",
		"fc00::/7", "fec0::/10", "64:ff9b:1::/48", "100::/64", "::/96")},
	{group, prefixes("224.0.0.0/4", "240.0.0.0/4", "ff00::/8")},
}

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// embedding are IPv6 addresses that a gateway translates to the IPv4 address in them, which begins
// at the given byte: NAT64 (RFC 6052) and 6to4 (RFC 3056).
var embedding = map[netip.Prefix]int{netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2}

func reachOf(addr netip.Addr) reach {
	addr = addr.WithZone("").Unmap()
	for prefix, at := range embedding {
		if b := addr.As16(); prefix.Contains(addr) {
			addr = netip.AddrFrom4([4]byte(b[at:]))
		}
	}
	for _, s := range special {
		if slices.ContainsFunc(s.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return s.reach
		}
	}
	return public
}
