package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// hello returns the first bytes of a client of TLS.
func hello(t testing.TB, config *tls.Config) []byte {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_ = tls.Client(near, config).Handshake()
		near.Close()
	}()
	b := make([]byte, 8<<10)
	n, err := far.Read(b)
	require.NoError(t, err)
	far.Close()
	return b[:n]
}

// inRecords cuts a message of one record into several.
func inRecords(b []byte, size int) (out []byte) {
	for rest := b[5:]; len(rest) > 0; rest = rest[min(size, len(rest)):] {
		n := min(size, len(rest))
		out = append(append(out, 22, 3, 1, byte(n>>8), byte(n)), rest[:n]...)
	}
	return out
}

// judge gives bytes in pieces to first, and returns what may not be passed on.
func judge(b []byte, size int) (passed int, err error) {
	f := first{name: "one.test"}
	for len(b) > passed {
		n := min(size, len(b)-passed)
		if err := f.add(b[passed : passed+n]); err != nil {
			return passed, err
		}
		passed += n
	}
	return passed, f.end()
}

func TestFirst(t *testing.T) {
	head := strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 40)
	const toOther, proxy, changed = "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "\x14\x03\x03\x00\x01\x01"
	same, other := hello(t, &tls.Config{ServerName: "one.test"}), hello(t, &tls.Config{ServerName: "other.test"})
	for _, test := range []struct{ bytes, why string }{
		{string(same), ""},
		{string(hello(t, &tls.Config{ServerName: "ONE.test."})), ""},
		{string(hello(t, &tls.Config{InsecureSkipVerify: true})), ""},
		{string(hello(t, &tls.Config{ServerName: "one.test", MaxVersion: tls.VersionTLS12})), ""},
		{string(other), `"other.test"`},
		{string(hello(t, &tls.Config{ServerName: "sub.one.test"})), `"sub.one.test"`},
		{string(inRecords(same, 3)), ""},
		{string(inRecords(other, 3)), `"other.test"`},
		{string(other[:len(other)-1]), ""}, // is of no use to anybody
		{"\x15\x03\x01\x00\x02\x01\x00" + string(other), "no hello"},
		{"\x16\x03\x01\x00\x00" + string(other), "no hello"},
		{"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "no hello"},
		{"\x16\x03\x01\x40\x00\x01\xff\xff\xff", "no hello"},
		{"\x16\x01" + string(other[2:]), `"other.test"`}, {"\x16\x0f" + string(same[2:]), ""}, {"\x16\x01" + string(inRecords(other, 1)[2:]), `"other.test"`},
		{"\x16\x00\x00\x00\x00" + string(other), "no hello"}, {"\x15\x00\x00\x00\x02\x01\x00" + string(other), "no hello"}, {"\x16\x01\x01\x00\x01\x01\x15\x03\x03\x00\x02\x01\x00", "no hello"},
		{"\x16\x00\x00\x00\x08\x02" + toOther, ""}, {"\x16\x00\x00\x00\x08\x01\x02" + toOther, ""}, {"\x15\x00\x00\x00\x08\x02", ""}, {"\x16\x10\x01\x00\x05\x01\x00", ""},
		{string(same) + changed + string(other), `"other.test"`}, {string(same) + changed + string(same), ""}, {string(same) + string(other), `"other.test"`},
		{string(same) + "\x15\x03\x03\x00\x02\x01\x5a\x16\x03\x03\x00\x00" + string(other), `"other.test"`}, {string(same) + changed + string(inRecords(other, 1)), `"other.test"`},
		{string(same) + "\x17\x03\x03\x40\x00" + strings.Repeat("x", 1<<14) + string(other), `"other.test"`}, {string(same) + strings.Repeat(changed, maxFirst/4), "no end"},
		{string(same) + strings.Repeat("\x17\x03\x03\x40\x00"+strings.Repeat("x", 1<<14), 3), ""}, {string(same) + "\x16\x03\x03\x00\x01\x10" + string(other), ""},
		{"\x16", ""}, {"\x17", ""}, {"\x17\x02", ""}, {"", ""},

		{"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n", ""},
		{"GET / HTTP/1.1\r\nhost:ONE.Test.:8080\r\n\r\nHost: other.test", ""},
		{"GET / HTTP/1.0\r\n\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: \r\n\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"GET / HTTP/1.1\nHost: other.test\n\n", `"other.test"`},
		{"GET / HTTP/1.1\r\nHost: other.test", `"other.test"`}, // and no more
		{"\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"BREW\t/ \x01 HTTP/1.1\r\nX: y\r\nHost : other.test:80\r\n\r\n", `"other.test"`},
		{"GET\r/ HTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"get / http/1.1\r\nHost: one.test\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"GET / HTTP/1.1\r\n Host: other.test\r\n\r\n", `"other.test"`},
		{"GET / HTTP/1.1\r\nHost:\r\n\tother.test\r\n\r\n", "other.test"},
		{"GET / HTTP/1.1\r\nHost: one.test,other.test\r\n\r\n", "other.test"},
		{"GET / HTTP/1.1\r\nHost: 198.19.0.1:80\r\n\r\n", `"198.19.0.1"`},
		{"GET http://other.test/ HTTP/1.1\r\nHost: one.test\r\n\r\n", `"other.test"`},
		{"GET http://one.test@other.test?x HTTP/1.1\r\nHost: one.test\r\n\r\n", `"other.test"`},
		{"GET http://one.test:80/ HTTP/1.1\r\nHost: one.test\r\n\r\n", ""},
		{"CONNECT other.test:443 HTTP/1.1\r\n\r\n", `"other.test"`},
		{"OPTIONS * HTTP/1.1\r\nHost: one.test\r\n\r\n", ""},
		{"GET / HTTP/1.1\r\nHost: one.test\r\n" + head + "\r\n", "no end"},
		{"GET /" + strings.Repeat("x", 2*maxFirst) + " HTTP/1.1\r\nHost: one.test\r\n\r\n", "no end"},
		{strings.Repeat("x", 2*maxFirst), "no end"},
		{strings.Repeat("x", 256) + toOther, `"other.test"`},
		{"GET /" + strings.Repeat("x\x01", maxFirst) + " HTTP/1.1\r\nHost: other.test\r\n\r\n", "no end"},
		{"\r" + toOther, `"other.test"`}, {" \t\r\r\n" + toOther, `"other.test"`}, {" " + toOther, `"other.test"`},
		{strings.Repeat("\r", 40_000) + toOther, "no end"}, {"GET" + strings.Repeat(" ", 40_000) + "/ HTTP/1.1\r\nHost: other.test\r\n\r\n", "no end"},
		{"GET http://other.test/\r\n", `"other.test"`}, {"GET HTTPS://other.test\r\n", `"other.test"`}, {"GET http://one.test/\r\n", ""},
		{"GET /\r\nHost: other.test\r\n\r\n", `"other.test"`}, {"GET / RTSP/1.0\r\nHost: other.test\r\n\r\n", `"other.test"`}, {"SOURCE / ICE/1.0\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"GET /\r\n" + head + "Host: other.test\r\n\r\n", "no end"}, {"GET x RTSP/1.0\r\n" + head + "Host: other.test\r\n\r\n", "no end"},
		{"GET / HTTP/1.1\r\nX: y\rHost: other.test\r\n\r\n", `"other.test"`}, {"GET / HTTP/1.1\r\nHost:\r\r\n other.test\r\n\r\n", "other.test"},
		{"GET\x1c/\x1fHTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`}, {"GET\xa0/\x85HTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{proxy + toOther, `"other.test"`}, {proxy + proxy + string(other), `"other.test"`}, {proxy + string(same), ""}, {"PROXY / HTTP/1.1\r\nHost: other.test\r\n\r\n", `"other.test"`},
		{"PROXY UNKNOWN HTTP/1.1\r\nHost: other.test\r\n\r\n", "UNKNOWN"}, {"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00" + toOther, "PROXY"},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""},

		// Other protocols.
		{"ruok", ""}, {"SSH-2.0-x\r\n", ""}, {"EHLO other.test\r\n", ""}, {"*1\r\n$4\r\nPING\r\n", ""}, {"AMQP\x00\x00\x09\x01", ""}, {"\x00\x00\x00\x08\x04\xd2\x16\x2f", ""},
		{"0 \x02\x01\x01`\x1b" + strings.Repeat("x", 2*maxFirst), ""}, // LDAP
		{strings.Repeat("x y", maxFirst), "no end"}, {strings.Repeat("x:", maxFirst), ""}, {strings.Repeat("\n\x00 ", maxFirst), ""},
		{"OPTIONS rtsp://other.test/ RTSP/1.0\r\n", ""}, {"EHLO other.test\r\n" + head, ""}, {"get http:x\r\n" + head, ""}, {"SSH-2.0-x y\r\n\x16\x03" + head, ""},
		{"\n\x16\x03", ""}, {"PROXY x\r\nHost: one.test\r\n", ""},
	} {
		for _, size := range []int{1, 7, 2 << 10} {
			passed, err := judge([]byte(test.bytes), size)
			if test.why == "" {
				require.NoError(t, err, "%.200q", test.bytes)
				continue
			}
			require.ErrorContains(t, err, test.why, "%.200q in pieces of %d", test.bytes, size)
			require.NotContains(t, strings.TrimLeft(test.bytes[:passed], "\r\n"), "\r\n\r\n", "a whole head was passed on")
		}
	}
}

// judged is a connection whose client is judged.
type judged struct {
	net.Conn
	first *first
}

func (c judged) Write(b []byte) (int, error) {
	for _, one := range b {
		if err := c.first.add([]byte{one}); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// Real clients get through, also if the server asks for another hello.
func TestFirstClient(t *testing.T) {
	for _, config := range []*tls.Config{{}, {MaxVersion: tls.VersionTLS12}, {CurvePreferences: []tls.CurveID{tls.CurveP384}}} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, r.TLS.HelloRetryRequest)
		}))
		server.TLS = config
		server.StartTLS()
		defer server.Close()
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
			return judged{conn, &first{name: "one.test"}}, err
		}
		client := http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
		answer, err := client.Post("https://one.test", "", bytes.NewReader(make([]byte, 3*maxFirst)))
		require.NoError(t, err)
		b, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(3*maxFirst, config.CurvePreferences != nil), string(b))
	}
}

// said is a connection over which something was said.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(b []byte) (int, error) { return s.Reader.Read(b) }

// shown returns the name that Go's servers understand.
func shown(b []byte) (name string) {
	if request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b))); err == nil {
		return withoutPort(request.Host)
	}
	near, far := net.Pipe()
	near.Close()
	defer far.Close()
	_ = tls.Server(said{far, bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = h.ServerName
		return nil, io.EOF
	}}).Handshake()
	return name
}

// FuzzFirst judges anything: in pieces as at once, and never lets a name pass that differs.
func FuzzFirst(f *testing.F) {
	f.Add(hello(f, &tls.Config{ServerName: "other.test"}), 3)
	f.Add(inRecords(hello(f, &tls.Config{ServerName: "one.test"}), 9), 30)
	f.Add([]byte("GET http://one.test:80/ HTTP/1.1\r\nHost : one.test:8\r\n x\r\n\r\n"), 5)
	f.Add([]byte("PROXY TCP4 x\r\n\r\r\nx /\r\nHost: other.test\r\n\r\n"), 5)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size < 1 || len(b) > maxFirst {
			return
		}
		_, whole := judge(b, len(b)+1)
		_, pieces := judge(b, size)
		require.Equal(t, whole, pieces)
		if name := shown(b); name != "" && canonical(name) != "one.test" {
			require.Error(t, whole, "%q", name)
		}
	})
}
