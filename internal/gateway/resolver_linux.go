package gateway

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

const (
	dnsPort  = 53
	dnsIdle  = 10 * time.Second // of a connection to the resolver
	maxQuery = 1 << 10          // a question has a name of 255 bytes, and few options
)

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
	reply, refused := m.gateway.config.answer(query, &m.names, m.reachable, m.nameOf)
	if refused != "" && m.names.refuse(refused) {
		m.tellLater(Conn{Name: refused, Begin: time.Now(), Verdict: Refused, Err: &refusal{"the name is not listed"}})
	}
	return reply
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
