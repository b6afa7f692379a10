//go:build linux

package seccomp

import (
	"math/bits"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowSockets replaces Docker's rules, one for each of 40 families, with a single one.
// refuseSockets decides which remain.
func allowSockets(rules []specs.LinuxSyscall) []specs.LinuxSyscall {
	rules = slices.DeleteFunc(rules, func(r specs.LinuxSyscall) bool { return slices.Equal(r.Names, []string{"socket"}) })
	return append(rules, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow})
}

// refuseSockets reduces Docker's list to the sockets that programs use: AF_UNIX, TCP, UDP and ICMP
// over AF_INET and AF_INET6, and the netlink protocols that getaddrinfo, ip, ss and udev's library
// need; with CAP_NET_RAW, also SOCK_RAW of any protocol and AF_PACKET; with CAP_NET_ADMIN, also the
// other netlink protocols. The errors are those of a kernel that was built without the rest.
//
// The kernel loads the module for any family, protocol or type that a process asks for
// (net-pf-2-proto-132: sctp), which takes no privilege, and most holes found in such modules need
// nothing more.
func refuseSockets(caps []string) (rules []specs.LinuxSyscall) {
	families := []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET}
	rules = append(rules, failOutside(unix.EAFNOSUPPORT, "socket", 0, families)...)
	// socketpair creates both sockets before it finds that the family has no pairs. Only
	// AF_UNIX and AF_TIPC have them.
	rules = append(rules, failOutside(unix.EAFNOSUPPORT, "socketpair", 0, families[:1])...)
	if !slices.Contains(caps, "CAP_NET_RAW") {
		// The kernel demands the capability too, but has more than once forgotten to, or
		// found it in a user namespace (CVE-2020-14386).
		rules = append(rules, refuse("socket", is(0, unix.AF_PACKET)))
	}
	rules = append(rules, refuseInternet(slices.Contains(caps, "CAP_NET_RAW"))...)
	// Whether a network namespace ever had an exclusive flow label of IPv6 is told to all who
	// are in it later, in what labels they may send (net/ipv6/ip6_flowlabel.c,
	// flowlabel_has_excl), and nothing counts it. See docs/NETWORK.md.
	rules = append(rules, fail(unix.ENOPROTOOPT, "setsockopt", is(1, unix.IPPROTO_IPV6), is(2, ipv6FlowLabelMgr)))
	// Keys with which routers sign (RFC 2385, RFC 5925) the kernel keeps with a socket, up to
	// net.core.optmem_max bytes, which no memory limit counts.
	for _, option := range []uint64{unix.TCP_MD5SIG, unix.TCP_MD5SIG_EXT, tcpAOAddKey} {
		rules = append(rules, fail(unix.ENOPROTOOPT, "setsockopt", is(1, unix.IPPROTO_TCP), is(2, option)))
	}
	return append(rules, refuseNetlink(slices.Contains(caps, "CAP_NET_ADMIN"))...)
}

// refuseInternet leaves the sockets that net/ipv4/af_inet.c and net/ipv6/af_inet6.c have without a
// module.
func refuseInternet(raw bool) (rules []specs.LinuxSyscall) {
	internet := masked(0, 0xffffffff&^(unix.AF_INET^unix.AF_INET6), unix.AF_INET) // AF_INET or AF_INET6
	kind := func(k uint64) specs.LinuxSeccompArg { return masked(1, 0xf, k) }     // SOCK_TYPE_MASK; the rest is flags
	protocols := []uint64{unix.IPPROTO_IP, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}
	if raw {
		rules = append(rules, failOutside(unix.EPROTONOSUPPORT, "socket", 2, protocols, internet, kind(unix.SOCK_STREAM))...)
		rules = append(rules, failOutside(unix.EPROTONOSUPPORT, "socket", 2, protocols, internet, kind(unix.SOCK_DGRAM))...)
	} else {
		rules = failOutside(unix.EPROTONOSUPPORT, "socket", 2, protocols, internet)
	}
	for _, other := range []uint64{unix.IPPROTO_ICMP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6} {
		rules = append(rules, fail(unix.EPROTONOSUPPORT, "socket", internet, kind(unix.SOCK_STREAM), is(2, other)))
	}
	return append(rules,
		fail(unix.EPROTONOSUPPORT, "socket", internet, kind(unix.SOCK_DGRAM), is(2, unix.IPPROTO_TCP)),
		fail(unix.EPROTONOSUPPORT, "socket", is(0, unix.AF_INET), kind(unix.SOCK_DGRAM), is(2, unix.IPPROTO_ICMPV6)),
		fail(unix.EPROTONOSUPPORT, "socket", is(0, unix.AF_INET6), kind(unix.SOCK_DGRAM), is(2, unix.IPPROTO_ICMP)),
		// SOCK_STREAM, SOCK_DGRAM and SOCK_RAW are 1 to 3.
		fail(unix.ESOCKTNOSUPPORT, "socket", internet, masked(1, 0xf, 0)),
		fail(unix.ESOCKTNOSUPPORT, "socket", internet, has(1, 4)),
		fail(unix.ESOCKTNOSUPPORT, "socket", internet, has(1, 8)),
	)
}

// refuseNetlink also refuses the requests to sockets of any family that load a module:
// net/socket.c, sock_ioctl.
func refuseNetlink(admin bool) []specs.LinuxSyscall {
	netlink := is(0, unix.AF_NETLINK)
	if admin {
		// USERSOCK lets processes keep messages in the kernel that no memory limit counts.
		return []specs.LinuxSyscall{fail(unix.EPROTONOSUPPORT, "socket", netlink, is(2, unix.NETLINK_USERSOCK))}
	}
	protocols := []uint64{unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG, unix.NETLINK_AUDIT, unix.NETLINK_KOBJECT_UEVENT}
	return append(failOutside(unix.EPROTONOSUPPORT, "socket", 2, protocols, netlink),
		// SIOCADDDLCI, SIOCDELDLCI, SIOCGIFVLAN and SIOCSIFVLAN (dlci, 8021q), SIOCGIFBR
		// and SIOCSIFBR, SIOCBRADDBR and SIOCBRDELBR (bridge).
		fail(unix.ENOPKG, "ioctl", masked(1, 0xfffffffc, unix.SIOCADDDLCI)),
		fail(unix.ENOPKG, "ioctl", masked(1, 0xfffffffe, unix.SIOCGIFBR)),
		fail(unix.ENOPKG, "ioctl", masked(1, 0xfffffffe, siocbraddbr)),
	)
}

const (
	siocbraddbr      = 0x89a0 // linux/sockios.h
	ipv6FlowLabelMgr = 32     // IPV6_FLOWLABEL_MGR, linux/in6.h
	tcpAOAddKey      = 38     // TCP_AO_ADD_KEY, linux/tcp.h
)

// failOutside makes a call fail if an argument is not one of the allowed values, which are
// ascending, and all conditions hold. A rule can't have two bounds for one argument (see split), so
// the gap between two values is divided into ranges that have a common prefix in binary.
func failOutside(e unix.Errno, name string, arg uint, allowed []uint64, conditions ...specs.LinuxSeccompArg) (rules []specs.LinuxSyscall) {
	add := func(c specs.LinuxSeccompArg) {
		rules = append(rules, fail(e, name, append(slices.Clone(conditions), c)...))
	}
	next := uint64(0)
	for _, value := range allowed {
		for next < value {
			size := uint64(1) << min(bits.TrailingZeros64(next), bits.Len64(value-next)-1)
			add(masked(arg, 0xffffffff&^(size-1), next))
			next += size
		}
		next = value + 1
	}
	add(specs.LinuxSeccompArg{Index: arg, Value: next, Op: specs.OpGreaterEqual}) // also with any of the high bits
	return rules
}

func masked(arg uint, mask, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: arg, Value: mask, ValueTwo: value, Op: specs.OpMaskedEqual}
}
