// Command agent runs Python that nobody has read, as a language model writes it, with a way to one
// API and to nothing else. The API is served by this program; each request that is refused is told.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cellkit/sandbox"
)

//go:embed untrusted.py
var untrusted string

// apiName is by what the code knows the API. What it resolves to is decided here.
const apiName = "weather.test"

// api serves the weather at any free port, until the listener is closed.
func api() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{city}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "sunny in %s", r.PathValue("city")) })
	go func() { _ = http.Serve(l, mux) }()
	return l, nil
}

// run runs the code with the port of the API, and returns what it prints. The network is this run's
// alone, and ends with it.
func run(ctx context.Context, code string, port int, refused func(sandbox.Conn)) (string, error) {
	network := sandbox.Private(
		sandbox.AllowHost(apiName, port),
		sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), // where this API is: no name leads to this machine otherwise
		sandbox.NetworkResolver(resolver()),
		sandbox.MaxConns(16),
		sandbox.NetworkObserver(func(c sandbox.Conn) {
			if c.Verdict == sandbox.Refused {
				refused(c)
			}
		}))
	var out bytes.Buffer
	_, err := sandbox.New(sandbox.WithCommand("python3", "-", fmt.Sprintf("http://%s:%d", apiName, port)), sandbox.WithStdin(bytes.NewBufferString(code)),
		sandbox.WithStdout(&out), sandbox.WithStderr(&out), sandbox.WithNetwork(network),
		sandbox.WithMemory(256*sandbox.MiB), sandbox.WithPIDs(32), sandbox.WithTimeout(30*time.Second), sandbox.WithOutputLimit(sandbox.MiB)).Run(ctx)
	return out.String(), err
}

func main() {
	if len(os.Args) > 1 {
		b, err := os.ReadFile(os.Args[1])
		if err != nil {
			log.Fatal(err)
		}
		untrusted = string(b)
	}
	l, err := api()
	if err != nil {
		log.Fatal(err)
	}
	out, err := run(context.Background(), untrusted, l.Addr().(*net.TCPAddr).Port, func(c sandbox.Conn) { log.Printf("refused: %s %v: %v", c.Name, c.Address, c.Err) })
	_, _ = io.WriteString(os.Stdout, out)
	if err != nil {
		log.Fatal(err)
	}
}
