package gateway

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func loopbackUDP(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c, addrPort(c.LocalAddr())
}

// What is in a socket's queue from before it had its peer is not taken for the peer's.
func TestReceiveFrom(t *testing.T) {
	near, to := loopbackUDP(t)
	neighbour, _ := loopbackUDP(t)
	run, from := loopbackUDP(t)
	for _, c := range []*net.UDPConn{neighbour, run} {
		_, err := c.WriteToUDPAddrPort([]byte(c.LocalAddr().String()), to)
		require.NoError(t, err)
	}
	raw, err := near.SyscallConn()
	require.NoError(t, err)
	got := ""
	for range 2 {
		require.NoError(t, receive(raw, from, func(b []byte) { got += string(b) }))
	}
	require.Equal(t, from.String(), got)
}

// A run that goes on to answer a peer who is silent does not keep the way to it open.
func TestPeerForgotten(t *testing.T) {
	near, to := loopbackUDP(t)
	run, at := loopbackUDP(t)
	outside, _ := loopbackUDP(t)
	u := &udpPort{m: &Member{address: at.Addr()}, conn: outside, port: at.Port()}
	p := &peer{peerKey: peerKey{from: addrPort(outside.LocalAddr())}, near: near, to: at}
	p.speaks()
	p.spoke.Add(-int64(udpIdle - time.Second/5))
	done := make(chan struct{})
	go func() {
		u.answer(p)
		close(done)
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, _ = run.WriteToUDPAddrPort([]byte("x"), to)
		select {
		case <-done:
			require.Positive(t, p.out.Load(), "answers before that were passed on")
			return
		default:
			require.True(t, time.Now().Before(end), "still remembered")
		}
	}
}
