//go:build linux

package runs

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/gateway"
)

// SayHTTP is a helper program, for AddHelper: it sends each request to an address, as it is, over a
// connection of its own, and prints what comes back.
func SayHTTP(args []string) error {
	network, at := Over("tcp", args[0])
	for _, request := range args[1:] {
		conn, err := net.DialTimeout(network, at, 20*time.Second)
		if err != nil {
			fmt.Printf("no: %v\n%s", err, AnswerEnd)
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(conn, request)
		b, err := io.ReadAll(conn)
		conn.Close()
		fmt.Printf("%s", b)
		if err != nil {
			fmt.Printf("cut off: %v", err)
		}
		fmt.Print(AnswerEnd)
	}
	return nil
}

// AnswerEnd is between the answers that SayHTTP prints.
const AnswerEnd = "\n=====\n"

// SecureName is the name that NewSecure's certificate is for.
const SecureName = "example.com"

// NewSecure serves HTTP by TLS at a port of this machine's loopback. The options are those with
// which a network reaches it as SecureName.
func NewSecure(t testing.TB, h http.Handler) (port int, opts []sandbox.NetworkOption) {
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	port = s.Listener.Addr().(*net.TCPAddr).Port
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return port, []sandbox.NetworkOption{sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), func(c *gateway.Config) { c.Roots = roots }}
}
