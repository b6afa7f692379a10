//go:build linux

package testkit

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Ask returns what a server at a TCP address says until it closes the connection.
func Ask(t testing.TB, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, Patience)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(Patience)))
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(b)
}
