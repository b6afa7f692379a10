package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a run sends while an observer is told of a flow that is over begins another, and is not
// lost.
func TestFlowAfterFlow(t *testing.T) {
	server, to := loopbackUDP(t)
	near, at := loopbackUDP(t)
	m := standIn(t, newRoster(&Config{}))
	config := m.gateway.config
	config.AllowCIDR("127.0.0.1", Ports{UDP: Spans(int(to.Port()))})
	m.gateway.rules[overUDP] = config.of(overUDP)
	told := make(chan bool, 2)
	config.Observe = func(Conn) {
		told <- true
		<-m.ctx.Done()
	}
	m.out = newShare(config)
	n, err := nearOf(near)
	require.NoError(t, err)

	f := &flow{ends: ends{at, to}, m: m, near: n, held: [][]byte{[]byte("one")}, last: time.Now().Add(time.Second/5 - unansweredTime),
		conn: Conn{over: overUDP, Port: to.Port(), Address: to, Begin: time.Now()}}
	require.NoError(t, m.out.take())
	m.flows = map[ends]*flow{f.ends: f}
	require.Equal(t, map[netip.Addr]bool{to.Addr(): true}, m.flowing())
	require.True(t, m.gateway.begin(f.serve))
	received := func() string {
		b := make([]byte, 10)
		require.NoError(t, server.SetReadDeadline(time.Now().Add(5*time.Second)))
		got, _, err := server.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		return string(b[:got])
	}
	require.Equal(t, "one", received())
	<-told
	m.sendOut(n, overUDP, f.ends, []byte("two"))
	require.Equal(t, "two", received())
}
