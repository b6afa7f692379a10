package gateway

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Sockets of rtnetlink(7) that were made in namespaces which this process may not enter. The kernel
// asks for the right both of who made the socket and of who sends (net/netlink/af_netlink.c,
// __netlink_ns_capable). This process has it, even as an ordinary user, as the owner of the cell's
// user namespace: user_namespaces(7).

// batch is changes of a namespace's interfaces, which are made in one call.
type batch struct {
	messages [][]byte
	whats    []string // one of each message, for its error
}

func (x *batch) add(kind, flags int, what string, parts ...nl.NetlinkRequestData) {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Seq = uint32(len(x.whats))
	x.whats = append(x.whats, what)
	for _, p := range parts {
		r.AddData(p)
	}
	x.messages = append(x.messages, r.Serialize())
}

const makeNew = unix.NLM_F_CREATE | unix.NLM_F_EXCL

func link(index int32) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = index
	return m
}

// up brings an interface up.
func (x *batch) up(index int32) {
	m := link(index)
	m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	x.add(unix.RTM_NEWLINK, 0, fmt.Sprintf("interface %d up", index), m)
}

// down takes an interface down, and with it all routes to it.
func (x *batch) down(index int32) {
	m := link(index)
	m.Change = unix.IFF_UP
	x.add(unix.RTM_NEWLINK, 0, fmt.Sprintf("interface %d down", index), m)
}

// remove removes an interface, and with it its peer.
func (x *batch) remove(index int32) {
	x.add(unix.RTM_DELLINK, 0, fmt.Sprintf("interface %d gone", index), link(index))
}

// mtu is the largest that veth has: nothing on the way to the gateway has a smaller one.
const mtu = 65535

// end is one of the two of a veth.
type end struct {
	name  string
	index int32
	mac   net.HardwareAddr
	ns    *os.File // nil for the namespace of the socket
}

func (e *end) attrs(to interface {
	AddRtAttr(int, []byte) *nl.RtAttr
}) {
	to.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(e.name))
	to.AddRtAttr(unix.IFLA_ADDRESS, e.mac)
	to.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(mtu))
	to.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
	to.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	if e.ns != nil {
		to.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(e.ns.Fd())))
	}
}

// veth makes a pair of interfaces, both down: veth(4).
func (x *batch) veth(here, there end) {
	own := nl.NewRtAttr(0, nil) // collects attributes that belong to the message itself
	here.attrs(own)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA|unix.NLA_F_NESTED, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	peer.AddChild(link(there.index))
	there.attrs(peer)
	raw := own.Serialize()[unix.SizeofRtAttr:]
	x.add(unix.RTM_NEWLINK, makeNew, "veth "+here.name, link(here.index), bytesOf(raw), info)
}

// bytesOf is a part of a message that is encoded already.
type bytesOf []byte

func (b bytesOf) Len() int          { return len(b) }
func (b bytesOf) Serialize() []byte { return b }

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// deprecated is the attribute of an address from which connections go only if there is no other:
// struct ifa_cacheinfo, how long it is preferred, and valid.
func deprecated() nl.NetlinkRequestData {
	b := make([]byte, 16)
	nl.NativeEndian().PutUint32(b[4:], math.MaxUint32)
	return nl.NewRtAttr(unix.IFA_CACHEINFO, b)
}

// address gives an interface an address.
func (x *batch) address(index int32, p netip.Prefix, more ...nl.NetlinkRequestData) {
	m := nl.NewIfAddrmsg(family(p.Addr()))
	m.Prefixlen, m.Flags, m.Index = uint8(p.Bits()), unix.IFA_F_NODAD, uint32(index)
	x.add(unix.RTM_NEWADDR, makeNew, "address "+p.String(), append([]nl.NetlinkRequestData{m,
		nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice())}, more...)...)
}

// neighbour gives an address on an interface's link the hardware that has it, so that nobody asks.
func (x *batch) neighbour(index int32, a netip.Addr, mac net.HardwareAddr) {
	m := make([]byte, unix.SizeofNdMsg)
	m[0] = byte(family(a))
	nl.NativeEndian().PutUint32(m[4:], uint32(index))
	nl.NativeEndian().PutUint16(m[8:], unix.NUD_PERMANENT)
	x.add(unix.RTM_NEWNEIGH, makeNew, "neighbour "+a.String(), bytesOf(m),
		nl.NewRtAttr(unix.NDA_DST, a.AsSlice()), nl.NewRtAttr(unix.NDA_LLADDR, mac))
}

// route is an entry of the main routing table, or of that of local addresses.
type route struct {
	to    netip.Prefix
	index int32
	via   netip.Addr // not valid if it is on the interface's own link
	kind  uint8      // RTN_UNICAST or RTN_LOCAL
	scope uint8
	local bool // in the table of local addresses, which comes first
}

func (x *batch) route(r route) {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Type, m.Scope = uint8(family(r.to.Addr())), uint8(r.to.Bits()), r.kind, r.scope
	m.Table, m.Protocol = unix.RT_TABLE_MAIN, unix.RTPROT_STATIC
	if r.local {
		m.Table = unix.RT_TABLE_LOCAL
	}
	parts := []nl.NetlinkRequestData{m, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.index)))}
	if r.to.Bits() > 0 {
		parts = append(parts, nl.NewRtAttr(unix.RTA_DST, r.to.Addr().AsSlice()))
	}
	if r.via.IsValid() {
		parts = append(parts, nl.NewRtAttr(unix.RTA_GATEWAY, r.via.AsSlice()))
	}
	x.add(unix.RTM_NEWROUTE, makeNew, "route to "+r.to.String(), parts...)
}

// rule is an entry of ip-rule(8).
type rule struct {
	priority uint32
	family   int
	iif      string       // by which interface it comes, "" for any
	from     netip.Addr   // not valid for any
	to       netip.Prefix // not valid for any
	table    uint32       // to look into, 0 to refuse
}

// rule adds or removes a rule.
func (x *batch) rule(kind, flags int, r rule, more ...nl.NetlinkRequestData) {
	h := nl.NewRtMsg() // as fib_rule_hdr
	h.Family, h.Table, h.Type, h.Scope, h.Protocol = uint8(r.family), unix.RT_TABLE_UNSPEC, nl.FR_ACT_TO_TBL, 0, 0
	parts := []nl.NetlinkRequestData{h, nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(r.priority))}
	if r.iif != "" {
		parts = append(parts, nl.NewRtAttr(nl.FRA_IIFNAME, nl.ZeroTerminated(r.iif)))
	}
	if r.from.IsValid() {
		h.Src_len = uint8(r.from.BitLen())
		parts = append(parts, nl.NewRtAttr(nl.FRA_SRC, r.from.AsSlice()))
	}
	if r.to.IsValid() {
		h.Dst_len = uint8(r.to.Bits())
		parts = append(parts, nl.NewRtAttr(nl.FRA_DST, r.to.Addr().AsSlice()))
	}
	if r.table == 0 {
		h.Type = nl.FR_ACT_PROHIBIT
	} else {
		parts = append(parts, nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(r.table)))
	}
	x.add(kind, flags, fmt.Sprintf("rule %d for %q", r.priority, r.iif), append(parts, more...)...)
}

// atATime is how many messages are sent in one call: the answers have to fit into the socket's
// buffer.
const atATime = 64

// send makes the changes, in their order, and returns the errors.
func (x *batch) send(socket *os.File) error {
	var errs []error
	for from := 0; from < len(x.messages); from += atATime {
		errs = append(errs, x.sendSome(socket, from, min(from+atATime, len(x.messages))))
	}
	return errors.Join(errs...)
}

// sendSome sends messages in one call. The answers are there when that returns. Those that an
// earlier call did not come to read, because of an error, have the same numbers.
func (x *batch) sendSome(socket *os.File, from, to int) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	buffer := make([]byte, 16<<10)
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		for old := error(nil); old == nil || old == unix.ENOBUFS; { // some were lost: netlink(7)
			_, _, old = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
		}
		sendErr = unix.Sendto(int(fd), slices.Concat(x.messages[from:to]...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err = errors.Join(err, os.NewSyscallError("rtnetlink", sendErr)); err != nil {
		return err
	}
	if err := socket.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	var errs []error
	for answers := from; answers < to; {
		n, err := socket.Read(buffer)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, m := range messages {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 || int(m.Header.Seq) >= len(x.whats) {
				continue
			}
			answers++
			if code := int32(nl.NativeEndian().Uint32(m.Data)); code != 0 {
				errs = append(errs, fmt.Errorf("%s: %w", x.whats[m.Header.Seq], syscall.Errno(-code)))
			}
		}
	}
	return errors.Join(errs...)
}
