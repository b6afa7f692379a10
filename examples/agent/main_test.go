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
	l, err := api()
	require.NoError(t, err)
	defer l.Close()
	refused := make(chan sandbox.Conn, 100)
	out, err := run(t.Context(), untrusted, l.Addr().(*net.TCPAddr).Port, func(c sandbox.Conn) { refused <- c })
	require.NoError(t, err, out)
	require.Regexp(t, `^the API: sunny in Lisbon
by its name: no: .*
the cloud's metadata: no: .*
the machine: no: .*
an address: no: .*
$`, out)
	require.Regexp(t, `^[0-9a-f]{8}\.evil\.test$`, (<-refused).Name)
}
