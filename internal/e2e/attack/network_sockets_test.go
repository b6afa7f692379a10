//go:build linux

package attack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

func init() {
	uses = append(uses,
		use{"what counts for the whole machine", ofTheMachine, false, again},
		use{"many multicast groups that were left", manyGroups, false, again},
		use{"fragments over IPv6", fragments6, true, gone},
	)
	testkit.AddHelper("network-hand-socket", func(args []string) error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: args[0]})
		if err == nil {
			_, _, err = c.WriteMsgUnix([]byte("x"), unix.UnixRights(s), nil)
		}
		if err == nil {
			fmt.Println(network())
		}
		return err
	})
}

// TestAttackRootlessNetworkSocket hands a socket on, by which an accomplice could go on using the
// namespace. No later run may be in that.
func TestAttackRootlessNetworkSocket(t *testing.T) {
	w := newWatched(t)
	for _, unread := range []bool{false, true} {
		var has *os.File
		ns := inKept(t, w.known, func() []string { return w.look(t) }, func() string {
			if has != nil {
				has.Close()
			}
			got := make(chan *os.File, 1)
			go func() { got <- acceptFile(w.l, unread) }()
			_, ns := inNetwork(t, w.in, "network-hand-socket", "/srv/accomplice")
			has = <-got
			require.NotNil(t, has)
			return ns
		})
		defer has.Close()
		require.NotContains(t, w.look(t), ns, "unread: %v", unread)
	}
}

// ofTheMachine asks for what the kernel has one of for all namespaces: cookies of sockets,
// addresses and ids that it chooses, and what it does for all sockets once one wants it. Not all
// kernels have all of that.
func ofTheMachine() error {
	var errs []error
	for _, s := range []struct {
		family, kind, protocol int
		name                   unix.Sockaddr
	}{
		{unix.AF_INET, unix.SOCK_STREAM, 0, &unix.SockaddrInet4{}},
		{unix.AF_INET6, unix.SOCK_DGRAM, 0, &unix.SockaddrInet6{}},
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, &unix.SockaddrInet4{}},
		{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}},
		{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}},
		{unix.AF_UNIX, unix.SOCK_DGRAM, 0, &unix.SockaddrUnix{}},
	} {
		fd, err := unix.Socket(s.family, s.kind, s.protocol)
		_, noCookie := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		errs = append(errs, err, unix.Bind(fd, s.name), noCookie, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1))
		if s.kind == unix.SOCK_STREAM {
			key := make([]byte, 216) // struct tcp_md5sig of linux/tcp.h, for 127.0.0.1
			copy(key, []byte{unix.AF_INET, 0, 0, 0, 127, 0, 0, 1, 130: 1, 136: 'x'})
			errs = append(errs, optional(unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, string(key))), unix.Listen(fd, 1))
		} else if s.family == unix.AF_INET6 {
			errs = append(errs, optional(unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, unix.UDP_ENCAP_ESPINUDP)))
		}
		defer unix.Close(fd)
	}
	return errors.Join(errs...)
}

func optional(err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	return err
}

// manyGroups joins more groups than the kernel looks for one by one (net/ipv4/igmp.c,
// ip_mc_hash_add), and leaves them.
func manyGroups() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	for i := byte(1); err == nil && i < 16; i++ {
		err = unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: [4]byte{239, 1, 2, i}, Ifindex: 1})
	}
	return errors.Join(err, unix.Close(s))
}

// fragments6 sends the longest datagram, for which, unlike that of IPv4, the loopback interface has
// no room.
func fragments6() error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	here := &unix.SockaddrInet6{Port: 4242, Addr: [16]byte{15: 1}}
	err = errors.Join(unix.Bind(s, here), unix.Sendto(s, make([]byte, 65527), 0, here))
	if err == nil {
		counted, _ := os.ReadFile("/proc/net/snmp6")
		if !regexp.MustCompile(`Ip6FragCreates\s+[1-9]`).Match(counted) {
			err = errors.New("it was sent whole")
		}
	}
	return err
}
