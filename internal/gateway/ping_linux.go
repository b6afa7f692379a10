package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

// Ping. What runs send to other runs the kernel forwards. All other echo requests arrive at raw
// sockets of the gateway, where nobody else answers them (icmp_echo_ignore_all). Each that is
// allowed is asked again by a socket of this process, and answered from the address that the run
// knows. A flow is what one program of a run, known by its id, asks of one address.

const (
	echoHead = 8 // type, code, checksum, id, number: RFC 792, RFC 4443
	// pingRate is how many echo requests of a run are passed on in a second.
	pingRate = 100
)

// echoTypes are those of request and reply, by family.
var echoTypes = map[int][2]byte{unix.AF_INET: {8, 0}, unix.AF_INET6: {128, 129}}

// setUpPing makes the raw sockets.
func setUpPing(b *program.Builder) []program.Slot {
	s := socket(b, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	option(b, s, unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT")
	if kernelIPv6() != nil {
		return []program.Slot{s}
	}
	s6 := socket(b, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	option(b, s6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT")
	return []program.Slot{s, s6}
}

// onlyEchoes has a raw socket take one type of message: raw(7), RFC 3542, section 3.2.
func onlyEchoes(s, family int, kind byte) error {
	if family == unix.AF_INET {
		return unix.SetsockoptInt(s, unix.SOL_RAW, 1 /* ICMP_FILTER */, int(int32(^(uint32(1) << kind))))
	}
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[kind>>5] &^= 1 << (kind & 31)
	return unix.SetsockoptICMPv6Filter(s, unix.SOL_ICMPV6, 1 /* ICMPV6_FILTER */, &f)
}

// serveEchoes takes the echo requests of runs.
func (g *gateway) serveEchoes(conn *net.IPConn) error {
	near, err := nearOf(conn)
	if err != nil {
		return err
	}
	if ctlErr := near.Control(func(fd uintptr) { err = onlyEchoes(int(fd), near.family, echoTypes[near.family][0]) }); ctlErr != nil || err != nil {
		return os.NewSyscallError("ICMP_FILTER", errors.Join(ctlErr, err))
	}
	g.busy.Go(func() {
		b, info := make([]byte, maxDatagram), make([]byte, infoRoom)
		for {
			var n, infoLen int
			var sender unix.Sockaddr
			var recvErr error
			if err := near.Read(func(fd uintptr) bool {
				n, infoLen, _, sender, recvErr = unix.Recvmsg(int(fd), b, info, unix.MSG_DONTWAIT)
				return recvErr != unix.EAGAIN
			}); err != nil {
				return
			}
			to, ok := destination(info[:infoLen])
			if recvErr == nil && ok {
				g.takeEcho(near, senderOf(sender).Addr(), to.Addr(), message(near.family, true, b[:n]))
			}
		}
	})
	return nil
}

// message returns what a socket has received without the header of IPv4 that raw ones get: raw(7).
func message(family int, raw bool, b []byte) []byte {
	if !raw || family != unix.AF_INET {
		return b
	}
	if len(b) == 0 || len(b) < int(b[0]&0xf)*4 {
		return nil
	}
	return b[int(b[0]&0xf)*4:]
}

func (g *gateway) takeEcho(near near, from, to netip.Addr, b []byte) {
	m := g.sender(from, to)
	if m == nil || len(b) < echoHead || b[0] != echoTypes[near.family][0] || b[1] != 0 || !m.pings.try(1, time.Now()) {
		return
	}
	id := binary.BigEndian.Uint16(b[4:])
	m.sendOut(near, overPing, ends{netip.AddrPortFrom(from, id), netip.AddrPortFrom(to, 0)}, b)
}

// echo returns a message with the number and the content of another. The kernel adds IPv6's
// checksum.
func echo(family int, kind byte, id uint16, of []byte) []byte {
	b := slices.Clone(of)
	b[0], b[1], b[2], b[3] = kind, 0, 0, 0
	binary.BigEndian.PutUint16(b[4:], id)
	if family == unix.AF_INET {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pinger is a socket for one address outside.
type pinger struct {
	datagramConn
	family int
	raw    bool
	id     uint16 // that the kernel replaces if it is not raw
	// mark is at the end of what a raw socket sends, as it gets the answers to others, too,
	// and of ids there are too few to tell them apart.
	mark []byte
}

// request returns what to send for a request of the run.
func (p *pinger) request(b []byte) []byte {
	return echo(p.family, echoTypes[p.family][0], p.id, slices.Concat(b, p.mark))
}

// passed returns what the address has answered, with the id and the family of the run, or nil.
func (p *pinger) passed(b []byte, family int, id uint16) []byte {
	b, own := bytes.CutSuffix(message(p.family, p.raw, b), p.mark)
	if !own || len(b) < echoHead || b[0] != echoTypes[p.family][1] {
		return nil
	}
	return echo(family, echoTypes[family][1], id, b)
}

// canPing returns an error if this process can't ping.
func canPing() error {
	s, _, err := pingSocket(unix.AF_INET)
	if err != nil {
		return fault.Option("Ping", "this process may have no socket for it: widen net.ipv4.ping_group_range to a group of this process (sysctl -w net.ipv4.ping_group_range='0 2147483647'), or give it CAP_NET_RAW: %w", err)
	}
	return unix.Close(s)
}

// pingSocket returns a socket for ICMP: one for users as far as there may be one (icmp(7)), else a
// raw one.
func pingSocket(family int) (s int, raw bool, err error) {
	protocol := unix.IPPROTO_ICMP
	if family == unix.AF_INET6 {
		protocol = unix.IPPROTO_ICMPV6
	}
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if s, err = unix.Socket(family, unix.SOCK_DGRAM|flags, protocol); err == nil {
		return s, false, nil
	}
	if s, rawErr := unix.Socket(family, unix.SOCK_RAW|flags, protocol); rawErr == nil {
		if err = onlyEchoes(s, family, echoTypes[family][1]); err == nil {
			return s, true, nil
		}
		unix.Close(s)
	}
	return -1, false, os.NewSyscallError("socket", err)
}

func newPinger(to netip.Addr) (*pinger, error) {
	p := &pinger{family: family(to), id: uint16(rand.Uint32())}
	s, raw, err := pingSocket(p.family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(s), "ping")
	defer f.Close() // FilePacketConn has a copy
	if err := unix.Connect(s, sockaddr(p.family, netip.AddrPortFrom(to, 0))); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	p.raw, p.datagramConn = raw, conn.(datagramConn)
	if raw {
		p.mark = binary.NativeEndian.AppendUint64(nil, rand.Uint64())
	}
	return p, nil
}

// dialPing returns a socket for what the member wants to ping, if it may: of a name's addresses one
// of the family that it asked over, if there is one.
func (m *Member) dialPing(to netip.Addr, c *Conn) (*pinger, error) {
	if _, err := m.target(netip.AddrPortFrom(to, 0), c); err != nil {
		return nil, err
	}
	addresses := []netip.Addr{to}
	if c.Name != "" {
		ctx, cancel := context.WithTimeout(m.ctx, dialTimeout)
		defer cancel()
		found, err := m.gateway.config.Resolver.LookupNetIP(ctx, "ip", c.Name+".")
		if err != nil {
			return nil, err
		}
		for i := range found {
			found[i] = found[i].Unmap()
		}
		slices.SortStableFunc(found, func(a, b netip.Addr) int {
			return rank(a.Is6() == to.Is6()) - rank(b.Is6() == to.Is6())
		})
		addresses = found
	}
	err := errors.New("it has no address")
	for _, a := range addresses {
		var p *pinger
		if p, err = m.dialPingAt(a, c); err == nil {
			return p, nil
		}
	}
	return nil, err
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

func (m *Member) dialPingAt(a netip.Addr, c *Conn) (*pinger, error) {
	rules, at := m.configFor(c), netip.AddrPortFrom(a, 0)
	if _, err := rules.ruleFor(at); err != nil {
		return nil, err
	}
	p, err := newPinger(a)
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	own, _ := netip.ParseAddr(hostOf(p.LocalAddr()))
	if c.Address = at; rules.checkFar(own.Unmap(), at) != nil {
		p.Close()
		return nil, rules.checkFar(own.Unmap(), at)
	}
	return p, nil
}

// hostOf returns the address of a UDP or IP address.
func hostOf(a net.Addr) string {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.IP.String()
	case *net.IPAddr:
		return a.IP.String()
	}
	return ""
}
