//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("say-http", runs.SayHTTP) }

// saying returns what a run on the network gets for each request, to which Connection: close is
// added.
func saying(t *testing.T, n *sandbox.PrivateNetwork, at string, requests ...string) []string {
	t.Helper()
	for i, r := range requests {
		first, rest, _ := strings.Cut(r, "\n")
		requests[i] = first + " HTTP/1.1\r\nConnection: close\r\n" + strings.ReplaceAll(rest, "\n", "\r\n") + "\r\n"
	}
	s := runs.Helper("say-http", append([]string{at}, requests...)...)
	return strings.Split(runs.Output(t, s.With(sandbox.WithNetwork(n.As("client")))), runs.AnswerEnd)
}

// The run asks by plain HTTP, and the host gets the header by TLS.
func TestRootlessPrivateInject(t *testing.T) {
	t.Parallel()
	const secret = "Bearer tok-9Wk2vQx7"
	answer := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/body":
			fmt.Fprint(w, "you sent ", r.Header)
		case "/head":
			w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		case "/moved":
			http.Redirect(w, r, "https://other.test/there", http.StatusFound)
		default:
			fmt.Fprintf(w, "%s %s %s host=%s right=%v key=%v other=%q", r.Method, r.URL, r.Proto, r.Host, len(r.Header["Authorization"]) == 1 && r.Header.Get("Authorization") == secret, len(r.Header["X-Key"]) == 1 && r.Header.Get("X-Key") == "key-0zR4", r.Header.Get("X-Other"))
		}
	}
	port, opts := runs.NewSecure(t, http.HandlerFunc(answer))
	other := httptest.NewServer(http.HandlerFunc(answer))
	t.Cleanup(other.Close)
	otherPort := other.Listener.Addr().(*net.TCPAddr).Port
	zone := testkit.NewZone(t, map[string]string{runs.SecureName: "127.0.0.1", "other.test": "127.0.0.1"})
	var seen observer
	host := at(runs.SecureName, port)
	n := newNetwork(t, append(opts, sandbox.InjectHeader(host, "authorization", secret), sandbox.InjectHeader(host, "X-Key", "key-0zR4"), sandbox.AllowHost("other.test", otherPort),
		sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(otherPort)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))...)

	got := saying(t, n, "example.com:80", "GET /a?b=c\nHost: Example.com\nX-Other: y\n", "POST http://example.com/x\nHost: example.com:80\nAuthorization: mine\nauthorization: too\nX-Key: 2\nContent-Length: 0\n",
		"GET /moved\nHost: example.com\n", "GET /body\nHost: example.com\n", "GET /head\nHost: example.com\n", "GET /\nHost: other.test\n", "CONNECT example.com:443\nHost: example.com\n")
	for i, want := range []string{
		fmt.Sprintf(`GET /a?b=c HTTP/1.1 host=%s right=true key=true other="y"`, host),
		fmt.Sprintf(`POST /x HTTP/1.1 host=%s right=true key=true other=""`, host),
		"Location: https://other.test/there", "cut off: ", "the response shows the secret", "421 Misdirected", "",
	} {
		require.Contains(t, got[i], want)
		require.NotContains(t, got[i], secret)
	}
	require.NotContains(t, got[6], "200")
	c := seen.await(t, "a request", func(c sandbox.Conn) bool { return c.Verdict == sandbox.Allowed })
	require.Equal(t, []any{"example.com", "example.com", uint16(80), fmt.Sprintf("127.0.0.1:%d", port)}, []any{c.Name, c.Rule, c.Port, c.Address.String()})
	require.Positive(t, c.Sent)
	require.Positive(t, c.Received)
	for _, why := range []string{"shows the secret", "HTTP host is"} {
		c := seen.await(t, why, func(c sandbox.Conn) bool { return c.Err != nil && strings.Contains(c.Err.Error(), why) })
		require.Equal(t, sandbox.Refused, c.Verdict)
	}
	got = saying(t, n, at("other.test", otherPort), "GET /\nHost: other.test\n")
	require.Contains(t, got[0], `right=false key=false other=""`)

	wrong := newNetwork(t, append(opts, sandbox.InjectHeader(at("other.test", port), "X", secret), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))...)
	require.Contains(t, saying(t, wrong, "other.test:80", "GET /\nHost: other.test\n")[0], "502")
	seen.await(t, "another's certificate", func(c sandbox.Conn) bool {
		return c.Verdict == sandbox.Failed && c.Name == "other.test" && strings.Contains(c.Err.Error(), "certificate is valid for")
	})
	zone.Set(runs.SecureName, "127.0.0.2")
	require.Contains(t, saying(t, n, "example.com:80", "GET /\nHost: example.com\n")[0], "502")
	seen.await(t, "an address that is not listed", func(c sandbox.Conn) bool {
		return c.Verdict == sandbox.Refused && c.Err != nil && strings.Contains(c.Err.Error(), "127.0.0.2")
	})
}
