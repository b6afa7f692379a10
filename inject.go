package sandbox

import "github.com/cellkit/sandbox/internal/gateway"

// InjectHeader keeps a secret at the boundary: runs ask for http://host/ over plain HTTP/1.1, at
// port 80, which this lists as AllowHost does, and this process passes the requests on over TLS, to
// port 443 or that of "host:port", with the header set to the value, in place of what the run set.
// The host is one name, and its certificate must be valid for it by this machine's authorities
// (SSL_CERT_FILE and SSL_CERT_DIR of this process, crypto/x509). Its addresses are subject to what
// AllowHost says, and AllowCIDR makes exceptions for the port outside.
//
// No run sees the value. Redirects are passed to it as they are, and a response that shows the
// value, or what comes after its first space ("Bearer ..."), in its head or body is cut off, and
// Refused for the observer. What a server shows in another form, encoded or in parts, is not found:
// docs/PRIVATE_NETWORKS.md. Each use adds a header; the same again replaces it. Headers of the
// connection, such as Host or Content-Length, can't be injected. No error has the value.
func InjectHeader(host, header, value string) NetworkOption {
	return func(c *gateway.Config) { c.InjectHeader(host, header, value) }
}
