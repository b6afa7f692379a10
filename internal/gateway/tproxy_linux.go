package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

// A listener takes one port. If more are allowed than the gateway may have listeners, rules of
// nftables in its namespace lead them all to one: Documentation/networking/tproxy.rst. What was
// accepted has the address and port that the run connected to, as ever. Datagrams arrive with them
// (IP_RECVORIGDSTADDR), and are answered by raw sockets, which write the ports themselves. Runs
// can't see or change these rules, and without them nobody listens.

// widePort is that of the listener to which the rules lead, which is there for DNS over TCP.
const widePort = dnsPort

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

// taken returns the ports of the gateway's sockets for datagrams.
func (c *Config) taken() []uint16 {
	udp := c.all().UDP
	if c.isWide() && len(udp) > 0 {
		return []uint16{widePort}
	}
	return each(udp)
}

// addWide adds the rules.
func (g *gateway) addWide() error {
	all := g.config.all()
	err := func() error {
		files, err := g.cell.InNetwork(g.ns.file, func(b *program.Builder) []program.Slot {
			return []program.Slot{socket(b, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)}
		})
		if err != nil {
			return err
		}
		defer files[0].Close()
		var x nftables
		x.addRules(unix.NFPROTO_IPV4, runRange, 16, &all)
		if g.noIPv6 == nil {
			x.addRules(unix.NFPROTO_IPV6, netip.PrefixFrom(in6(runRange.Addr()), 96+runRange.Bits()), 24, &all)
		}
		return x.send(files[0])
	}()
	if err != nil {
		return fault.Option("NewNetwork", "%d different ports are allowed, and more than %d take a kernel with nft_tproxy: load it (modprobe nft_tproxy) or allow fewer: %w", count(all.TCP)+count(all.UDP), maxPorts, err)
	}
	return nil
}

// nftables is a transaction: linux/netfilter/nf_tables.h has the numbers that are not in x/sys.
type nftables struct {
	data []byte
	seq  uint32
}

func (x *nftables) add(kind, flags int, family uint8, resource uint16, attrs ...*nl.RtAttr) {
	r := nl.NewNetlinkRequest(kind, flags)
	x.seq++
	r.Seq = x.seq
	// struct nfgenmsg
	r.AddData(bytesOf{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)})
	for _, a := range attrs {
		r.AddData(a)
	}
	x.data = append(x.data, r.Serialize()...)
}

func (x *nftables) table(message, flags int, family uint8, attrs ...*nl.RtAttr) {
	x.add(unix.NFNL_SUBSYS_NFTABLES<<8|message, unix.NLM_F_CREATE|flags, family, 0, attrs...)
}

const (
	nftName = "runs"
	nftReg  = 1 // a register
)

// addRules adds, for a family, a chain whose rules take the ports, but not what is sent to
// runs. at is where a packet has its destination.
func (x *nftables) addRules(family uint8, not netip.Prefix, at uint32, ports *Ports) {
	if x.seq == 0 {
		x.add(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	}
	name := func(kind int) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(nftName)) }
	x.table(unix.NFT_MSG_NEWTABLE, 0, family, name(unix.NFTA_TABLE_NAME))
	const prerouting, mangle = 0, -150 // linux/netfilter.h, linux/netfilter_ipv4.h
	first := int32(mangle)
	x.table(unix.NFT_MSG_NEWCHAIN, 0, family, name(unix.NFTA_CHAIN_TABLE), name(unix.NFTA_CHAIN_NAME), nl.NewRtAttr(unix.NFTA_CHAIN_TYPE, nl.ZeroTerminated("filter")),
		nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, prerouting), number(unix.NFTA_HOOK_PRIORITY, uint32(first))))
	destination := not.Addr().AsSlice()[:not.Bits()/8]
	rule := func(protocol byte, s Span) {
		x.table(unix.NFT_MSG_NEWRULE, unix.NLM_F_APPEND, family, name(unix.NFTA_RULE_TABLE), name(unix.NFTA_RULE_CHAIN), nested(unix.NFTA_RULE_EXPRESSIONS,
			expression("meta", number(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO), number(unix.NFTA_META_DREG, nftReg)),
			expression("cmp", number(unix.NFTA_CMP_SREG, nftReg), number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), value(unix.NFTA_CMP_DATA, []byte{protocol})),
			load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, uint32(len(destination))),
			expression("cmp", number(unix.NFTA_CMP_SREG, nftReg), number(unix.NFTA_CMP_OP, unix.NFT_CMP_NEQ), value(unix.NFTA_CMP_DATA, destination)),
			load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
			expression("range", number(unix.NFTA_RANGE_SREG, nftReg), number(unix.NFTA_RANGE_OP, unix.NFT_RANGE_EQ),
				value(unix.NFTA_RANGE_FROM_DATA, port(s.First)), value(unix.NFTA_RANGE_TO_DATA, port(s.Last))),
			expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, nftReg), value(unix.NFTA_IMMEDIATE_DATA, port(widePort))),
			expression("tproxy", number(1 /* NFTA_TPROXY_FAMILY */, uint32(family)), number(3 /* NFTA_TPROXY_REG_PORT */, nftReg))))
	}
	for _, s := range ports.TCP {
		rule(unix.IPPROTO_TCP, s)
	}
	for _, s := range ports.UDP {
		rule(unix.IPPROTO_UDP, s)
	}
}

func port(p int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(p)) }

func number(kind int, n uint32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.BigEndian.AppendUint32(nil, n))
}

func nested(kind int, attrs ...*nl.RtAttr) *nl.RtAttr {
	n := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, a := range attrs {
		n.AddChild(a)
	}
	return n
}

func value(kind int, b []byte) *nl.RtAttr { return nested(kind, nl.NewRtAttr(unix.NFTA_DATA_VALUE, b)) }

func expression(name string, attrs ...*nl.RtAttr) *nl.RtAttr {
	return nested(unix.NFTA_LIST_ELEM, nl.NewRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(name)), nested(unix.NFTA_EXPR_DATA, attrs...))
}

// load has a part of a packet's header loaded.
func load(base, offset, size uint32) *nl.RtAttr {
	return expression("payload", number(unix.NFTA_PAYLOAD_DREG, nftReg), number(unix.NFTA_PAYLOAD_BASE, base), number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, size))
}

// send makes the transaction. The kernel answers what fails, and the last message, before sendto
// returns.
func (x *nftables) send(s *os.File) error {
	// The table is there already: this is for the answer.
	x.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_ACK, unix.NFPROTO_IPV4, nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(nftName)))
	last := x.seq
	x.add(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		sendErr = unix.Sendto(int(fd), x.data, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err = errors.Join(err, os.NewSyscallError("nftables", sendErr)); err != nil {
		return err
	}
	if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	buffer := make([]byte, 16<<10)
	for {
		n, err := s.Read(buffer)
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			if code := int32(nl.NativeEndian().Uint32(m.Data)); code != 0 {
				return fmt.Errorf("nftables, message %d: %w", m.Header.Seq, syscall.Errno(-code))
			}
			if m.Header.Seq == last {
				return nil
			}
		}
	}
}
