package gateway

import (
	"context"
	"encoding/binary"
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

const (
	dnsPort     = 53
	dialTimeout = 30 * time.Second
	dnsIdle     = 10 * time.Second // of a connection to the resolver
	maxQuery    = 1 << 10          // a question has a name of 255 bytes, and few options
)

func nativeFamily(sockaddr []byte, family uint16) { binary.NativeEndian.PutUint16(sockaddr, family) }

// listened returns the ports of the gateway's listeners.
func (c *Config) listened() []uint16 {
	if c.isWide() {
		return []uint16{widePort}
	}
	ports := each(c.all().TCP)
	for _, p := range ports {
		if p == dnsPort {
			return ports
		}
	}
	return append(ports, dnsPort)
}

// serveNames answers what runs ask by UDP.
func (g *gateway) serveNames(udp *net.UDPConn) {
	b := make([]byte, maxQuery)
	for {
		n, from, err := udp.ReadFromUDPAddrPort(b)
		if g.ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // of an earlier answer, which did not arrive
		}
		m := g.member(from.Addr())
		if m == nil {
			continue
		}
		if reply := m.ask(b[:n]); reply != nil {
			_, _ = udp.WriteToUDPAddrPort(reply, from)
		}
	}
}

// ask answers a query of the member, and tells of it if it was refused.
func (m *Member) ask(query []byte) []byte {
	reply, refused := m.gateway.config.answer(query, &m.names, m.reachable)
	if refused != "" && m.names.refuse(refused) {
		m.tellLater(Conn{Name: refused, Begin: time.Now(), Verdict: Refused, Err: &refusal{"the name is not listed"}})
	}
	return reply
}

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
	o := &outgoing{m: m}
	m.sending.Add(1)
	m.gateway.busy.Go(func() {
		defer places.give()
		defer o.over()
		defer context.AfterFunc(m.ctx, func() { o.end(conn) })()
		if !c.Published && in4(c.Address.Addr()) == resolver && c.Port == dnsPort {
			m.serveQueries(conn)
			return
		}
		serve(conn, &c, o)
		c.Duration = time.Since(c.Begin)
		m.tell(c)
	})
}

// tellCrowded tells of a connection for which there is no place, one of those that come meanwhile.
func (m *Member) tellCrowded(c Conn, err error) {
	c.Verdict, c.Err = Refused, err
	if m.crowded.CompareAndSwap(false, true) {
		m.gateway.begin(func() {
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

// serveQueries answers what the member asks over TCP: RFC 1035, section 4.2.2.
func (m *Member) serveQueries(conn *net.TCPConn) {
	defer conn.Close()
	for {
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint16(size[:])
		if n > maxQuery {
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply := m.ask(query)
		if reply == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
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
	if c.Rule, ok = m.configFor(c).ruleForName(name, to.Port()); !ok {
		return "", &refusal{"the port is not listed for the name"}
	}
	return hostAt(name, to.Port()), nil
}

// hostAt returns where to dial for a name. The root's dot keeps the machine's search list out of
// it.
func hostAt(name string, port uint16) string {
	return net.JoinHostPort(name+".", strconv.Itoa(int(port)))
}

// connect connects, if no rule is against the address that is found.
func (m *Member) connect(ctx context.Context, network, at string, c *Conn) (net.Conn, error) {
	config := m.configFor(c)
	d := net.Dialer{Timeout: dialTimeout, Resolver: config.Resolver, Control: func(_, address string, raw syscall.RawConn) error {
		real, err := netip.ParseAddrPort(address)
		if err == nil {
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
// side that does not read: it is this machine's memory, not the run's. The kernel doubles it:
// socket(7), SO_RCVBUF.
const relayBuffer = 128 << 10

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
func passFirst(ctx context.Context, to io.Writer, from io.Reader, name string, pace buckets) (sent int64, err error) {
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
func pass(ctx context.Context, to, from *net.TCPConn, pace buckets) (sent int64, err error) {
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
