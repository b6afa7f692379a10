//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("ping-to", pingTo) }

// pingTo pings each address, which may have ip4/ or ip6/ before it, and prints whether the answer
// is right: from there, with the same number and content.
func pingTo(args []string) error {
	wait, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	for _, at := range args[1:] {
		fmt.Println(at, ping(at, wait))
	}
	return nil
}

func ping(at string, wait time.Duration) string {
	network, name := runs.Over("ip4", at)
	ip, err := net.ResolveIPAddr(network, name)
	if err != nil {
		return "no host"
	}
	s, head, err := pingSocket(ip.IP)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(s)
	timeout := unix.NsecToTimeval(int64(wait))
	err = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	sent := append(head, bytes.Repeat([]byte("x"), 1001)...)
	if err == nil {
		_, err = unix.Write(s, sent)
	}
	got := make([]byte, 2000)
	n := 0
	if err == nil {
		n, err = unix.Read(s, got)
	}
	switch {
	case err == unix.EAGAIN:
		return "silence"
	case err != nil:
		return err.Error()
	case !bytes.Equal(got[6:n], sent[6:]):
		return "another"
	}
	return "answered"
}

// pingSocket returns a socket connected to an address, and the head of an echo request.
func pingSocket(ip net.IP) (s int, head []byte, err error) {
	family, protocol, request := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: [16]byte(ip.To16())}
	if four := ip.To4(); four != nil {
		family, protocol, request, to = unix.AF_INET, unix.IPPROTO_ICMP, 8, &unix.SockaddrInet4{Addr: [4]byte(four)}
	}
	if s, err = unix.Socket(family, unix.SOCK_DGRAM, protocol); err != nil {
		return -1, nil, err
	}
	if err := unix.Connect(s, to); err != nil {
		unix.Close(s)
		return -1, nil, err
	}
	return s, []byte{request, 0, 0, 0, 0, 0, 0, 7}, nil
}

func TestRootlessPrivatePing(t *testing.T) {
	testkit.Need(t, "ping")
	t.Parallel()
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "two.test": "127.0.0.2", "meta.test": "169.254.169.254"})
	var seen observer
	opts := []sandbox.NetworkOption{sandbox.AllowHost("one.test", sandbox.Ping()), sandbox.AllowHost("two.test", 80), sandbox.AllowHost("meta.test", sandbox.Ping()),
		sandbox.AllowCIDR("127.0.0.1", sandbox.Ping()), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell)}
	to, want := []string{"one.test"}, "one.test answered"
	if own, ok := ownAddress(); ok {
		opts = append(opts, sandbox.AllowCIDR(own.String(), sandbox.Ping()))
		to, want = append(to, own.String()), want+"\n"+own.String()+" answered"
	}
	if own, ok := ownAddress6(); ok {
		zone.Set("six.test", own.String())
		opts = append(opts, sandbox.AllowCIDR(own.String(), sandbox.Ping()), sandbox.AllowHost("six.test", sandbox.Ping()))
		for _, at := range []string{own.String(), "six.test", "one.test"} {
			to, want = append(to, "ip6/"+at), want+"\nip6/"+at+" answered"
		}
	}
	n := newNetwork(t, opts...)
	pinging := func(wait string, to ...string) string {
		return runs.Output(t, runs.Helper("ping-to", append([]string{wait}, to...)...).With(sandbox.WithNetwork(n.As("client"))))
	}
	require.Equal(t, want, pinging("20s", to...))
	require.Equal(t, "two.test silence\nmeta.test silence\n8.8.8.8 silence\n198.18.0.1 silence\nthree.test no host", pinging("300ms", "two.test", "meta.test", "8.8.8.8", "198.18.0.1", "three.test"))
	c := seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name == "one.test" && c.Verdict == sandbox.Allowed })
	require.Equal(t, []any{true, false, uint16(0), int64(1009), int64(1009), "one.test"}, []any{c.Ping, c.UDP, c.Port, c.Sent, c.Received, c.Rule})
	for name, why := range map[string]string{"two.test": "not listed for the name", "meta.test": "not an address of the internet"} {
		c := seen.await(t, name, func(c sandbox.Conn) bool { return c.Name == name && c.Verdict == sandbox.Refused })
		require.ErrorContains(t, c.Err, why)
	}
}

func TestRootlessPrivatePingRefused(t *testing.T) {
	testkit.Need(t, "no way to ping")
	_, err := runs.Shell("", sandbox.WithNetwork(sandbox.Private(sandbox.AllowHost("one.test", sandbox.Ping())))).Run(testkit.Deadline(t))
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	require.ErrorContains(t, err, "Ping: this process may have no socket for it: widen net.ipv4.ping_group_range")
}
