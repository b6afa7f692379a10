package gateway

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	udpIdle  = time.Minute // how long a peer that is silent is remembered
	udpSpare = time.Second // for how long it has to be silent until another may have its place
	infoRoom = 128         // of control messages with an address
)

// udpPort is a port of UDP of this machine that is published. Each peer has a socket of its own in
// the gateway, so that the run can tell them apart and its answers find back.
type udpPort struct {
	m    *Member
	conn *net.UDPConn
	port uint16

	mu    sync.Mutex
	peers map[peerKey]*peer
}

// peerKey is who speaks to us and at which address of ours, as the control message for answers.
type peerKey struct {
	from netip.AddrPort
	at   string
}

type peer struct {
	peerKey
	near    *net.UDPConn // to the run
	begin   time.Time
	last    atomic.Int64 // when something passed, in Unix nanoseconds
	in, out atomic.Int64 // bytes to and from the run
}

func (p *peer) passed(n int, count *atomic.Int64) {
	count.Add(int64(n))
	p.last.Store(time.Now().UnixNano())
}

func (p *peer) silence() time.Duration { return time.Duration(time.Now().UnixNano() - p.last.Load()) }

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
	u := &udpPort{m: m, conn: l.(*net.UDPConn), port: port, peers: map[peerKey]*peer{}}
	return l.LocalAddr().(*net.UDPAddr).AddrPort(), m.published(l, u.takeIn)
}

// takeIn passes on what comes, until the port is closed.
func (u *udpPort) takeIn() {
	defer u.endAll()
	b, info := make([]byte, maxDatagram), make([]byte, infoRoom)
	for {
		n, infoLen, _, from, err := u.conn.ReadMsgUDPAddrPort(b, info)
		switch {
		case err == nil:
			if p := u.peer(peerKey{from, anyInterface(info[:infoLen])}); p != nil {
				p.passed(n, &p.in)
				_, _ = p.near.Write(b[:n]) // if the run does not listen, it is lost
			}
		case isClosed(err):
			return
		default:
			time.Sleep(acceptPause)
		}
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
	u.mu.Lock()
	p := u.peers[key]
	u.mu.Unlock()
	if p != nil {
		return p
	}
	p = &peer{peerKey: key, begin: time.Now()}
	if u.m.in.take() != nil {
		u.makeRoom()
		return nil
	}
	var err error
	if p.near, err = u.m.gateway.dialUDP(netip.AddrPortFrom(u.m.address, u.port)); err == nil {
		p.passed(0, &p.in)
		u.mu.Lock()
		u.peers[key] = p
		u.mu.Unlock()
		if u.m.gateway.begin(func() { u.serve(p) }) {
			return p
		}
		u.end(p)
	}
	u.m.in.give()
	return nil
}

// end forgets a peer.
func (u *udpPort) end(p *peer) {
	u.mu.Lock()
	delete(u.peers, p.peerKey)
	u.mu.Unlock()
	p.near.Close()
}

func (u *udpPort) endAll() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.peers {
		p.near.Close()
	}
}

// makeRoom ends the peer that has been silent for the longest time, if that is long enough.
func (u *udpPort) makeRoom() {
	u.mu.Lock()
	defer u.mu.Unlock()
	var oldest *peer
	for _, p := range u.peers {
		if oldest == nil || p.last.Load() < oldest.last.Load() {
			oldest = p
		}
	}
	if oldest != nil && oldest.silence() >= udpSpare {
		oldest.near.Close()
	}
}

// serve passes answers back, until the peer has been silent for long, and tells of it.
func (u *udpPort) serve(p *peer) {
	u.answer(p)
	u.end(p)
	u.m.in.give()
	from := netip.AddrPortFrom(p.from.Addr().Unmap(), p.from.Port())
	u.m.tell(Conn{Published: true, Port: u.port, Address: from, Begin: p.begin, Duration: time.Since(p.begin), Sent: p.out.Load(), Received: p.in.Load()})
}

func (u *udpPort) answer(p *peer) {
	for {
		_ = p.near.SetReadDeadline(time.Unix(0, p.last.Load()).Add(udpIdle))
		err := receive(p.near, func(b []byte) {
			p.passed(len(b), &p.out)
			_, _, _ = u.conn.WriteMsgUDPAddrPort(b, []byte(p.at), p.from)
		})
		switch {
		case err == nil, errors.Is(err, unix.ECONNREFUSED): // it does not listen, yet
		case errors.Is(err, os.ErrDeadlineExceeded) && p.silence() < udpIdle:
		default:
			return
		}
	}
}

// receive waits for a datagram, and takes a buffer for it only then.
func receive(conn *net.UDPConn, f func(b []byte)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var b *[maxDatagram]byte
	var n int
	var result error
	err = raw.Read(func(fd uintptr) bool {
		b = datagrams.Get().(*[maxDatagram]byte)
		n, _, result = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
		if result == unix.EAGAIN {
			datagrams.Put(b)
			return false
		}
		return true
	})
	if err != nil {
		return err
	}
	defer datagrams.Put(b)
	if result == nil {
		f(b[:n])
	}
	return result
}
