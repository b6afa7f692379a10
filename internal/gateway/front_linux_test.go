package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/spec"
)

// standIn returns a member of a gateway of its own, which has no namespace: its run is at this
// machine's loopback.
func standIn(t *testing.T, r *roster) *Member {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	config := &Config{MaxConns: 10, MaxNewConns: 10}
	g := &gateway{config: config, roster: r, noIPv6: errors.New("not here"), spare: map[kind][]*os.File{{unix.AF_INET, unix.SOCK_STREAM}: {os.NewFile(uintptr(s), "")}}}
	g.ctx, g.end = context.WithCancel(t.Context())
	m := &Member{gateway: g, name: "web", in: newShare(config)}
	m.ctx, m.leave = context.WithCancel(g.ctx)
	require.NoError(t, r.add(m))
	m.address = netip.MustParseAddr("127.0.0.1")
	t.Cleanup(g.close)
	return m
}

// An address that runs of several cells share outlives the end of one of them, also for a
// connection that was to be that one's, and is free when the last has ended.
func TestFrontOfCells(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	go func() {
		for conn, err := server.Accept(); err == nil; conn, err = server.Accept() {
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	r := newRoster(&Config{})
	one, two := standIn(t, r), standIn(t, r)
	p := spec.Published{Address: "127.0.0.1:0", Port: server.Addr().(*net.TCPAddr).Port, Shared: true}
	at, err := one.Publish(p)
	require.NoError(t, err)
	same, err := two.Publish(p)
	require.NoError(t, err)
	require.Equal(t, at, same)
	f := r.fronts[frontKey{"web", p.Address, p.Port}]
	require.Equal(t, []*Member{two, one}, f.inTurn())

	one.gateway.close()
	require.Equal(t, []*Member{two}, f.inTurn())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	conn, err := l.Accept()
	require.NoError(t, err)
	f.offer(conn.(*net.TCPConn), Conn{Published: true, Port: f.port}, []*Member{one, two})
	b, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	require.Empty(t, one.in.places)
	require.Zero(t, one.sending.Load())

	two.gateway.close()
	require.Empty(t, r.fronts)
	again, err := net.Listen("tcp", at.String())
	require.NoError(t, err, "the address is free")
	again.Close()
}
