package gateway

import (
	"context"
	"net"
	"sync/atomic"
)

// passInjected serves one connection of the member to a name with injected headers. What it sends
// and receives is counted, and paced, as it passes the run's side.
func (m *Member) passInjected(in *injection, conn *net.TCPConn, c *Conn) {
	_ = conn.SetReadBuffer(relayBuffer)
	_ = conn.SetWriteBuffer(relayBuffer)
	near := &paced{Conn: conn, m: m}
	err := in.serve(in, m.ctx, near, outside{roots: m.gateway.config.Roots, dial: func(ctx context.Context) (net.Conn, error) {
		far, err := m.connect(ctx, "tcp", hostAt(in.name, in.port), c)
		if err == nil {
			_ = far.(*net.TCPConn).SetReadBuffer(relayBuffer)
			_ = far.(*net.TCPConn).SetWriteBuffer(relayBuffer)
		}
		return far, err
	}})
	if err != nil {
		c.fail(err)
	}
	c.Sent, c.Received = near.read.Load(), near.written.Load()
}

// paced is a connection of a member that is as fast as it may be.
type paced struct {
	net.Conn
	m             *Member
	read, written atomic.Int64
}

// SetLinger is for who wants to reset the connection.
func (p *paced) SetLinger(seconds int) error { return p.Conn.(*net.TCPConn).SetLinger(seconds) }

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b[:min(int64(len(b)), p.m.sent.chunk())])
	p.read.Add(int64(n))
	if late := p.m.sent.spend(p.m.ctx, n); err == nil {
		err = late
	}
	return n, err
}

func (p *paced) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		n := min(int64(len(b)), p.m.received.chunk())
		var w int
		w, err = p.Conn.Write(b[:n])
		written, b = written+w, b[w:]
		p.written.Add(int64(w))
		if late := p.m.received.spend(p.m.ctx, w); err == nil {
			err = late
		}
	}
	return written, err
}
