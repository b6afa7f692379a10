package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

// The gateways of a network's cells. A veth between two of them would take somebody with rights in
// both cells' user namespaces, who makes a socket of rtnetlink in the network namespace of one
// (__netlink_ns_capable in net/netlink/af_netlink.c asks for the rights of who made it, too). An
// ordinary user has these rights only outside of both, and from there may enter neither
// (netns_install in net/core/net_namespace.c). So this process is the cable: in each gateway a veth
// has both of its ends, one with the routes to the runs of other cells, and one with a packet
// socket (packet(7)), whose packets this process passes to the socket in the destination's gateway.

const (
	cableLink = 70 // has the routes
	cableEnd  = 71 // has the socket
	cableName = "cells"

	// The kernel passes packets on in a ring of frames, which are as long as the longest packet
	// and its headers: Documentation/networking/packet_mmap.rst.
	cableFrame    = 66048
	cableBlock    = 512 << 10
	cablePerBlock = cableBlock / cableFrame
	cableBlocks   = 18
	cableFrames   = cableBlocks * cablePerBlock
	virtioHead    = 10 // struct virtio_net_hdr, before the Ethernet header
	ethernetHead  = 14
	etherIP       = 0x0800
	etherIPv6     = 0x86dd
	ipHead        = 20
	ipv6Head      = 40
)

// cableHardware is the address of the end with the routes, in every gateway, and so the destination
// of all frames (IFF_NOARP: arp_constructor in net/ipv4/arp.c). The other end has another one, so
// that the gateway itself takes in nothing of what leaves it there.
var cableHardware, cableEndHardware = net.HardwareAddr{2, 2, 0, 0, 0, 1}, net.HardwareAddr{2, 2, 0, 0, 0, 2}

// cable is a gateway's end of what connects it to those of other cells.
type cable struct {
	raw  syscall.RawConn
	ring []byte
}

// linkTo returns the index of the interface by which a gateway reaches a member.
func (g *gateway) linkTo(m *Member) int32 {
	if m.gateway == g {
		return m.link()
	}
	return cableLink
}

// addCable gives the gateway its cable, unless it has one.
func (g *gateway) addCable() error {
	if g.cable.Load() != nil {
		return nil
	}
	err := g.addCableLinks()
	var files []*os.File
	if err == nil {
		files, err = g.cell.InNetwork(g.ns.file, func(b *program.Builder) []program.Slot {
			return []program.Slot{socket(b, unix.AF_PACKET, unix.SOCK_RAW, 0)}
		})
	}
	if err == nil {
		err = g.useCable(files[0])
	}
	if err != nil {
		return fault.Option("WithNetwork", "runs of another cell are on the network, and the two can't be connected, which takes packet sockets (CONFIG_PACKET): use the same cell for all, or a network for each: %w", err)
	}
	return nil
}

func (g *gateway) addCableLinks() error {
	var x batch
	x.veth(end{cableName, cableLink, cableHardware, nil}, end{cableName + "-end", cableEnd, cableEndHardware, nil})
	m := link(cableLink)
	m.Flags, m.Change = unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP
	// The kernel cuts what it has put together: not all versions can pass that to a socket.
	x.add(unix.RTM_NEWLINK, 0, "the cable's interface", m, nl.NewRtAttr(unix.IFLA_GSO_MAX_SEGS, nl.Uint32Attr(1)))
	x.up(cableEnd)
	if g.noIPv6 == nil {
		x.rule(unix.RTM_NEWRULE, makeNew, rule{priority: fromRun, family: unix.AF_INET6, iif: cableName, table: unix.RT_TABLE_MAIN})
	}
	return g.change(&x)
}

// useCable begins to pass on what comes to the socket.
func (g *gateway) useCable(f *os.File) error {
	c, err := newCable(f)
	if err != nil {
		f.Close()
		return err
	}
	context.AfterFunc(g.ctx, func() { f.Close() })
	if !g.begin(func() { g.carry(c) }) {
		return errors.Join(net.ErrClosed, unix.Munmap(c.ring))
	}
	g.cable.Store(c)
	return nil
}

func newCable(f *os.File) (*cable, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &cable{raw: raw}
	ctlErr := raw.Control(func(fd uintptr) {
		s := int(fd)
		for _, o := range [][2]int{{unix.PACKET_VERSION, unix.TPACKET_V2}, {unix.PACKET_VNET_HDR, 1}, {unix.PACKET_IGNORE_OUTGOING, 1}} {
			if err = unix.SetsockoptInt(s, unix.SOL_PACKET, o[0], o[1]); err != nil {
				err = fmt.Errorf("option %d of a packet socket: %w", o[0], err)
				return
			}
		}
		if err = unix.SetsockoptTpacketReq(s, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq{Block_size: cableBlock, Block_nr: cableBlocks, Frame_size: cableFrame, Frame_nr: cableFrames}); err != nil {
			err = os.NewSyscallError("PACKET_RX_RING", err)
			return
		}
		if c.ring, err = unix.Mmap(s, 0, cableBlock*cableBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			err = os.NewSyscallError("mmap", err)
			return
		}
		if err = unix.Bind(s, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: cableEnd}); err != nil {
			err = errors.Join(os.NewSyscallError("bind", err), unix.Munmap(c.ring))
		}
	})
	return c, errors.Join(ctlErr, err)
}

// bigEndian returns a number whose bytes in memory are those of n in the order of networks.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// carry passes packets on until the gateway is closed.
func (g *gateway) carry(c *cable) {
	defer func() { _ = unix.Munmap(c.ring) }()
	for i := 0; ; i = (i + 1) % cableFrames {
		at := i/cablePerBlock*cableBlock + i%cablePerBlock*cableFrame
		frame := c.ring[at : at+cableFrame]
		status := (*uint32)(unsafe.Pointer(&frame[0]))
		if err := c.raw.Read(func(uintptr) bool { return atomic.LoadUint32(status)&unix.TP_STATUS_USER != 0 }); err != nil {
			return
		}
		if p := packetOf(frame); p != nil {
			if to := g.beyond(p[virtioHead:]); to != nil {
				to.send(p)
			}
		}
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	}
}

// packetOf returns the packet of a frame, with what is before it, or nil if it is not whole.
func packetOf(frame []byte) []byte {
	h := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
	from, to := int(h.Mac)-virtioHead, int(h.Mac)+int(h.Snaplen)
	if h.Snaplen != h.Len || from < int(unsafe.Sizeof(*h)) || to > len(frame) {
		return nil
	}
	return frame[from:to]
}

// beyond returns the cable of the gateway whose run a packet is for, if it is from one of g.
func (g *gateway) beyond(p []byte) *cable {
	from, to, ok := addressesOf(p)
	if !ok || g.member(from) == nil {
		return nil
	}
	m := g.roster.member(to)
	if m == nil || m.gateway == g {
		return nil
	}
	return m.gateway.cable.Load()
}

// addressesOf returns those of a packet with its Ethernet header, if they may be of runs.
func addressesOf(p []byte) (from, to netip.Addr, ok bool) {
	if len(p) < ethernetHead {
		return from, to, false
	}
	kind, ip := binary.BigEndian.Uint16(p[ethernetHead-2:]), p[ethernetHead:]
	switch {
	case kind == etherIP && len(ip) >= ipHead:
		return netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:])), true
	case kind == etherIPv6 && len(ip) >= ipv6Head:
		from, to = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		return from, to, prefix6.Contains(from) && prefix6.Contains(to)
	}
	return from, to, false
}

// send has a packet arrive in the gateway. If there is no room for it, it is lost.
func (c *cable) send(p []byte) {
	now(c.raw, func(fd int) error {
		_, err := unix.Write(fd, p)
		return err
	})
}
