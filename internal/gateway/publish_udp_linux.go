package gateway

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// udpIdle is how long a peer that is silent is remembered. What the run sends it does not
	// count, or one datagram with a forged source would let the run send there for ever.
	udpIdle  = time.Minute
	udpSpare = time.Second // for how long nothing has to pass until another may have its place
	infoRoom = 128         // of control messages with an address
)

// udpPort is a port of UDP of this machine that is published. Each peer has a socket of its own in
// the gateway, so that the run can tell them apart and its answers find back.
type udpPort struct {
	m    *Member
	conn *net.UDPConn
	port uint16
}

// peerKey is who speaks to us and at which port and address of ours, as the control message for
// answers.
type peerKey struct {
	u    *udpPort
	from netip.AddrPort
	at   string
}

// peers are all of a run, as its ports share the places.
type peers struct {
	*share
	mu  sync.Mutex
	all map[peerKey]*peer
}

func newPeers(c *Config) *peers { return &peers{share: newShare(c), all: map[peerKey]*peer{}} }

func (ps *peers) get(key peerKey) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.all[key]
}

func (ps *peers) add(p *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all[p.peerKey] = p
}

// end forgets a peer.
func (ps *peers) end(p *peer) {
	ps.mu.Lock()
	delete(ps.all, p.peerKey)
	ps.mu.Unlock()
	p.close()
}

// endAll ends those of a port.
func (ps *peers) endAll(u *udpPort) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if p.u == u {
			p.close()
		}
	}
}

// makeRoom ends the peer for which nothing has passed for the longest time, if that is long enough.
func (ps *peers) makeRoom() {
	if p := ps.oldest(); p != nil && since(&p.last) >= udpSpare {
		p.close()
	}
}

func (ps *peers) oldest() (oldest *peer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if oldest == nil || p.last.Load() < oldest.last.Load() {
			oldest = p
		}
	}
	return oldest
}

type peer struct {
	peerKey
	begin   time.Time
	spoke   atomic.Int64 // when it sent something, in Unix nanoseconds
	last    atomic.Int64 // when something passed, either way
	in, out atomic.Int64 // bytes to and from the run

	mu     sync.Mutex
	near   *net.UDPConn   // to the run
	to     netip.AddrPort // of the run
	held   []byte         // what it said last, while the run has not answered
	turned bool           // to the run's other address, since then
	closed bool
}

// send passes a datagram on to the run.
func (p *peer) send(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.turned, p.held = false, nil; p.out.Load() == 0 && len(b) <= maxHeldSize {
		p.held = slices.Clone(b)
	}
	if _, err := p.near.Write(b); errors.Is(err, errNoListener) { // of the one before
		_, _ = p.near.Write(b)
	}
}

func (p *peer) socket() (*net.UDPConn, netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.near, p.to
}

func (p *peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.near.Close()
}

// end returns when the peer is forgotten, if it stays silent.
func (p *peer) end() time.Time { return time.Unix(0, p.spoke.Load()).Add(udpIdle) }

// speaks notes that the peer has sent something.
func (p *peer) speaks() {
	now := time.Now().UnixNano()
	p.spoke.Store(now)
	p.last.Store(now)
}

func since(t *atomic.Int64) time.Duration { return time.Since(time.Unix(0, t.Load())) }

// publishUDP is Publish for UDP.
func (m *Member) publishUDP(address string, port uint16) (netip.AddrPort, error) {
	c := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		level, option := unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
		if network == "udp4" {
			level, option = unix.SOL_IP, unix.IP_PKTINFO
		}
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
	}}
	l, err := c.ListenPacket(m.ctx, "udp", address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	u := &udpPort{m: m, conn: l.(*net.UDPConn), port: port}
	return l.LocalAddr().(*net.UDPAddr).AddrPort(), m.published(l, u.takeIn)
}

// takeIn passes on what comes, until the port is closed.
func (u *udpPort) takeIn() {
	defer u.m.peers.endAll(u)
	b, info := make([]byte, maxDatagram), make([]byte, infoRoom)
	for {
		n, infoLen, _, from, err := u.conn.ReadMsgUDPAddrPort(b, info)
		switch {
		case err == nil:
			if p := u.peer(peerKey{u, from, anyInterface(info[:infoLen])}); p != nil {
				u.passIn(p, b[:n])
			}
		case isClosed(err):
			return
		default:
			time.Sleep(acceptPause)
		}
	}
}

// passIn passes on what a peer sends. If the run does not listen, it is lost.
func (u *udpPort) passIn(p *peer, b []byte) {
	p.speaks()
	if u.m.received.try(len(b)) {
		p.in.Add(int64(len(b)))
		p.send(b)
	}
}

// passOut passes an answer on.
func (u *udpPort) passOut(p *peer, b []byte) {
	p.last.Store(time.Now().UnixNano())
	if u.m.sent.try(len(b)) {
		p.out.Add(int64(len(b)))
		_, _, _ = u.conn.WriteMsgUDPAddrPort(b, []byte(p.at), p.from)
	}
}

// anyInterface returns control messages with an address, IP_PKTINFO or IPV6_PKTINFO, so that an
// answer with them comes from that address, by whatever route: ip(7), ipv6(7).
func anyInterface(info []byte) string {
	messages, err := unix.ParseSocketControlMessage(info)
	if err != nil {
		return ""
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return string(unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:8])}))
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return string(unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}))
		}
	}
	return ""
}

// peer returns the peer, which is new if it has not spoken before, or nil if there are too many.
func (u *udpPort) peer(key peerKey) *peer {
	if p := u.m.peers.get(key); p != nil {
		return p
	}
	p := &peer{peerKey: key, begin: time.Now(), to: netip.AddrPortFrom(u.m.address, u.port)}
	if err := u.m.peers.take(); err != nil {
		if errors.Is(err, errTooMany) {
			u.m.peers.makeRoom()
		}
		u.m.tellCrowded(u.connOf(p), err)
		return nil
	}
	var err error
	if p.near, err = u.m.gateway.dialUDP(p.to); err == nil {
		p.speaks()
		u.m.peers.add(p)
		if u.m.gateway.begin(func() { u.serve(p) }) {
			return p
		}
		u.m.peers.end(p)
	}
	u.m.peers.give()
	return nil
}

// serve passes answers back, until the peer has been silent for long, and tells of it.
func (u *udpPort) serve(p *peer) {
	u.answer(p)
	u.m.peers.end(p)
	u.m.peers.give()
	c := u.connOf(p)
	c.Duration, c.Sent, c.Received = time.Since(p.begin), p.out.Load(), p.in.Load()
	u.m.tell(c)
}

func (u *udpPort) connOf(p *peer) Conn {
	from := netip.AddrPortFrom(p.from.Addr().Unmap(), p.from.Port())
	return Conn{over: overUDP, Published: true, Port: u.port, Address: from, Begin: p.begin}
}

func (u *udpPort) answer(p *peer) {
	for {
		near, to := p.socket()
		if receiveUntil(p.end, near, to, func(b []byte) { u.passOut(p, b) }) != errNoListener {
			return
		}
		u.turn(p)
	}
}

// turn has a peer who got no answer speak to the run's other address, as it may listen there, and
// say again what it said last.
func (u *udpPort) turn(p *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil || p.turned || p.closed {
		return
	}
	p.turned = true
	for _, a := range u.m.addresses() {
		if a == p.to.Addr() {
			continue
		}
		to := netip.AddrPortFrom(a, u.port)
		near, err := u.m.gateway.dialUDP(to)
		if err != nil {
			return
		}
		p.near.Close()
		p.near, p.to = near, to
		_, _ = near.Write(p.held)
		return
	}
}
