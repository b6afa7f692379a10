package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

const (
	headTimeout = 30 * time.Second // of a run, for the head of a request
	idleTimeout = 2 * time.Minute  // of a run, between requests
	// Of a host, to the head of its response: some think for long.
	answerTimeout = 10 * time.Minute
	shakeTimeout  = 30 * time.Second // of TLS
	maxAnswerHead = 256 << 10
)

var errShown = &refusal{"the response shows the secret"}

// crossing is one connection of a run, by HTTP/1, whose requests cross the boundary: each over a
// connection of its own, by TLS.
type crossing struct {
	*injection
	outside
	ctx     context.Context // ends with the connection
	near    net.Conn
	proxy   httputil.ReverseProxy
	secrets []string
	err     error // the first
}

// serveHTTP serves a connection to its end, and returns what was refused or failed first.
func (in *injection) serveHTTP(ctx context.Context, near net.Conn, out outside) error {
	x := &crossing{injection: in, outside: out, ctx: ctx, near: near, secrets: in.secrets()}
	quiet := log.New(io.Discard, "", 0)
	x.proxy = httputil.ReverseProxy{Rewrite: x.rewrite, Transport: x, FlushInterval: -1, ErrorHandler: x.fail, ErrorLog: quiet}
	s := http.Server{Handler: x, ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxFirst, ErrorLog: quiet, Protocols: onlyHTTP1()}
	ended := make(chan struct{})
	// The error says that there is no other connection.
	_ = s.Serve(&single{conn: &ending{Conn: near, ended: ended}, ended: ended})
	return x.err
}

func onlyHTTP1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// single is a listener for one connection, which ends with that.
type single struct {
	conn  net.Conn
	ended chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return &net.TCPAddr{} }

// ending is a connection that tells when the server closes it, which it does once.
type ending struct {
	net.Conn
	ended chan struct{}
}

func (c *ending) Close() error {
	defer close(c.ended)
	return c.Conn.Close()
}

// note records an error, and reports it.
func (x *crossing) note(err error) error {
	if x.err == nil {
		x.err = err
	}
	return err
}

func (x *crossing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status := 0
	host, port, _ := strings.Cut(r.Host, ":")
	switch {
	case canonical(host) != x.name || port != "" && port != strconv.Itoa(injectPort):
		_ = x.note(&refusal{"the HTTP host is " + printable(r.Host) + ", and not the name that was asked for"})
		status = http.StatusMisdirectedRequest
	// TRACE shows what the server got.
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace:
		status = http.StatusMethodNotAllowed
	case r.URL.Opaque != "" || r.URL.Path != "" && r.URL.Path[0] != '/':
		status = http.StatusBadRequest
	}
	if status != 0 {
		w.Header().Set("Connection", "close")
		http.Error(w, "sandbox: "+http.StatusText(status), status)
		return
	}
	// A client that has said all may close its half.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer context.AfterFunc(x.ctx, cancel)()
	// ReverseProxy would pass on an upgrade, and ask for trailers.
	r.Header.Del("Upgrade")
	r.Header.Del("Te")
	_ = http.NewResponseController(w).EnableFullDuplex() // a host may answer before it has all
	x.proxy.ServeHTTP(finalOnly{w}, r.WithContext(ctx))
}

// finalOnly leaves out responses before the last, such as 103 Early Hints, at which nobody looks.
type finalOnly struct{ http.ResponseWriter }

func (w finalOnly) WriteHeader(status int) {
	if status >= http.StatusOK {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w finalOnly) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// rewrite makes the request that is sent out, when what is of the run's connection was removed.
func (x *crossing) rewrite(p *httputil.ProxyRequest) {
	out := p.Out
	out.URL.Scheme, out.URL.User, out.URL.Host = "https", nil, x.name
	if x.port != httpsPort {
		out.URL.Host = net.JoinHostPort(x.name, strconv.Itoa(int(x.port)))
	}
	out.Host, out.Trailer = out.URL.Host, nil
	for name := range x.headers {
		maps.DeleteFunc(out.Header, func(other string, _ []string) bool { return asVariable(other) == asVariable(name) })
	}
	// Of what is compressed, or comes in ranges that the run chooses, nothing would be found.
	for _, name := range []string{"Range", "If-Range", "Expect"} {
		out.Header.Del(name)
	}
	out.Header.Set("Accept-Encoding", "identity")
	for name, value := range x.headers {
		out.Header[name] = []string{value()}
	}
}

// asVariable returns the name that servers give a header which they pass to programs as a variable,
// for which - and _ are one: RFC 3875, section 4.1.18.
func asVariable(header string) string {
	return strings.ToUpper(strings.ReplaceAll(header, "-", "_"))
}

// RoundTrip sends a request, and returns the response as the run may see it: without the reason
// of its status, without trailers.
func (x *crossing) RoundTrip(req *http.Request) (*http.Response, error) {
	far, err := x.handshake(req.Context())
	if err != nil {
		_ = x.note(err) // which has addresses
		return nil, errors.New("the host can't be reached")
	}
	t := http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return far, nil },
		DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: answerTimeout, MaxResponseHeaderBytes: maxAnswerHead, Protocols: onlyHTTP1()}
	res, err := t.RoundTrip(req)
	if err != nil {
		far.Close()
		// Without the error, which has what could not be read.
		return nil, x.note(errors.New("the host did not answer in HTTP/1.1, or not in time"))
	}
	if err := x.judge(res); err != nil {
		res.Body.Close()
		return nil, x.note(err)
	}
	seen := *res // of which reading the body sets the trailers
	seen.Trailer = nil
	seen.Body = &search{x: x, from: res.Body, keep: longest(x.secrets) - 1}
	return &seen, nil
}

func (x *crossing) handshake(ctx context.Context) (net.Conn, error) {
	far, err := x.dial(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, shakeTimeout)
	defer cancel()
	secure := tls.Client(far, &tls.Config{ServerName: x.name, RootCAs: x.roots, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	if err := secure.HandshakeContext(ctx); err != nil {
		far.Close()
		return nil, err
	}
	return secure, nil
}

// judge looks at the head of a response. Case does not count, as that of names is changed here.
func (x *crossing) judge(res *http.Response) error {
	if res.StatusCode == http.StatusSwitchingProtocols {
		return &refusal{"the host changes the protocol"}
	}
	for name, values := range res.Header {
		for _, value := range values {
			line := strings.ToLower(name + ": " + value)
			for _, s := range x.secrets {
				if strings.Contains(value, s) || strings.Contains(line, strings.ToLower(s)) {
					return errShown
				}
			}
			if name == "Content-Encoding" && value != "" && !strings.EqualFold(value, "identity") {
				return &refusal{"the response is encoded, though that was not asked for, and can't be looked at"}
			}
		}
	}
	return nil
}

// fail answers in place of the host.
func (x *crossing) fail(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, "sandbox: "+err.Error(), http.StatusBadGateway)
}

// search passes a body on until a secret is in it. As many bytes as the longest secret has, less
// one, always wait for what follows: if only those waited that a secret may begin with, a run that
// has its own words sent back could guess it, one byte after the other.
type search struct {
	x    *crossing
	from io.ReadCloser
	keep int
	room [32 << 10]byte
	has  []byte // that was read
	err  error  // after that
}

func (s *search) Read(p []byte) (int, error) {
	for s.err == nil && len(s.has) <= s.keep {
		var n int
		n, s.err = s.from.Read(s.room[:])
		s.has = append(s.has, s.room[:n]...)
		for _, secret := range s.x.secrets {
			if bytes.Contains(s.has, []byte(secret)) {
				s.err = errShown
			}
		}
	}
	free := len(s.has) - s.keep
	switch s.err {
	case nil:
	case io.EOF:
		free = len(s.has)
	default:
		s.x.cut()
		return 0, s.x.note(s.err)
	}
	n := copy(p, s.has[:free])
	s.has = append(s.has[:0], s.has[n:]...)
	if n == 0 && len(p) > 0 {
		return 0, s.err
	}
	return n, nil
}

func (s *search) Close() error { return s.from.Close() }

// cut has the run's connection end with an error: not all clients know how long a body is.
func (x *crossing) cut() {
	if near, ok := x.near.(interface{ SetLinger(int) error }); ok {
		_ = near.SetLinger(0)
	}
}

func longest(list []string) (n int) {
	for _, s := range list {
		n = max(n, len(s))
	}
	return n
}
