package main

import (
	"context"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestRun has the code reach the API and nothing else.
func TestRun(t *testing.T) {
	s, err := api(t.TempDir() + "/cert.pem")
	require.NoError(t, err)
	defer s.Close()
	refused := make(chan sandbox.Conn, 100)
	out, err := run(t.Context(), untrusted, s.Listener.Addr().(*net.TCPAddr).Port, func(c sandbox.Conn) { refused <- c })
	require.NoError(t, err, out)
	require.Regexp(t, `^the API: sunny in Lisbon
what it was sent: no: .*
by its name: no: .*
the cloud's metadata: no: .*
the machine: no: .*
an address: no: .*
$`, out)
	require.NotContains(t, out, "tok-")
	var told string
	for range 4 {
		c := <-refused
		told += c.Name + " " + c.Err.Error() + "\n"
	}
	require.Contains(t, told, "example.com the response shows the secret\n")
	require.Regexp(t, `(?m)^[0-9a-f]{8}\.evil\.test `, told)
}
