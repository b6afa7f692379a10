package gateway

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Answers to datagrams from ports that have no socket of their own: raw sockets send them, from any
// address and port.

const udpHead = 8 // ports, length, checksum: RFC 768

// families returns those of the gateway's addresses.
func families() []int {
	if kernelIPv6() != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

// setUpAnswers makes the raw sockets.
func setUpAnswers(b *program.Builder) (made []program.Slot) {
	for _, family := range families() {
		s := socket(b, family, unix.SOCK_RAW, unix.IPPROTO_UDP)
		level, transparent, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
		if family == unix.AF_INET6 {
			level, transparent, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
		}
		option(b, s, level, transparent, name)
		made = append(made, s)
	}
	return made
}

// useAnswers makes the sockets those that answer.
func (g *gateway) useAnswers(files []*os.File) error {
	g.answers = map[int]near{}
	for _, f := range files {
		conn, err := packetConn[*net.IPConn](g, f)
		if err != nil {
			return err
		}
		n, err := nearOf(conn)
		if err != nil {
			return err
		}
		ctlErr := n.Control(func(fd uintptr) {
			// It would get a copy of each datagram: none passes this filter.
			none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]})
			// The kernel writes the checksum there: RFC 3542, section 3.1.
			if err == nil && n.family == unix.AF_INET6 {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_CHECKSUM, 6)
			}
		})
		if err := errors.Join(ctlErr, os.NewSyscallError("setsockopt", err)); err != nil {
			return err
		}
		n.raw = true
		g.answers[n.family] = n
	}
	return nil
}

// answering returns what answers datagrams from an address: the socket at which they arrived, or if
// that has another port, a raw one.
func (g *gateway) answering(n near, from netip.Addr) near {
	if raw, wide := g.answers[family(from)]; wide {
		return raw
	}
	return n
}

// headOf returns the header of a datagram, without a checksum, which IPv4 does not need.
func headOf(b []byte, from, to uint16) []byte {
	h := make([]byte, 0, udpHead)
	h = binary.BigEndian.AppendUint16(h, from)
	h = binary.BigEndian.AppendUint16(h, to)
	h = binary.BigEndian.AppendUint16(h, uint16(udpHead+len(b)))
	return append(h, 0, 0)
}
