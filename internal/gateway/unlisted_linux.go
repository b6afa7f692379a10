package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

// What runs send to a port that no option lists, nobody takes, and the kernel refuses it. So that
// observers are told of it, packet sockets see it, too (packet(7)): the first segments of
// connections, datagrams, and echo requests if ping is not listed. A filter keeps all else from
// them, as what runs send each other, or over connections.

// unlisted is these sockets, one of each family.
type unlisted struct {
	g *gateway

	mu      sync.Mutex // held while a packet is taken and told of
	sockets []syscall.RawConn
	buffer  [unlistedHead]byte
}

const (
	// unlistedHead is what is looked at of a packet: the longest header of IPv4, and ports.
	unlistedHead = 64
	fragmentHead = 8 // RFC 8200, section 4.5
	// maxUnlisted bounds what is told of at once. The kernel keeps less of a socket.
	maxUnlisted = 1000
)

// canWatch returns an error if the kernel has no packet sockets. Who may have one is another
// question.
func canWatch() error {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		return unix.Close(s)
	}
	if err == unix.EAFNOSUPPORT {
		return fault.Option("NetworkObserver", "to tell of ports that are not listed takes packet sockets (CONFIG_PACKET): load them (modprobe af_packet), or leave it out: %w", os.NewSyscallError("socket", err))
	}
	return nil
}

// setUpUnlisted makes the sockets.
func setUpUnlisted(b *program.Builder) (made []program.Slot) {
	for range families() {
		made = append(made, socket(b, unix.AF_PACKET, unix.SOCK_DGRAM, 0))
	}
	return made
}

// watchUnlisted begins to tell of what comes to the sockets.
func (g *gateway) watchUnlisted(files []*os.File) error {
	u := &unlisted{g: g}
	for i, family := range families() {
		if err := u.watch(files[i], family); err != nil {
			return fmt.Errorf("watching ports that are not listed: %w", err)
		}
	}
	g.unlisted = u
	return nil
}

// watch begins to tell of what is of a family.
func (u *unlisted) watch(f *os.File, family int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	filter, err := bpf.Assemble(u.g.config.unlistedFilter(family))
	if err != nil {
		return err
	}
	protocol := uint16(unix.ETH_P_IP)
	if family == unix.AF_INET6 {
		protocol = unix.ETH_P_IPV6
	}
	ctlErr := raw.Control(func(fd uintptr) {
		// struct sock_filter is bpf.RawInstruction.
		list := make([]unix.SockFilter, len(filter))
		for i, r := range filter {
			list[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]})
		if err == nil {
			err = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: bigEndian(protocol)})
		}
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return err
	}
	u.sockets = append(u.sockets, raw)
	context.AfterFunc(u.g.ctx, func() { f.Close() })
	u.g.busy.Go(func() {
		for raw.Read(u.take) == nil {
		}
	})
	return nil
}

// drain tells of what has come so far.
func (u *unlisted) drain() {
	if u == nil {
		return
	}
	for _, s := range u.sockets {
		_ = s.Control(func(fd uintptr) {
			for i := 0; i < maxUnlisted && u.take(fd); i++ {
			}
		})
	}
}

// take takes a packet, and tells of it. It reports whether there was one.
func (u *unlisted) take(fd uintptr) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, sender, err := unix.Recvfrom(int(fd), u.buffer[:], unix.MSG_DONTWAIT)
	if err != nil {
		return err != unix.EAGAIN
	}
	from, to, over, ok := sentOf(u.buffer[:n])
	if !ok {
		return true
	}
	// Its source is what the run says, and the interface is the run's.
	m, link := u.g.sender(from, to.Addr()), sender.(*unix.SockaddrLinklayer).Ifindex
	if m == nil || int(m.link()) != link {
		return true
	}
	// First, as a run may send many, and a look at this machine's addresses takes far longer.
	if !m.names.refusePort(over, to) {
		return true
	}
	c := Conn{over: over, Port: to.Port(), Address: to, Begin: time.Now()}
	if _, err := m.target(to, &c); err != nil {
		c.fail(err)
		m.tell(c)
	}
	return true
}

// sentOf returns who sends a packet, and where to.
func sentOf(p []byte) (from netip.Addr, to netip.AddrPort, over protocol, ok bool) {
	if len(p) < ipHead {
		return from, to, over, false
	}
	kind, head := p[9], int(p[0]&0xf)*4
	if p[0]>>4 == 6 {
		kind, head = p[6], ipv6Head
	}
	if p[0]>>4 == 6 && kind == unix.IPPROTO_FRAGMENT && len(p) > ipv6Head {
		kind, head = p[ipv6Head], ipv6Head+fragmentHead
	}
	if len(p) < head+4 {
		return from, to, over, false
	}
	var at netip.Addr
	if p[0]>>4 == 6 {
		from, at = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
	} else {
		from, at = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	}
	port := binary.BigEndian.Uint16(p[head+2:])
	switch kind {
	case unix.IPPROTO_TCP:
		over = overTCP
	case unix.IPPROTO_UDP:
		over = overUDP
	default:
		over, port = overPing, 0
	}
	return from, netip.AddrPortFrom(at, port), over, true
}

// unlistedFilter returns the filter of a family: it takes the beginnings of what no option lists,
// as the packet's headers have it, which begin with that of IP.
func (c *Config) unlistedFilter(family int) (list []bpf.Instruction) {
	all := c.all()
	drop, accept := bpf.RetConstant{}, bpf.RetConstant{Val: unlistedHead}
	add := func(more ...bpf.Instruction) { list = append(list, more...) }
	// only drops the packet unless the number that was loaded is so.
	only := func(is bpf.JumpTest, n uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: is, Val: n, SkipTrue: 1}, drop}
	}
	runs := runRange.Addr().As4()
	echo, kind := uint32(unix.IPPROTO_ICMP), uint32(echoTypes[family][0])
	if family == unix.AF_INET {
		// Not to runs, and no later part of a packet.
		add(bpf.LoadAbsolute{Off: 16, Size: 2})
		add(only(bpf.JumpNotEqual, uint32(binary.BigEndian.Uint16(runs[:])))...)
		add(bpf.LoadAbsolute{Off: 6, Size: 2})
		add(only(bpf.JumpBitsNotSet, 0x1fff)...)
		add(bpf.LoadMemShift{Off: 0}, bpf.LoadAbsolute{Off: 9, Size: 1})
	} else {
		echo = unix.IPPROTO_ICMPV6
		to := in6(runRange.Addr()).As16()
		for at := uint8(0); at < 14; at += 2 {
			rest := (12 - at) + 1
			add(bpf.LoadAbsolute{Off: 24 + uint32(at), Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(to[at:])), SkipFalse: rest})
		}
		add(drop)
		add(bpf.LoadConstant{Dst: bpf.RegX, Val: ipv6Head}, bpf.LoadAbsolute{Off: 6, Size: 1})
		// Of one in parts, which any program may have sent (ipv6(7), IPV6_MTU), the first.
		add(bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_FRAGMENT, SkipTrue: 5}, bpf.LoadAbsolute{Off: ipv6Head + 2, Size: 2})
		add(only(bpf.JumpBitsNotSet, 0xfff8)...)
		add(bpf.LoadConstant{Dst: bpf.RegX, Val: ipv6Head + fragmentHead}, bpf.LoadAbsolute{Off: ipv6Head, Size: 1})
	}
	// The number of the protocol is loaded, and in X is where its header is.
	of := func(protocol uint32, block ...bpf.Instruction) {
		add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocol, SkipTrue: 1}, bpf.Jump{Skip: uint32(len(block))})
		add(block...)
	}
	notAt := func(listed []Span) []bpf.Instruction {
		block := []bpf.Instruction{bpf.LoadIndirect{Off: 2, Size: 2}}
		for _, s := range listed {
			block = append(block, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(s.First), SkipFalse: 2}, bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(s.Last), SkipTrue: 1}, drop)
		}
		return append(block, accept)
	}
	const flags, syn, ack = 13, 2, 16 // RFC 9293, section 3.1
	first := append([]bpf.Instruction{bpf.LoadIndirect{Off: flags, Size: 1}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: syn | ack}}, only(bpf.JumpEqual, syn)...)
	of(unix.IPPROTO_TCP, append(first, notAt(append(all.TCP, Span{dnsPort, dnsPort}))...)...)
	if c.isWide() && len(all.UDP) > 0 { // as taken
		all.UDP = append(all.UDP, Span{widePort, widePort})
	}
	of(unix.IPPROTO_UDP, notAt(all.UDP)...)
	if !all.Ping {
		of(echo, append(append([]bpf.Instruction{bpf.LoadIndirect{Off: 0, Size: 1}}, only(bpf.JumpEqual, kind)...), accept)...)
	}
	add(drop)
	return list
}
