package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxDatagram = 64 << 10
	// maxHeld and maxHeldSize bound what is kept of a flow until its destination is known.
	maxHeld     = 4
	maxHeldSize = 2 << 10
	// datagramBuffer bounds what the kernel keeps of a flow, each way. The kernel doubles it.
	datagramBuffer = 64 << 10
	// How long a flow stays without a datagram: before and after there was an answer (RFC 4787,
	// section 4.3), and if it is refused, so that it is told of once.
	unansweredTime = 30 * time.Second
	answeredTime   = 2 * time.Minute
	refusedTime    = 5 * time.Second
)

// ends is the addresses of a flow: of a run, and that it sends to.
type ends struct{ from, to netip.AddrPort }

// flow is datagrams between two addresses, for which this process has a socket.
type flow struct {
	ends
	m    *Member
	near near // of the gateway
	conn Conn

	mu       sync.Mutex
	far      syscall.RawConn // nil until it is known
	pinger   *pinger         // that it is of, for ping
	held     [][]byte
	answered bool
	last     time.Time // a datagram passed
}

// near is a socket of the gateway, at which datagrams to any address arrive.
type near struct {
	syscall.RawConn
	family int
	raw    bool // it sends what has a header of UDP
}

// nearOf has a socket say where each datagram was sent to. One of IPv6 takes those of IPv4 too,
// and says the port of these with the option of IPv4.
func nearOf(conn syscall.Conn) (n near, err error) {
	if n.RawConn, err = conn.SyscallConn(); err != nil {
		return n, err
	}
	ctlErr := n.Control(func(fd uintptr) {
		s := int(fd)
		if n.family, err = unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		level, option := unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
		if n.family == unix.AF_INET {
			level, option = unix.SOL_IP, unix.IP_PKTINFO
		}
		if err = unix.SetsockoptInt(s, level, option, 1); err != nil {
			return
		}
		if kind, _ := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_TYPE); kind == unix.SOCK_DGRAM {
			err = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1)
			if err == nil && n.family == unix.AF_INET6 {
				err = unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1)
			}
		}
	})
	return n, os.NewSyscallError("setsockopt", errors.Join(ctlErr, err))
}

// send sends a datagram from an address of the gateway, in which all are local. Its port is the
// socket's, unless that is raw.
func (n near) send(b []byte, from, to netip.AddrPort) bool {
	var as []byte
	if n.family == unix.AF_INET {
		as = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.Addr().As4()})
	} else { // also for IPv4: ip_cmsg_send in net/ipv4/ip_sockglue.c
		as = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.Addr().As16()})
	}
	parts := [][]byte{b}
	if n.raw {
		parts = [][]byte{headOf(b, from.Port(), to.Port()), b}
		to = netip.AddrPortFrom(to.Addr(), 0) // that of a raw socket is its protocol
	}
	return now(n, func(fd int) error {
		_, err := unix.SendmsgBuffers(fd, parts, as, sockaddr(n.family, to), unix.MSG_DONTWAIT)
		return err
	})
}

// serveDatagrams takes what runs send to one port.
func (g *gateway) serveDatagrams(udp *net.UDPConn) error {
	near, err := nearOf(udp)
	if err != nil {
		return err
	}
	g.busy.Go(func() {
		b, oob := make([]byte, maxDatagram), make([]byte, infoRoom)
		for {
			n, oobn, _, from, err := udp.ReadMsgUDPAddrPort(b, oob)
			if isClosed(err) {
				return
			}
			to, ok := destination(oob[:oobn])
			if err != nil || !ok {
				continue
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if m := g.sender(from.Addr(), to.Addr()); m != nil {
				m.sendOut(g.answering(near, from.Addr()), overUDP, ends{from, to}, b[:n])
			}
		}
	})
	return nil
}

// destination returns where a datagram was sent to: ip(7), IP_PKTINFO, IP_RECVORIGDSTADDR, and the
// same of ipv6(7). The port is 0 for what has none.
func destination(oob []byte) (to netip.AddrPort, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return to, false
	}
	port := func(data []byte) uint16 { return binary.BigEndian.Uint16(data[2:]) }
	for _, m := range messages {
		data := m.Data
		switch h := m.Header; {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			at := unsafe.Offsetof(unix.Inet4Pktinfo{}.Addr)
			to, ok = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[at:])), to.Port()), true
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			to, ok = netip.AddrPortFrom(netip.AddrFrom16([16]byte(data)).Unmap(), to.Port()), true
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			to = netip.AddrPortFrom(to.Addr(), port(data))
		}
	}
	return to, ok
}

// sendOut passes on a datagram of the member, over a flow that may be new.
func (m *Member) sendOut(near near, over protocol, e ends, b []byte) {
	m.flowsMu.Lock()
	f := m.flows[e]
	if f == nil {
		f = &flow{ends: e, m: m, near: near, last: time.Now(), conn: Conn{over: over, Port: e.to.Port(), Address: e.to, Begin: time.Now()}}
		if err := m.out.take(); err != nil {
			m.flowsMu.Unlock()
			m.tellCrowded(f.conn, err)
			return
		}
		if !m.gateway.begin(f.serve) {
			m.out.give()
			m.flowsMu.Unlock()
			return
		}
		if m.flows == nil {
			m.flows = map[ends]*flow{}
		}
		m.flows[e] = f
	}
	m.flowsMu.Unlock()
	f.send(b)
}

// flowing returns the addresses to which the member has flows.
func (m *Member) flowing() map[netip.Addr]bool {
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	to := map[netip.Addr]bool{}
	for e := range m.flows {
		to[in4(e.to.Addr())] = true
	}
	return to
}

// send passes a datagram of the run on, or holds a few until it is known where to.
func (f *flow) send(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
	if f.far == nil {
		if len(f.held) < maxHeld && len(b) <= maxHeldSize {
			f.held = append(f.held, slices.Clone(b))
		}
		return
	}
	f.pass(b)
}

// pass sends a datagram to the other side. f.mu must be held.
func (f *flow) pass(b []byte) {
	n := len(b)
	if f.pinger != nil {
		b = f.pinger.request(b)
	}
	if f.m.sent.try(n) && now(f.far, func(fd int) error { return unix.Sendto(fd, b, unix.MSG_DONTWAIT, nil) }) {
		f.conn.Sent += int64(n)
	}
}

// now makes a call that does not wait, and reports whether it worked.
func now(c syscall.RawConn, call func(fd int) error) bool {
	var err error
	return c.Control(func(fd uintptr) { err = call(int(fd)) }) == nil && err == nil
}

// serve lives as long as the flow.
func (f *flow) serve() {
	m := f.m
	defer m.out.give()
	c := f.conn
	far, err := f.dial(&c)
	if err == nil {
		err = f.exchange(far, c.Address)
		f.forget() // what the run sends while an observer takes its time is another flow
		far.Close()
		f.mu.Lock()
		c.Sent, c.Received = f.conn.Sent, f.conn.Received
		f.mu.Unlock()
		c.Duration, c.Err = time.Since(c.Begin), err
		m.tell(c)
		return
	}
	defer f.forget()
	c.fail(err)
	m.tell(c)
	select {
	case <-m.ctx.Done():
	case <-time.After(refusedTime):
	}
}

func (f *flow) forget() {
	f.m.flowsMu.Lock()
	defer f.m.flowsMu.Unlock()
	delete(f.m.flows, f.ends)
}

// datagramConn is a *net.UDPConn or a *net.IPConn.
type datagramConn interface {
	net.Conn
	syscall.Conn
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}

func (f *flow) dial(c *Conn) (datagramConn, error) {
	if c.over == overPing {
		p, err := f.m.dialPing(f.to.Addr(), c)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	far, err := f.m.dial("udp", f.to, c)
	if err != nil {
		return nil, err
	}
	return far.(*net.UDPConn), nil
}

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// exchange passes datagrams on, both ways, until there are none any more.
func (f *flow) exchange(udp datagramConn, other netip.AddrPort) error {
	_ = udp.SetReadBuffer(datagramBuffer)
	_ = udp.SetWriteBuffer(datagramBuffer)
	far, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(f.m.ctx, func() { udp.Close() })()
	f.mu.Lock()
	f.far = far
	f.pinger, _ = udp.(*pinger)
	for _, b := range f.held {
		f.pass(b)
	}
	f.held = nil
	f.mu.Unlock()
	for {
		if err := receiveUntil(f.end, udp, other, f.passBack); err != errNoListener {
			return err
		}
	}
}

// errNoListener is that the kernel was told that nobody listens at the other side.
var errNoListener error = unix.ECONNREFUSED

// receiveUntil takes datagrams until the time that end returns, which each may change, or until
// errNoListener.
func receiveUntil(end func() time.Time, udp datagramConn, from netip.AddrPort, f func(b []byte)) error {
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	for {
		_ = udp.SetReadDeadline(end())
		switch err := receive(raw, from, f); {
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end()):
		case errors.Is(err, os.ErrDeadlineExceeded) || isClosed(err):
			return nil
		case err != nil:
			return err
		}
	}
}

// end returns when the flow ends if nothing passes.
func (f *flow) end() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answered && f.pinger == nil {
		return f.last.Add(answeredTime)
	}
	return f.last.Add(unansweredTime)
}

// passBack passes an answer on, from the address that the run knows: a socket may use any that is
// local, and in the gateway all are.
func (f *flow) passBack(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	to := f.from
	if f.pinger != nil {
		if b = f.pinger.passed(b, f.near.family, to.Port()); b == nil {
			return
		}
		to = netip.AddrPortFrom(to.Addr(), 0) // a raw socket's is its protocol
	}
	f.answered, f.last = true, time.Now()
	if f.m.received.try(len(b)) && f.near.send(b, f.to, to) {
		f.conn.Received += int64(len(b))
	}
}

// receive waits for a datagram, and takes a buffer for it only then. It leaves out what is not from
// the sender, as a socket has its port an instant before its peer (inet_dgram_connect in
// net/ipv4/af_inet.c), and what the kernel was told of earlier ones, except for errNoListener.
func receive(conn syscall.RawConn, from netip.AddrPort, f func(b []byte)) error {
	var b *[maxDatagram]byte
	var n int
	var sender unix.Sockaddr
	var recvErr error
	err := conn.Read(func(fd uintptr) bool {
		b = datagrams.Get().(*[maxDatagram]byte)
		if n, sender, recvErr = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT); recvErr != nil {
			datagrams.Put(b)
		}
		return recvErr != unix.EAGAIN
	})
	if err == nil && recvErr == errNoListener {
		err = recvErr
	}
	if err != nil || recvErr != nil || sender == nil {
		return err
	}
	defer datagrams.Put(b)
	if senderOf(sender) == from {
		f(b[:n])
	}
	return nil
}

func senderOf(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), uint16(s.Port))
	}
	return netip.AddrPort{}
}
