// Command agent runs Python that nobody has read, as a language model writes it, with a way to one
// API and to nothing else. The token that the API wants is added on the way, and the code does not
// know it. The API is served by this program; each request that is refused is told.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/cellkit/sandbox"
)

//go:embed untrusted.py
var untrusted string

// apiName is by what the code knows the API, and what its certificate is for. What it resolves to
// is decided here.
const apiName = "example.com"

// token is what the API wants. The code uses it, and never sees it.
const token = "Bearer tok-1mW5sYk8Rz"

// api serves the weather by TLS at any free port, until it is closed, to who has the token. It is
// trusted by its certificate being in a file. With an API elsewhere none of this is needed.
func api(certFile string) (*httptest.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{city}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != token {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "sunny in %s", r.PathValue("city"))
	})
	mux.HandleFunc("GET /debug", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "your headers: ", r.Header) })
	s := httptest.NewTLSServer(mux)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.Setenv("SSL_CERT_FILE", certFile)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// run runs the code with a way to the API, at a port, and returns what it prints. The network is
// this run's alone, and ends with it.
func run(ctx context.Context, code string, port int, refused func(sandbox.Conn)) (string, error) {
	network := sandbox.Private(
		sandbox.InjectHeader(fmt.Sprintf("%s:%d", apiName, port), "Authorization", token),
		// Where this API is: no name leads to this machine otherwise.
		sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)),
		sandbox.NetworkResolver(resolver()),
		sandbox.MaxConns(16),
		sandbox.NetworkObserver(func(c sandbox.Conn) {
			if c.Verdict == sandbox.Refused {
				refused(c)
			}
		}))
	var out bytes.Buffer
	_, err := sandbox.New(sandbox.WithCommand("python3", "-", "http://"+apiName), sandbox.WithStdin(bytes.NewBufferString(code)),
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
	if err := serveAndRun(); err != nil {
		log.Fatal(err)
	}
}

func serveAndRun() error {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := api(filepath.Join(dir, "cert.pem"))
	if err != nil {
		return err
	}
	defer s.Close()
	out, err := run(context.Background(), untrusted, s.Listener.Addr().(*net.TCPAddr).Port, func(c sandbox.Conn) { log.Printf("refused: %s %v: %v", c.Name, c.Address, c.Err) })
	_, _ = io.WriteString(os.Stdout, out)
	return err
}
