//go:build linux

package attack

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("inject-say", runs.SayHTTP) }

// talkative is a server that shows what it got in every way that it can.
type talkative struct {
	mu     sync.Mutex
	denied []string // the credentials of requests that had others than the right ones
}

const injected = "tok-5hJ3xY8pLq0Zr7Wd"

func (s *talkative) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// As programs see headers that are variables, in which - and _ are one.
	var has []string
	for name, values := range r.Header {
		if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), "X-Api-Key") {
			has = append(has, values...)
		}
	}
	_, _ = io.Copy(io.Discard, r.Body)
	for _, values := range r.Trailer {
		has = append(has, values...)
	}
	if len(has) != 1 || has[0] != injected || !strings.HasPrefix(r.Host, runs.SecureName) {
		s.mu.Lock()
		s.denied = append(s.denied, fmt.Sprint(r.URL.Path, r.Host, has))
		s.mu.Unlock()
	}
	key := r.Header.Get("X-Api-Key")
	half := min(len(key), len(injected)/2)
	flush := func() { _ = http.NewResponseController(w).Flush() }
	switch r.URL.Path {
	case "/body":
		fmt.Fprint(w, "key: "+key)
	case "/pieces":
		for _, b := range key {
			fmt.Fprint(w, string(b))
			flush()
			time.Sleep(time.Millisecond)
		}
	case "/head":
		w.Header().Set("Set-Cookie", "a="+key)
	case "/name":
		w.Header()["X-"+textproto.CanonicalMIMEHeaderKey(key)] = []string{"y"}
	case "/moved":
		http.Redirect(w, r, "http://example.com/?"+key, http.StatusFound)
	case "/early":
		w.Header().Set("Link", key)
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
	case "/trailer":
		w.Header().Set("Trailer", "X-Key")
		flush()
		w.Header().Set("X-Key", key)
		w.Header().Set(http.TrailerPrefix+"X-Other", key)
	case "/range":
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", 4096)+key))
	case "/gzip":
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") || r.URL.RawQuery == "always" {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprint(z, key)
			z.Close()
		}
	case "/reason", "/broken", "/upgrade":
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		switch r.URL.Path {
		case "/reason":
			fmt.Fprintf(conn, "HTTP/1.1 200 %s\r\nContent-Length: 2\r\n\r\nhi", key)
		case "/broken": // in the middle of it
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n%s", key[:half])
		default:
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\n%s", key)
		}
	}
}

func (s *talkative) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.denied
	s.denied = nil
	return list
}

// shows reports whether an answer has half of the secret or more, compressed or not.
func shows(answer string) bool {
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	if z, err := gzip.NewReader(strings.NewReader(body[max(0, strings.Index(body, "\x1f\x8b")):])); err == nil && strings.Contains(head, "gzip") {
		b, _ := io.ReadAll(z)
		answer += string(b)
	}
	answer = strings.ToLower(withoutChunks(answer))
	return strings.Contains(answer, strings.ToLower(injected[:len(injected)/2])) || strings.Contains(answer, strings.ToLower(injected[len(injected)/2:]))
}

// withoutChunks takes what is between the bytes of "/pieces" away.
func withoutChunks(answer string) string { return strings.ReplaceAll(answer, "\r\n1\r\n", "") }

// A run asks a server, of which it may use a secret without knowing it, to show that, and tries to
// have others used in its place.
func TestAttackRootlessPrivateInject(t *testing.T) {
	server := &talkative{}
	port, opts := runs.NewSecure(t, server)
	request := func(first string, lines ...string) string {
		return first + " HTTP/1.1\r\n" + strings.Join(append(lines, "Host: example.com"), "\r\n") + "\r\nConnection: close\r\n\r\n"
	}
	show := []string{request("GET /body"), request("GET /pieces"), request("GET /head"), request("GET /name"), request("GET /moved"), request("GET /early"), request("GET /trailer", "TE: trailers"),
		request("GET /range", "Range: bytes=4096-4106"), request("GET /range", "Range: bytes=4106-"), request("GET /gzip", "Accept-Encoding: gzip"), request("GET /gzip?always"),
		request("GET /broken"), request("GET /upgrade", "Connection: Upgrade", "Upgrade: any")}
	replace := []string{request("GET /", "Connection: X-Api-Key"), request("GET /", "X_Api_Key: mine"), request("GET /", "x-api-KEY: mine", "X_API-Key: mine"),
		"GET /other HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n", "GET http://other.test/ HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"}
	more := []string{request("GET /reason"), request("TRACE /body"), request("CONNECT example.com:443"),
		"POST / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nTrailer: X-Api-Key\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Api-Key: mine\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.test\r\n\r\n"}

	// The control is a proxy as one writes it down.
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "https", fmt.Sprintf("127.0.0.1:%d", port)
	},
		FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	naive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X-Api-Key", injected)
		proxy.ServeHTTP(w, r)
	}))
	defer naive.Close()
	say := func(at string, network sandbox.Network, requests []string) []string {
		out := runs.Output(t, runs.Helper("inject-say", append([]string{at}, requests...)...).With(sandbox.WithNetwork(network)))
		return strings.Split(out, strings.TrimSuffix(runs.AnswerEnd, "\n"))[:len(requests)]
	}
	for i, answer := range say(naive.Listener.Addr().String(), sandbox.NetworkHost, show) {
		require.True(t, shows(answer), "the attack works: %q: %q", show[i], answer)
	}
	server.take()
	say(naive.Listener.Addr().String(), sandbox.NetworkHost, replace)
	require.Len(t, server.take(), len(replace), "the attacks work")

	zone := testkit.NewZone(t, map[string]string{runs.SecureName: "127.0.0.1", "other.test": "127.0.0.1"})
	var mu sync.Mutex
	var told bytes.Buffer
	n, err := sandbox.NewNetwork(append(opts, sandbox.InjectHeader(fmt.Sprintf("%s:%d", runs.SecureName, port), "X-Api-Key", injected), sandbox.NetworkResolver(zone.Resolver()),
		sandbox.NetworkObserver(func(c sandbox.Conn) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&told, "%+v\n", c)
		}))...)
	require.NoError(t, err)
	defer n.Close()
	all := append(append(show, replace...), more...)
	for _, at := range runs.OverEach("tcp", runs.SecureName+":80") {
		for i, answer := range say(at, n.As("attacker"), all) {
			require.False(t, shows(answer), "%s: %q: %q", at, all[i], answer)
		}
	}
	require.Empty(t, server.take())
	// Nor does it get there by TLS of its own, or learn anything where nothing is sent for it.
	conn, err := runs.Helper("inject-say", fmt.Sprintf("%s:%d", runs.SecureName, port), request("GET /")).With(sandbox.WithNetwork(n.As("attacker"))).Output(testkit.Deadline(t))
	require.NoError(t, err)
	require.NotContains(t, string(conn), "HTTP/")
	require.NoError(t, n.Close(), "waits until all is told")
	require.Contains(t, told.String(), "the response shows the secret")
	require.NotContains(t, told.String(), injected)
}
