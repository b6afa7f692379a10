package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/fault"
)

const token = "tok-3n7q0Zs8"

func TestInjectHeader(t *testing.T) {
	var c Config
	c.InjectHeader("API.example.org.", "authorization", "Bearer "+token)
	c.InjectHeader("api.example.org", "X-Key", "old")
	c.InjectHeader("api.example.org:443", "x-key", "0123")
	c.InjectHeader("bücher.example:8443", "Cookie", "a="+token)
	require.NoError(t, checkRules(&c))
	require.Len(t, c.inject["api.example.org"].headers, 2)
	require.ElementsMatch(t, []string{token, "0123"}, c.inject["api.example.org"].secrets())
	require.Equal(t, uint16(8443), c.inject["xn--bcher-kva.example"].port)
	rule, ok := c.ruleForName("api.example.org", false, 80)
	require.True(t, ok)
	require.Equal(t, "api.example.org", rule)
	_, ok = c.ruleForName("api.example.org", false, 443)
	require.False(t, ok)
	require.Equal(t, []uint16{80}, each(c.all().TCP))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		require.NotContains(t, fmt.Sprintf(format, c), token)
		require.NotContains(t, fmt.Sprintf(format, &c), token)
	}
}

func TestWrongInjectHeader(t *testing.T) {
	for _, test := range [][4]string{
		{"*.example.org", "A", token, "must be one name"},
		{"*", "A", token, "must be one name"},
		{"", "A", token, "no host name"},
		{"127.0.0.1", "A", token, "no host name"},
		{token + " ", "A", token, "no host name"},
		{"a.b:0", "A", token, "port"},
		{"a.b:" + token, "A", token, "port"},
		{"::1", "A", token, "port"},
		{"a.b", "", token, "name is none"},
		{"a.b", token + ":", token, "name is none"},
		{"a.b", "host", token, "belongs to the connection"},
		{"a.b", "Content-LENGTH", token, "belongs to the connection"},
		{"a.b", "transfer-encoding", token, "belongs to the connection"},
		{"a.b", "connection", token, "belongs to the connection"},
		{"a.b", "A", "", "empty"},
		{"a.b", "A", token + "\n", "line break"},
		{"a.b", "A", token + "\r\nHost: x", "control"},
	} {
		var c Config
		c.InjectHeader(test[0], test[1], test[2])
		err := checkRules(&c)
		require.ErrorContains(t, err, test[3], test)
		require.NotContains(t, err.Error(), token)
		var wrong *fault.OptionError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, "InjectHeader", wrong.Option)
	}
	var c Config
	c.InjectHeader("a.b", "A", token)
	c.InjectHeader("a.b:444", "B", token)
	require.ErrorContains(t, checkRules(&c), "another port")
}

func searched(from io.Reader, secrets ...string) (string, error) {
	x := &crossing{injection: &injection{}, secrets: secrets}
	b, err := io.ReadAll(&search{x: x, from: io.NopCloser(from), keep: longest(secrets) - 1})
	return string(b), err
}

// A secret is found wherever pieces end.
func TestSearch(t *testing.T) {
	plain := strings.Repeat("tok-3n7q0Zs tok-tok-", 5000)
	for _, in := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader, func(r io.Reader) io.Reader { return r }} {
		for _, text := range []string{"", "x", token[1:], plain} {
			got, err := searched(in(strings.NewReader(text)), token, "another-and-longer")
			require.NoError(t, err)
			require.Equal(t, text, got)
		}
		for _, before := range []string{"", "tok-", plain, strings.Repeat("x", 32<<10-3)} {
			got, err := searched(in(strings.NewReader(before+token+"more")), "another-and-longer", token)
			require.ErrorIs(t, err, errShown)
			require.True(t, strings.HasPrefix(before, got))
		}
		got, err := searched(io.MultiReader(in(strings.NewReader("0123456789abcdef"+token[:8])), iotest.ErrReader(errors.New("broken"))), token)
		require.ErrorContains(t, err, "broken")
		require.NotContains(t, got, token[:1])
	}
}

// What waits does not depend on what it is.
func TestSearchWaits(t *testing.T) {
	for _, text := range []string{"0123456789012345" + token[:5], strings.Repeat("x", 16+5)} {
		r, w := io.Pipe()
		s := &search{x: &crossing{secrets: []string{token}}, from: r, keep: len(token) - 1}
		go func() { _, _ = io.WriteString(w, text) }()
		n, err := s.Read(make([]byte, 100))
		require.NoError(t, err)
		require.Equal(t, len(text)-len(token)+1, n)
		w.Close()
	}
}

func TestJudge(t *testing.T) {
	x := &crossing{secrets: []string{token}}
	for name, value := range map[string]string{"X": "a " + token, "Y": strings.ToUpper(token), "X-Tok-3n7q0zs8-Y": "", "Content-Encoding": "gzip", "Set-Cookie": "a=b; c=" + token} {
		require.Error(t, x.judge(&http.Response{Header: http.Header{name: {"", value}}}), name)
	}
	require.Error(t, x.judge(&http.Response{StatusCode: 101}))
	require.NoError(t, x.judge(&http.Response{Header: http.Header{"Location": {"https://x/"}, "Content-Encoding": {"identity"}, "X": {token[1:]}}}))
}

// Several requests of a connection, of any size, also of a client that has closed its half.
func TestCrossing(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Right", strconv.FormatBool(r.Header.Get("X-Key") == token && r.Trailer == nil))
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
		time.Sleep(50 * time.Millisecond)
	}))
	defer server.Close()
	var c Config
	c.InjectHeader("example.com", "X-Key", token)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ended := make(chan error)
	go func() {
		near, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		in := c.inject["example.com"]
		ended <- in.serve(in, t.Context(), near, outside{
			dial: func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
			},
			roots: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs,
		})
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	r := bufio.NewReader(conn)
	for i, body := range []string{strings.Repeat("0123456789", 200_000), "", "x"} {
		req, err := http.NewRequest("POST", "http://example.com/", io.MultiReader(strings.NewReader(body)))
		require.NoError(t, err)
		req.Trailer = http.Header{"X-Key": {"mine"}}
		go func() {
			_ = req.Write(conn)
			if i == 2 {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
		}()
		res, err := http.ReadResponse(r, req)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, []string{"200 OK", "true"}, []string{res.Status, res.Header.Get("X-Right")})
		require.True(t, body == string(b), "%d bytes", len(b))
	}
	require.NoError(t, <-ended)
}
