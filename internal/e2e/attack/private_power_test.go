//go:build linux

package attack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-power", seizeNetwork)
}

// seizeNetwork tries what would give a run power over its network.
func seizeNetwork([]string) error {
	var errs []error
	must := func(what string, err error, want ...error) {
		for _, w := range want {
			if errors.Is(err, w) {
				return
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", what, errors.Join(err, errors.New("is not refused as it should be"))))
	}
	_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	must("AF_PACKET", err, unix.EPERM)
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	must("raw socket", err, unix.EPERM)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if s6, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0); err == nil {
		must("IPV6_TRANSPARENT", unix.SetsockoptInt(s6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1), unix.EPERM)
		must("extension headers", unix.SetsockoptString(s6, unix.SOL_IPV6, unix.IPV6_HOPOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"), unix.EPERM)
		_, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6) // for ND
		must("raw socket of IPv6", err, unix.EPERM)
		must("/proc/sys of IPv6", os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte("2"), 0), unix.EROFS, unix.EACCES)
	}
	must("IP_TRANSPARENT", unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.EPERM)
	must("SO_MARK", unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, 1), unix.EPERM)
	ifreq, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	if err := ifreq.SetInet4Addr([]byte{198, 18, 9, 9}); err != nil {
		return err
	}
	must("another address", unix.IoctlIfreq(s, unix.SIOCSIFADDR, ifreq), unix.EPERM)
	must("promiscuous", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifreq), unix.EPERM)
	must("/proc/sys", os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), unix.EROFS, unix.EACCES)
	must("a rule of netfilter", unix.SetsockoptString(s, unix.SOL_IP, 64 /* IPT_SO_SET_REPLACE */, strings.Repeat("x", 128)), unix.EPERM, unix.ENOPROTOOPT)
	must("routes", netlinkRequest(unix.AF_INET, unix.RTM_DELROUTE), unix.EPERM)
	must("routes of IPv6", netlinkRequest(unix.AF_INET6, unix.RTM_DELROUTE), unix.EPERM)
	return errors.Join(errs...)
}

// netlinkRequest asks for a change of the default route.
func netlinkRequest(family byte, kind uint16) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	b[0], b[4], b[5], b[6] = byte(len(b)), byte(kind), byte(kind>>8), unix.NLM_F_REQUEST|unix.NLM_F_ACK
	b[16], b[20] = family, unix.RT_TABLE_MAIN
	if err := unix.Sendto(s, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) == 0 {
		return errors.Join(err, errors.New("no answer"))
	}
	code := int32(binary.NativeEndian.Uint32(messages[0].Data))
	if code == 0 {
		return nil
	}
	return unix.Errno(-code)
}

// netPowers are all that a run can be given of its network.
var netPowers = []sandbox.Option{sandbox.WithUser(0, 0), sandbox.WithoutSeccomp(), sandbox.WithCapabilities("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE")}

func TestAttackRootlessPrivatePower(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	s := runs.Helper("private-power").With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithStderr(os.Stderr))
	for _, opts := range [][]sandbox.Option{
		nil,
		{sandbox.WithUser(0, 0), sandbox.WithoutSeccomp(), sandbox.WithCapabilities("CAP_NET_BIND_SERVICE")},
		netPowers,
	} {
		_, err := s.With(opts...).Run(testkit.Deadline(t))
		require.NoError(t, err)
	}
	_, err = s.With(sandbox.WithNetwork(sandbox.NetworkNone), sandbox.WithStderr(io.Discard)).With(netPowers...).Run(testkit.Deadline(t))
	runs.ExitError(t, err) // the control: a namespace of its own obeys
}
