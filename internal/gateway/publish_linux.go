package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// Publish passes what comes to an address of this machine on to a port of the member, until it
// retires. It returns the address with the port that it has.
func (m *Member) Publish(p spec.Published) (netip.AddrPort, error) {
	port := uint16(p.Port)
	if p.Protocol == "udp" {
		return m.publishUDP(p.Address, port)
	}
	if p.Shared {
		return m.share(p)
	}
	l, err := net.Listen("tcp", p.Address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(l.Addr()), m.published(l, func() {
		takeIn(l.(*net.TCPListener), func(conn *net.TCPConn) {
			m.limited(m.in, conn, Conn{Published: true, Port: port, Address: addrPort(conn.RemoteAddr()), Begin: time.Now()}, m.passIn)
		})
	})
}

// published has a goroutine take in what comes to l, until the member retires.
func (m *Member) published(l io.Closer, takeIn func()) error {
	if !m.gateway.begin(takeIn) {
		l.Close()
		return net.ErrClosed
	}
	m.keep(l)
	return nil
}

// keep has l closed when the member retires.
func (m *Member) keep(l io.Closer) {
	context.AfterFunc(m.ctx, func() { l.Close() })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners = append(m.listeners, l)
}

// takeIn takes the connections to one address, until that is closed.
func takeIn(l *net.TCPListener, take func(*net.TCPConn)) {
	for {
		conn, err := l.AcceptTCP()
		switch {
		case err == nil:
			take(conn)
		case isClosed(err):
			return
		default:
			time.Sleep(acceptPause)
		}
	}
}

// passIn serves one connection from outside to its end.
func (m *Member) passIn(conn *net.TCPConn, c *Conn, o *outgoing) {
	near, err := m.dialIn(c.Port)
	if err != nil {
		reset(conn)
		c.Verdict, c.Err = Failed, err
	} else {
		m.relay(near, conn, c, o)
	}
}

// dialIn connects to a port of the member.
func (m *Member) dialIn(port uint16) (near *net.TCPConn, err error) {
	for _, a := range m.addresses() { // it may listen at one of them
		if near, err = m.gateway.dial(m.ctx, netip.AddrPortFrom(a, port)); !errors.Is(err, unix.ECONNREFUSED) {
			break
		}
	}
	return near, err
}

// socketBatch is how many sockets are made in the gateway at a time: each time takes a process.
const socketBatch = 16

// dial connects to a member from within the gateway.
func (g *gateway) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	f, err := g.socket(kind{family(to.Addr()), unix.SOCK_STREAM})
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn has a copy
	if err := f.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })()
	if err := connect(f, to); err != nil {
		return nil, fmt.Errorf("connecting to the run: %w", err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// connect connects a socket that does not block: connect(2), EINPROGRESS.
func connect(f *os.File, to netip.AddrPort) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	begun := false
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), sockaddr(family(to.Addr()), to))
			return result != unix.EINPROGRESS
		}
		var code int
		if code, result = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); result == nil && code != 0 {
			result = unix.Errno(code)
		}
		if result != nil {
			return true
		}
		_, notYet := unix.Getpeername(int(fd))
		return notYet == nil
	})
	if err != nil {
		return err
	}
	return result
}

// dialUDP returns a socket within the gateway for what goes to a member.
func (g *gateway) dialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	f, err := g.socket(kind{family(to.Addr()), unix.SOCK_DGRAM})
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn has a copy
	if err := connect(f, to); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// kind is what a socket of the gateway is for, of TCP or UDP.
type kind struct{ family, socket int }

// socket returns a new socket of the gateway. Those of IPv6 have its address, which no interface
// has.
func (g *gateway) socket(k kind) (*os.File, error) {
	g.spareMu.Lock()
	defer g.spareMu.Unlock()
	if len(g.spare[k]) == 0 {
		files, err := g.cell.InNetwork(g.ns.file, func(b *program.Builder) (made []program.Slot) {
			for range socketBatch {
				s := socket(b, k.family, k.socket, 0)
				if k.family == unix.AF_INET6 {
					option(b, s, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT")
					bind(b, s, netip.AddrPortFrom(gateway6, 0))
				}
				made = append(made, s)
			}
			return made
		})
		if err != nil {
			return nil, fmt.Errorf("making sockets: %w", err)
		}
		g.spare[k] = files
	}
	f := g.spare[k][0]
	g.spare[k] = g.spare[k][1:]
	return f, nil
}
