package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/cellkit/sandbox/internal/fault"
)

// injection is headers that requests of runs to a name get on their way out.
type injection struct {
	name    string
	port    uint16            // of the host
	headers map[string]hidden // by their canonical names
	// serve is serveHTTP, which so is linked only by programs that inject something.
	serve func(in *injection, ctx context.Context, near net.Conn, out outside) error
}

// hidden returns a value that is not printed with what has it, as a function is no more than an
// address.
type hidden func() string

// outside is what is beyond the boundary.
type outside struct {
	dial func(context.Context) (net.Conn, error) // to the injection's name and port
	// Of the host's certificate, nil for this machine's.
	roots *x509.CertPool
}

const (
	// injectPort is where runs reach a name with an injection.
	injectPort = 80
	httpsPort  = 443
)

// InjectHeader adds a header to the requests to a host, which is a name, or one with a port. No
// error has the value, also if the arguments were mixed up.
func (c *Config) InjectHeader(host, header, value string) {
	name, port, err := splitHost(host)
	if err == nil {
		err = checkHeader(header, value)
	}
	in := c.inject[name]
	if err == nil && in != nil && in.port != port {
		err = errors.New("the host has another port in an option before")
	}
	if err != nil {
		c.Wrong = append(c.Wrong, fault.Option("InjectHeader", "%w", err))
		return
	}
	if in == nil {
		in = &injection{name: name, port: port, headers: map[string]hidden{}, serve: (*injection).serveHTTP}
		if c.inject == nil {
			c.inject = map[string]*injection{}
		}
		c.inject[name] = in
		c.Hosts = append(c.Hosts, Host{Pattern: name, Ports: Ports{TCP: Spans(injectPort)}})
	}
	in.headers[textproto.CanonicalMIMEHeaderKey(header)] = func() string { return value }
}

func splitHost(host string) (name string, port uint16, err error) {
	port = httpsPort
	if at, text, ok := strings.Cut(host, ":"); ok {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return "", 0, errors.New("the host's port is no number from 1 to 65535")
		}
		host, port = at, uint16(n)
	}
	if name, err = inASCII(host); err != nil {
		return "", 0, errors.New("the host is no host name")
	}
	name = canonical(name)
	if strings.HasPrefix(name, "*") {
		return "", 0, errors.New("the host must be one name: whoever serves one of a pattern would get the secret")
	}
	if checkPattern(name) != nil {
		return "", 0, errors.New("the host is no host name")
	}
	return name, port, nil
}

// notInjected is headers that mean something to the connection alone (RFC 9110, section 7.6.1), say
// where a message ends or goes, or what is set so that responses can be looked at.
var notInjected = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Host", "Content-Length", "Content-Encoding", "Expect", "Accept-Encoding", "Range", "If-Range"}

func checkHeader(header, value string) error {
	switch name := textproto.CanonicalMIMEHeaderKey(header); {
	case header == "" || !isMethod([]byte(header)):
		return errors.New("the header's name is none of HTTP")
	case slices.Contains(notInjected, name):
		return errors.New("the header " + name + " belongs to the connection, and can't be injected")
	case value == "":
		return errors.New("the value is empty")
	case value != strings.TrimSpace(value) || slices.ContainsFunc([]byte(value), func(b byte) bool { return b < ' ' && b != '\t' || b == 0x7f }):
		return errors.New("the value has control characters, or begins or ends with space, such as the line break of a file: take that away")
	}
	return nil
}

// secret returns the part of a header's value that is searched for: what comes after the scheme of
// credentials, "Bearer" say (RFC 9110, section 11.4), as servers tend to show it without that.
func secret(value string) string {
	if _, rest, ok := strings.Cut(value, " "); ok && len(strings.TrimSpace(rest)) >= minSecret {
		return strings.TrimSpace(rest)
	}
	return value
}

// minSecret is what is not in a response by chance.
const minSecret = 8

// secrets returns what no run may see.
func (in *injection) secrets() (list []string) {
	for _, value := range in.headers {
		list = append(list, secret(value()))
	}
	return list
}
