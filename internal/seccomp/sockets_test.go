//go:build linux

package seccomp

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

const (
	stream, datagram, raw, seqpacket = uint64(unix.SOCK_STREAM), uint64(unix.SOCK_DGRAM), uint64(unix.SOCK_RAW), uint64(unix.SOCK_SEQPACKET)

	noFamily   = errno | uint32(unix.EAFNOSUPPORT)
	noType     = errno | uint32(unix.ESOCKTNOSUPPORT)
	noProtocol = errno | uint32(unix.EPROTONOSUPPORT)
)

// TestDefaultSockets checks every family, and more than every type and protocol.
func TestDefaultSockets(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_NET_RAW"}, {"CAP_NET_ADMIN"}, {"CAP_NET_RAW", "CAP_NET_ADMIN"}} {
		for _, goarch := range goarches {
			m := defaultFor(t, goarch, caps...)
			for family := range uint64(70) {
				for kind := range uint64(16) {
					for _, protocol := range protocols() {
						for _, flags := range []uint64{0, unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK} {
							got := m.run(t, on(t, goarch, "socket", family, kind|flags, protocol))
							if want := verdictOn(caps, family, kind, protocol); got != want {
								t.Fatalf("socket(%d, %#x, %d) on %s with %s: got %#x, want %#x", family, kind|flags, protocol, goarch, caps, got, want)
							}
						}
					}
				}
				want := allow
				if family != unix.AF_UNIX {
					want = noFamily
				}
				assert.Equal(t, want, m.run(t, on(t, goarch, "socketpair", family, stream)), "socketpair(%d)", family)
			}
			for _, name := range []string{"socket", "socketpair"} { // more than the kernel takes for the family
				for _, family := range []uint64{unix.AF_ALG | 1<<32, unix.AF_VSOCK | 1<<63, ^uint64(0), 1 << 31} {
					assert.Equal(t, noFamily, m.run(t, on(t, goarch, name, family, seqpacket)), "%s(%#x)", name, family)
				}
			}
			// The kernel takes 32 bits of these: no high bits turn what is refused
			// below into something else.
			assert.NotEqual(t, allow, m.run(t, on(t, goarch, "socket", unix.AF_INET, stream|1<<32, unix.IPPROTO_SCTP|1<<32)))
			assert.NotEqual(t, allow, m.run(t, on(t, goarch, "socket", unix.AF_INET, stream|1<<32, unix.IPPROTO_UDP|1<<32)))
			assert.NotEqual(t, allow, m.run(t, on(t, goarch, "socket", unix.AF_INET|1<<32, stream, unix.IPPROTO_SCTP)))
			assert.NotEqual(t, allow, m.run(t, on(t, goarch, "socket", unix.AF_NETLINK, raw|1<<32, unix.NETLINK_USERSOCK|1<<32)))
		}
	}
}

func protocols() []uint64 {
	var list []uint64
	for p := range uint64(150) {
		list = append(list, p)
	}
	return append(list, unix.IPPROTO_RAW, 256, unix.IPPROTO_MPTCP, 1<<31, 0xffffffff)
}

// verdictOn is the decision of refuseSockets, written down a second time.
func verdictOn(caps []string, family, kind, protocol uint64) uint32 {
	switch family {
	case unix.AF_UNIX:
		return allow
	case unix.AF_INET, unix.AF_INET6:
		icmp := map[uint64]uint64{unix.AF_INET: unix.IPPROTO_ICMP, unix.AF_INET6: unix.IPPROTO_ICMPV6}[family]
		others := []uint64{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}
		isRaw := slices.Contains(caps, "CAP_NET_RAW")
		switch {
		case kind == stream && !slices.Contains([]uint64{0, unix.IPPROTO_TCP}, protocol),
			kind == datagram && !slices.Contains([]uint64{0, unix.IPPROTO_UDP, icmp}, protocol),
			!isRaw && !slices.Contains(others, protocol):
			return noProtocol
		case kind == stream, kind == datagram, kind == raw:
			return allow // the kernel demands CAP_NET_RAW for raw sockets
		}
		return noType
	case unix.AF_NETLINK:
		switch {
		case protocol == unix.NETLINK_USERSOCK,
			!slices.Contains(caps, "CAP_NET_ADMIN") && !slices.Contains([]uint64{0, 4, 9, 15}, protocol):
			return noProtocol
		}
		return allow
	case unix.AF_PACKET:
		if !slices.Contains(caps, "CAP_NET_RAW") {
			return eperm
		}
		return allow
	}
	return noFamily
}
