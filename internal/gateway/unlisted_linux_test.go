package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// headSentTo returns the head of one that a run sends, in parts if part is the place of one.
func headSentTo(to string, kind byte, port uint16, flags byte, part int) []byte {
	a := netip.MustParseAddr(to)
	rest := make([]byte, 20)
	binary.BigEndian.PutUint16(rest[2:], port)
	if rest[13] = flags; kind == unix.IPPROTO_ICMP || kind == unix.IPPROTO_ICMPV6 {
		rest[0] = flags
	}
	if a.Is4() {
		p := make([]byte, ipHead)
		p[0], p[9] = 0x45, kind
		binary.BigEndian.PutUint16(p[6:], uint16(max(part, 0)))
		copy(p[12:], runRange.Addr().AsSlice())
		copy(p[16:], a.AsSlice())
		return append(p, rest...)
	}
	p := make([]byte, ipv6Head)
	p[0], p[6] = 0x60, kind
	copy(p[8:], in6(runRange.Addr()).AsSlice())
	copy(p[24:], a.AsSlice())
	if part >= 0 {
		p[6] = unix.IPPROTO_FRAGMENT
		p = append(p, kind, 0, byte(part>>5), byte(part<<3)|1, 0, 0, 0, 7)
	}
	return append(p, rest...)
}

func TestUnlistedFilter(t *testing.T) {
	c := &Config{}
	c.AllowHost("a.example", Ports{TCP: []Span{{80, 90}}, UDP: []Span{{53, 53}, {1000, 1001}}})
	require.Empty(t, c.Wrong)
	const syn, ack = 2, 16
	for _, test := range []struct {
		to    string
		kind  byte
		port  uint16
		flags byte
		part  int
		told  protocol // -1 for none
	}{
		{"192.0.2.1", unix.IPPROTO_TCP, 79, syn, -1, overTCP},
		{"192.0.2.1", unix.IPPROTO_TCP, 91, syn | 64 | 128, -1, overTCP},
		{"192.0.2.1", unix.IPPROTO_TCP, 80, syn, -1, -1},
		{"192.0.2.1", unix.IPPROTO_TCP, 53, syn, -1, -1},
		{"192.0.2.1", unix.IPPROTO_TCP, 79, syn | ack, -1, -1},
		{"192.0.2.1", unix.IPPROTO_UDP, 999, 0, 0, overUDP},
		{"192.0.2.1", unix.IPPROTO_UDP, 999, 0, 5, -1},
		{"192.0.2.1", unix.IPPROTO_UDP, 1001, 0, -1, -1},
		{"192.0.2.1", unix.IPPROTO_ICMP, 0, 8, -1, overPing},
		{"192.0.2.1", unix.IPPROTO_ICMP, 0, 0, -1, -1},
		{"198.18.0.9", unix.IPPROTO_TCP, 79, syn, -1, -1},
		{"198.19.0.9", unix.IPPROTO_TCP, 79, syn, -1, overTCP},
		{"2001:db8::1", unix.IPPROTO_TCP, 79, syn, -1, overTCP},
		{"2001:db8::1", unix.IPPROTO_TCP, 85, syn, -1, -1},
		{"2001:db8::1", unix.IPPROTO_UDP, 999, 0, -1, overUDP},
		{"2001:db8::1", unix.IPPROTO_UDP, 999, 0, 0, overUDP},
		{"2001:db8::1", unix.IPPROTO_UDP, 999, 0, 5, -1},
		{"2001:db8::1", unix.IPPROTO_UDP, 1000, 0, 0, -1},
		{"2001:db8::1", unix.IPPROTO_ICMPV6, 0, 128, -1, overPing},
		{"fde0:6be0:7e22::c612:9", unix.IPPROTO_TCP, 79, syn, -1, -1},
		{"fde0:6be0:7e22::c613:9", unix.IPPROTO_TCP, 79, syn, -1, overTCP},
	} {
		p := headSentTo(test.to, test.kind, test.port, test.flags, test.part)
		vm, err := bpf.NewVM(c.unlistedFilter(family(netip.MustParseAddr(test.to))))
		require.NoError(t, err)
		n, err := vm.Run(p)
		require.NoError(t, err)
		require.Equal(t, test.told >= 0, n > 0, "%+v", test)
		if n > 0 {
			_, to, over, ok := sentOf(p[:min(len(p), n)])
			require.True(t, ok)
			require.Equal(t, []any{test.told, test.to}, []any{over, to.Addr().String()})
			require.True(t, over == overPing || to.Port() == test.port, "%+v", test)
		}
	}
}
