//go:build linux

package attack

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-first", sayFirst) }

// sayFirst connects to an address for each of the others, waits for a greeting, and sends what they
// are, in hexadecimal, in pieces that commas are between.
func sayFirst(args []string) error {
	network, at := runs.Over("tcp", args[0])
	for _, words := range args[1:] {
		conn, err := net.DialTimeout(network, at, 20*time.Second)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			return fmt.Errorf("no greeting: %w", err)
		}
		for piece := range strings.SplitSeq(words, ",") {
			b, err := hex.DecodeString(piece)
			if err != nil {
				return err
			}
			_, _ = conn.Write(b)
			time.Sleep(2 * time.Millisecond)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	return nil
}

// shared is a server of several sites, as those of large providers are.
type shared struct {
	mu    sync.Mutex
	asked []string // which site
}

func (s *shared) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprint(conn, "hi")
			r := bufio.NewReader(conn)
			if b, err := r.Peek(1); err == nil && b[0] == 22 {
				_ = tls.Server(buffered{conn, r}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
					s.add(h.ServerName)
					return nil, errors.New("seen")
				}}).Handshake()
			} else if request, err := http.ReadRequest(r); err == nil {
				s.add(request.Host)
			}
		}()
	}
}

type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func (s *shared) add(site string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, site)
}

// sites returns the sites that were asked for since the last time.
func (s *shared) sites() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.asked
	s.asked = nil
	slices.Sort(list)
	return slices.Compact(list)
}

// helloTo returns the first bytes of a client of TLS.
func helloTo(name string) []byte {
	near, far := net.Pipe()
	defer far.Close()
	go func() { _ = tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 8<<10)
	n, _ := far.Read(b)
	return b[:n]
}

func inPieces(b []byte, size int) string {
	var pieces []string
	for piece := range slices.Chunk(b, size) {
		pieces = append(pieces, hex.EncodeToString(piece))
	}
	return strings.Join(pieces, ",")
}

// A run that may reach one site of a server that has others too.
func TestAttackRootlessPrivateOtherSite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var server shared
	go server.serve(l)
	port := l.Addr().(*net.TCPAddr).Port
	other := helloTo("other.test")
	var attacks []string
	for _, b := range [][]byte{
		other,
		[]byte("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"),
		[]byte("\r\nBREW / HTTP/1.1\r\nX: y\r\nhost:other.test\r\n\r\n"),
		[]byte("GET http://other.test/ HTTP/1.1\r\nHost: one.test\r\n\r\n"),
		[]byte(strings.Repeat("x", 256) + " / HTTP/1.1\r\nHost: other.test\r\n\r\n"),
		slices.Concat([]byte{22, 1}, other[2:]),
	} {
		attacks = append(attacks, inPieces(b, len(b)), inPieces(b, len(b)/20), inPieces(b[:len(b)-1], len(b)))
	}
	record := append([]byte{22, 3, 1, 0, 1}, other[5])
	attacks = append(attacks, inPieces(slices.Concat(record, []byte{22, 3, 1, other[3], other[4] - 1}, other[6:]), 1<<10))

	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	say := func(at string, words ...string) *sandbox.Sandbox {
		return runs.Helper("private-first", append([]string{fmt.Sprintf("%s:%d", at, port)}, words...)...)
	}
	runs.Output(t, say("127.0.0.1", attacks...).With(sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Equal(t, []string{"other.test"}, server.sites(), "the attacks work")
	own := []byte("GET / HTTP/1.1\r\nHost: ONE.test.:80\r\n\r\n")
	for _, one := range runs.OverEach("tcp", "one.test") {
		refused := make(chan sandbox.Conn, 100)
		n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()),
			sandbox.NetworkObserver(func(c sandbox.Conn) {
				if c.Verdict == sandbox.Refused {
					refused <- c
				}
			}))
		require.NoError(t, err)
		defer n.Close()
		private := sandbox.WithNetwork(n.As("attacker"))
		runs.Output(t, say(one, inPieces(helloTo("one.test"), 50), inPieces(helloTo(""), 1<<10), inPieces(own, 4)).With(private))
		require.Equal(t, []string{"", "ONE.test.:80", "one.test"}, server.sites())
		require.Empty(t, refused)

		runs.Output(t, say(one, attacks...).With(private))
		require.Empty(t, server.sites())
		c := <-refused
		require.Equal(t, []any{"one.test", "one.test", "127.0.0.1"}, []any{c.Name, c.Rule, c.Address.Addr().String()})
		require.ErrorContains(t, c.Err, `"other.test", and not the name that was asked for`)
	}
}
