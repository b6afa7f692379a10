package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const dialTimeout = 30 * time.Second

func (m *Member) tell(c Conn) {
	if observe := m.gateway.config.Observe; observe != nil {
		c.Run = m.name
		observe(c)
	}
}

// tellLater is tell for goroutines that serve other members too.
func (m *Member) tellLater(c Conn) {
	if m.gateway.config.Observe != nil {
		m.gateway.begin(func() { m.tell(c) })
	}
}

// accept takes the connections to one port.
func (g *gateway) accept(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		switch {
		case err == nil:
		case isClosed(err):
			return
		default: // out of descriptors, say
			time.Sleep(acceptPause)
			continue
		}
		if m := g.member(addrPort(conn.RemoteAddr()).Addr()); m != nil {
			to := addrPort(conn.LocalAddr())
			m.limited(m.out, conn, Conn{Port: to.Port(), Address: to, Begin: time.Now()}, m.passOut)
		} else {
			reset(conn)
		}
	}
}

// acceptPause is how long accepting rests after an error.
const acceptPause = 10 * time.Millisecond

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

// limited serves a connection, unless there are as many as may be, and tells of it.
func (m *Member) limited(places *share, conn *net.TCPConn, c Conn, serve func(*net.TCPConn, *Conn, *outgoing)) {
	if err := places.take(); err != nil {
		reset(conn)
		m.tellCrowded(c, err)
		return
	}
	if !m.serve(places, conn, c, serve) {
		reset(conn)
	}
}

// serve serves a connection that has its place, and tells of it, unless the gateway is closed.
func (m *Member) serve(places *share, conn *net.TCPConn, c Conn, serve func(*net.TCPConn, *Conn, *outgoing)) bool {
	o := &outgoing{m: m}
	m.sending.Add(1)
	begun := m.gateway.begin(func() {
		defer places.give()
		defer o.over()
		defer context.AfterFunc(m.ctx, func() { o.end(conn) })()
		if !c.Published && in4(c.Address.Addr()) == resolver && c.Port == dnsPort {
			m.serveQueries(conn)
			return
		}
		serve(conn, &c, o)
		if c.Duration = time.Since(c.Begin); !c.elsewhere {
			m.tell(c)
		}
	})
	if !begun {
		o.over()
		places.give()
	}
	return begun
}

// tellCrowded tells of a connection for which there is no place, one of those that come meanwhile.
func (m *Member) tellCrowded(c Conn, err error) {
	if m.crowded.CompareAndSwap(false, true) {
		m.gateway.begin(func() {
			if !c.Published {
				_, _ = m.target(c.Address, &c)
			}
			c.Verdict, c.Err = Refused, err
			m.tell(c)
			m.crowded.Store(false)
		})
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(interface{ AddrPort() netip.AddrPort }).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// reset ends a connection with an error for the other side.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

// passOut serves one connection of the member to its end.
func (m *Member) passOut(conn *net.TCPConn, c *Conn, o *outgoing) {
	at, err := m.target(c.Address, c)
	if in := m.gateway.config.inject[c.Name]; err == nil && in != nil && c.Port == injectPort {
		m.passInjected(in, conn, c)
		return
	}
	var far net.Conn
	if err == nil {
		far, err = m.connect(m.ctx, "tcp", at, c)
	}
	if err == nil {
		m.relay(conn, far.(*net.TCPConn), c, o)
		return
	}
	reset(conn)
	c.fail(err)
}

// fail is for a connection that there is not.
func (c *Conn) fail(err error) {
	c.Err, c.Verdict = err, Failed
	var refused *refusal
	if errors.As(err, &refused) {
		c.Verdict = Refused
	}
}

// withoutBroadcast takes from a socket what Go gives to all of UDP: one datagram would reach this
// machine and all others on its link.
func withoutBroadcast(raw syscall.RawConn) (err error) {
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0) }), err)
}

// dial connects to what the member wants to reach, if it may.
func (m *Member) dial(network string, to netip.AddrPort, c *Conn) (net.Conn, error) {
	at, err := m.target(to, c)
	if err != nil {
		return nil, err
	}
	return m.connect(m.ctx, network, at, c)
}

// configFor returns the rules for the protocol of a connection.
func (m *Member) configFor(c *Conn) *Config {
	return m.gateway.rules[c.over]
}

// target returns where to dial for an address, if the member may reach that.
func (m *Member) target(to netip.AddrPort, c *Conn) (at string, err error) {
	if !nameRange.Contains(in4(to.Addr())) {
		c.Rule, err = m.configFor(c).ruleFor(to)
		if err == nil && c.Rule == "" {
			err = &refusal{"the address is not listed"}
		}
		return to.String(), err
	}
	name, ok := m.names.nameOf(in4(to.Addr()))
	if !ok {
		return "", &refusal{"the address stands for no name"}
	}
	c.Name, c.Address = name, netip.AddrPort{}
	// It may have become a run's own since the resolver answered.
	own := m.gateway.roster.isOwn(name)
	if c.Rule, ok = m.configFor(c).ruleForName(name, own, to.Port()); !ok {
		return "", &refusal{"the port is not listed for the name"}
	}
	return hostAt(name, to.Port()), nil
}

// hostAt returns where to dial for a name. The root's dot keeps the machine's search list out of
// it.
func hostAt(name string, port uint16) string {
	return net.JoinHostPort(name+".", strconv.Itoa(int(port)))
}

// connect connects to what target has returned for c, if no rule is against the address that is
// found.
func (m *Member) connect(ctx context.Context, network, at string, c *Conn) (net.Conn, error) {
	config := m.configFor(c)
	d := net.Dialer{Timeout: dialTimeout, Resolver: config.Resolver, Control: func(_, address string, raw syscall.RawConn) error {
		real, err := netip.ParseAddrPort(address)
		if err == nil && address != at { // else target has asked
			_, err = config.ruleFor(real)
		}
		if err == nil && c.over == overUDP {
			err = withoutBroadcast(raw)
		}
		return err
	}}
	far, err := d.DialContext(ctx, network, at)
	if err != nil {
		return nil, err
	}
	c.Address = addrPort(far.RemoteAddr())
	if err := config.checkFar(addrPort(far.LocalAddr()).Addr(), c.Address); err != nil {
		far.Close()
		return nil, err
	}
	return far, nil
}

// outgoing is what a run sends over one connection.
type outgoing struct {
	m    *Member
	once sync.Once
	all  atomic.Bool // it has been passed on
}

// over is called when the run sends no more.
func (o *outgoing) over() { o.once.Do(func() { o.m.sending.Add(-1) }) }

// end closes the connection over which it goes. What has been passed on still arrives; else the
// other side must learn that something is missing.
func (o *outgoing) end(c *net.TCPConn) {
	if o.all.Load() {
		c.Close()
	} else {
		reset(c)
	}
}

// relayBuffer bounds what the kernel keeps of a connection in each of its four directions, for a
// side that does not read: it is this machine's memory, not the run's. The kernel doubles it, and
// has a limit of its own: socket(7), SO_RCVBUF, rmem_max. With a quarter of it, copying took twice
// as many switches between threads, and a third more CPU time.
const relayBuffer = 512 << 10

// relay copies both ways between the run and the other side until both are through.
func (m *Member) relay(near, far *net.TCPConn, c *Conn, o *outgoing) {
	for _, side := range []*net.TCPConn{near, far} {
		_ = side.SetReadBuffer(relayBuffer)
		_ = side.SetWriteBuffer(relayBuffer)
	}
	end := func() {
		o.end(far)
		reset(near)
	}
	defer context.AfterFunc(m.ctx, end)()
	back := make(chan error, 1)
	go func() {
		var err error
		if c.Received, err = pass(m.ctx, near, far, m.received); err != nil {
			end()
		}
		back <- err
	}()
	var err error
	if c.Name != "" {
		c.Sent, err = passFirst(m.ctx, far, near, c.Name, m.sent)
	}
	if err == nil {
		var n int64
		n, err = pass(m.ctx, far, near, m.sent)
		c.Sent += n
	}
	if err == nil {
		o.all.Store(true)
	} else {
		end()
	}
	o.over()
	c.Err = errors.Join(err, <-back)
	if wrong := new(refusal); errors.As(err, &wrong) {
		c.Verdict, c.Err = Refused, wrong
	}
	near.Close()
	far.Close()
}

// passFirst copies what the run sends to a name, until it has shown whether it speaks of another.
func passFirst(ctx context.Context, to io.Writer, from io.Reader, name string, pace limits) (sent int64, err error) {
	f, b := first{name: name}, make([]byte, 2<<10)
	for !f.judged {
		n, end := from.Read(b)
		if err := f.add(b[:n]); err != nil {
			return sent, err
		}
		n, err := to.Write(b[:n])
		sent += int64(n)
		if err == nil {
			err = pace.spend(ctx, n)
		}
		if err != nil {
			return sent, err
		}
		if end == io.EOF {
			return sent, f.end()
		}
		if end != nil {
			return sent, end
		}
	}
	return sent, nil
}

// pass copies one way, and passes on that this is over.
func pass(ctx context.Context, to, from *net.TCPConn, pace limits) (sent int64, err error) {
	if len(pace) == 0 {
		sent, err = io.Copy(to, from)
	}
	for len(pace) > 0 && err == nil {
		var n int64
		n, err = io.CopyN(to, from, pace.chunk())
		sent += n
		if late := pace.spend(ctx, int(n)); err == nil {
			err = late
		}
	}
	if err == nil || err == io.EOF {
		err = to.CloseWrite()
	}
	if errors.Is(err, unix.ENOTCONN) { // the other way is over too
		err = nil
	}
	return sent, err
}
