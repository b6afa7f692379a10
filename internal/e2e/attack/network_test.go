//go:build linux

package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A network namespace may serve one run after the other. What a run can do to one without
// privileges is done here, and the next run in the same namespace, if there is one, looks for it.

// use is a way to leave something in a network namespace.
type use struct {
	name  string
	use   func() error
	shows bool // while it is there
	then  fate
}

// fate is what becomes of a namespace that served before, after a run in it. A later run can tell
// that, and so whether one used its network, but nothing else of it.
type fate int

const (
	again  fate = iota // it serves later runs
	gone               // what the run did was found
	either             // as the kernel has it
)

var uses = []use{
	{"nothing", func() error { return nil }, false, again},
	{"an echo request", func() error { return ping(unix.AF_INET) }, true, gone},
	{"an echo request over IPv6", func() error { return ping(unix.AF_INET6) }, true, gone},
	{"a datagram to nobody", func() error { return datagram("127.0.0.1:9") }, true, gone},
	{"a datagram to nobody over IPv6", func() error { return datagram("[::1]:9") }, true, gone},
	{"a datagram to oneself", datagramToOneself, true, gone},
	{"a refused connection", refused, true, gone},
	{"a connection", func() error { return connectToOneself(false) }, true, gone},
	{"a connection that ends in TIME_WAIT", func() error { return connectToOneself(true) }, true, gone},
	{"an orphan with data that nobody reads", orphan, true, gone},
	{"a fast-open listener", fastOpen, false, again},
	{"a port that is bound", func() error { _, err := boundSocket(unix.AF_INET, unix.SOCK_STREAM, 0); return err }, true, again},
	{"an abstract socket", func() error { _, err := net.Listen("unix", "@x"); return err }, true, again},
	{"a netlink socket", netlinkSocket, true, again},
	{"a multicast group", multicast, true, again},
	{"a multicast group that was left", func() error { s, err := joined(); return errors.Join(err, unix.Close(s)) }, false, again},
	{"a multicast group of IPv6", multicast6, true, gone},
	{"a multicast group of IPv6 that was left", func() error { s, err := joined6(); return errors.Join(err, unix.Close(s)) }, false, gone},
	{"a source of a group that everybody is in", source, false, again},
	{"a route that was looked up", func() error { return lookUp(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}) }, true, either},
	{"a route of IPv6 that was looked up", func() error { return lookUp(&unix.SockaddrInet6{Port: 9, Addr: [16]byte{15: 1}}) }, true, gone},
	{"a flow label", flowLabel, false, again},
	{"sockets that hold each other", cycle, true, again},
}

func init() {
	testkit.AddHelper("network-use", func(args []string) error {
		i := slices.IndexFunc(uses, func(u use) bool { return u.name == args[0] })
		if err := uses[i].use(); err != nil {
			return err
		}
		if len(args) > 1 {
			fmt.Print(lookAtNetwork())
		}
		fmt.Println(network())
		return nil
	})
	testkit.AddHelper("network-look", func([]string) error {
		fmt.Println(lookAtNetwork() + network())
		return nil
	})
}

// lookAtNetwork returns all that a run can read of its network namespace and that is the
// namespace's own: of the tables, whose entries have addresses in the kernel, how many there are.
func lookAtNetwork() string {
	var b strings.Builder
	fmt.Fprintln(&b, locked, lockNetwork())
	kept, _ := os.ReadFile("/proc/sys/net/ipv4/conf/all/force_igmp_version")
	for _, name := range []string{"sockstat", "sockstat6", "snmp", "snmp6", "netstat", "dev", "dev_snmp6/lo", "igmp", "igmp6", "mcfilter", "mcfilter6", "ip6_flowlabel",
		"route", "ipv6_route", "if_inet6", "arp", "fib_trie", "fib_triestat", "rt6_stats", "dev_mcast", "wireless"} {
		content, _ := os.ReadFile("/proc/net/" + name)
		for line := range strings.Lines(string(content)) {
			if fields := strings.Fields(line); name == "sockstat" && strings.HasPrefix(line, "TCP:") {
				line = strings.Join(slices.Concat(fields[:3], fields[5:7]), " ") + "\n" // the others are the machine's
			} else if name == "sockstat" && strings.HasPrefix(line, "UDP:") {
				line = strings.Join(fields[:3], " ") + "\n"
			}
			if kept[0] == '1' { // it has a socket of the host's, and a version that is set
				line = strings.Replace(line, "sockets: used 1\n", "sockets: used 0\n", 1)
				line = strings.Replace(line, " V1", " V3", 1)
			}
			fmt.Fprintf(&b, "%s: %s", name, line)
		}
	}
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "icmp6", "unix", "netlink", "packet"} {
		content, _ := os.ReadFile("/proc/net/" + name)
		fmt.Fprintf(&b, "%s: %d\n", name, strings.Count(string(content), "\n"))
	}
	counted, _ := os.ReadFile("/proc/net/fib_triestat")
	if !strings.Contains(string(counted), "Counters:") { // else it counts a look at a route, too
		_ = onEachCPU(func() error {
			age, err := ageOfRoute()
			fmt.Fprintln(&b, "age of the route: ", age, err)
			return nil
		})
	}
	_ = filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !slices.Contains([]string{"ping_group_range", "force_igmp_version", "force_mld_version"}, filepath.Base(path)) {
			content, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s: %s", path, content)
		}
		return nil
	})
	return b.String()
}

func ping(family int) error {
	to, protocol, request := unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.IPPROTO_ICMP, byte(8)
	if family == unix.AF_INET6 {
		to, protocol, request = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}, unix.IPPROTO_ICMPV6, 128
	}
	s, err := unix.Socket(family, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return err
	}
	return unix.Sendto(s, []byte{request, 0, 0, 0, 0, 0, 0, 1}, 0, to)
}

func datagram(to string) error {
	c, err := net.Dial("udp", to)
	if err == nil {
		_, err = c.Write([]byte("x"))
	}
	return err
}

func datagramToOneself() error {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err == nil {
		_, err = c.WriteTo([]byte("x"), c.LocalAddr())
	}
	return err
}

func refused() error {
	if _, err := net.Dial("tcp", "127.0.0.1:9"); err == nil {
		return errors.New("somebody listens")
	}
	return nil
}

func connectToOneself(waits bool) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err == nil && waits {
		err = errors.Join(c.Close(), s.Close())
	}
	return err
}

// orphan ends with data under way to a socket that nobody reads from.
func orphan() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = c.Write(make([]byte, 16<<20))
	return c.Close()
}

// boundSocket is bound to any address, for which no route is looked up, as some kernels count that.
func boundSocket(family, kind, protocol int) (int, error) {
	s, err := unix.Socket(family, kind, protocol)
	if err == nil {
		err = unix.Bind(s, &unix.SockaddrInet4{Port: 4242})
	}
	return s, err
}

func fastOpen() error {
	s, err := boundSocket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5)
	}
	if err == nil {
		err = unix.Listen(s, 5)
	}
	if err == nil {
		err = unix.Close(s)
	}
	return err
}

func netlinkSocket() error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	return err
}

func multicast() error { _, err := joined(); return err }

func joined() (int, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: [4]byte{239, 1, 2, 3}, Ifindex: 1})
	}
	return s, err
}

func multicast6() error { _, err := joined6(); return err }

func joined6() (int, error) {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.SetsockoptIPv6Mreq(s, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 2, 15: 77}, Interface: 1})
	}
	return s, err
}

// source joins and leaves 224.0.0.1, where the kernel is, for one source: struct ip_mreq_source.
func source() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.SetsockoptString(s, unix.IPPROTO_IP, unix.IP_ADD_SOURCE_MEMBERSHIP, "\xe0\x00\x00\x01\x7f\x00\x00\x01\x7f\x00\x00\x01")
	}
	return errors.Join(err, unix.Close(s))
}

// lookUp has the kernel look up a route, on each CPU, as each keeps what was found, and waits until
// it says that this was a moment ago.
func lookUp(to unix.Sockaddr) error {
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	defer time.Sleep(20 * time.Millisecond)
	return onEachCPU(func() error {
		s, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Connect(s, to)
		}
		return errors.Join(err, unix.Close(s))
	})
}

func onEachCPU(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var may, one unix.CPUSet
	errs := []error{unix.SchedGetaffinity(0, &may)}
	for i := range 8 * len(may) * int(unsafe.Sizeof(may[0])) {
		if may.IsSet(i) {
			one.Zero()
			one.Set(i)
			errs = append(errs, unix.SchedSetaffinity(0, &one), do())
		}
	}
	return errors.Join(append(errs, unix.SchedSetaffinity(0, &may))...)
}

// ageOfRoute returns how long ago the route to 127.0.0.1 that a CPU keeps was looked up:
// rtnetlink(7), RTM_GETROUTE, RTA_CACHEINFO, rta_lastuse.
func ageOfRoute() (age uint32, err error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	request := []byte{36, 0, 0, 0, unix.RTM_GETROUTE, 0, unix.NLM_F_REQUEST, 0, 16: unix.AF_INET, 32, 28: 8, 0, unix.RTA_DST, 0, 127, 0, 0, 1}
	if err := unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	for at := 28; err == nil && at+12 <= n; at += (int(binary.NativeEndian.Uint16(answer[at:])) + 3) &^ 3 {
		if binary.NativeEndian.Uint16(answer[at+2:]) == unix.RTA_CACHEINFO {
			return binary.NativeEndian.Uint32(answer[at+8:]), nil
		}
	}
	return 0, errors.Join(err, errors.New("no RTA_CACHEINFO"))
}

// network identifies this process's network namespace, by more than its inode's number, which a
// later one may have: socket(7), SO_NETNS_COOKIE, Linux 5.14.
func network() string {
	const soNetnsCookie = 71
	ns, _ := os.Readlink("/proc/self/ns/net")
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return ns
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, soNetnsCookie)
	if err != nil {
		return ns
	}
	return fmt.Sprint(ns, cookie)
}

// flowLabel tries to take a label of IPv6, after which the namespace is not as it was, whenever the
// label goes: struct in6_flowlabel_req of linux/in6.h.
func flowLabel() error {
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	req := struct {
		dst             [16]byte
		label           uint32
		action, share   uint8
		flags           uint16
		expires, linger uint16
		pad             uint32
	}{dst: [16]byte{15: 1}, action: 0 /* IPV6_FL_A_GET */, share: 1 /* IPV6_FL_S_EXCL */, flags: 1 /* IPV6_FL_F_CREATE */, expires: 6, linger: 6}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(s), unix.IPPROTO_IPV6, 32 /* IPV6_FLOWLABEL_MGR */, uintptr(unsafe.Pointer(&req)), unsafe.Sizeof(req), 0)
	if errno != unix.ENOPROTOOPT {
		return fmt.Errorf("taking a flow label: %w", errno)
	}
	return nil
}

// cycle leaves two sockets of which each is under way to the other: only the kernel's collector
// frees them.
func cycle() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	for i := range pair {
		if err := unix.Sendmsg(pair[i], []byte("x"), unix.UnixRights(pair[i]), nil, 0); err != nil {
			return err
		}
	}
	return errors.Join(unix.Close(pair[0]), unix.Close(pair[1]))
}

// inNetwork runs a helper, and returns what it printed and its network namespace.
func inNetwork(t *testing.T, opts []sandbox.Option, name string, args ...string) (seen, ns string) {
	t.Helper()
	exe, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer exe.Close()
	s := sandbox.New(sandbox.WithExtraFiles(exe), sandbox.WithEnv(testkit.HelperEnv), sandbox.WithCommand("/proc/self/fd/3", testkit.HelperArgs(name, args...)...)).With(opts...)
	out := runs.Output(t, s)
	i := strings.LastIndex(out, "net:[")
	require.GreaterOrEqual(t, i, 0, out)
	return out[:i], out[i:]
}

// requireFate requires that later runs are in the same namespace if they may be, and only then.
func (u *use) requireFate(t *testing.T, in []sandbox.Option, known map[string]bool, look func() []string) {
	tries, wait := 1, 100*time.Millisecond // by then it is decided
	if u.then == again {
		tries, wait = 10, 0
	}
	met := false
	for ; tries > 0 && !met; tries-- {
		ns := inKept(t, known, look, func() string {
			_, ns := inNetwork(t, in, "network-use", u.name)
			return ns
		})
		time.Sleep(wait) // else others may take its place
		wait += 20 * time.Millisecond
		met = slices.Contains(look(), ns)
	}
	if u.then == again || u.then == gone && testkit.Kernel(5, 14) { // else they can't be told apart
		require.Equal(t, u.then == again, met, "a later run was in the same namespace")
	}
}

// TestAttackRootlessNetworkTraces leaves something in a network namespace. A later run that has the
// same one sees in it what it would see in a new one.
func TestAttackRootlessNetworkTraces(t *testing.T) {
	cell, err := sandbox.NewCell()
	require.NoError(t, err)
	defer cell.Close()
	in := []sandbox.Option{sandbox.WithCell(cell)}
	anew := append(slices.Clip(in), sandbox.WithNetwork(sandbox.NetworkNew))
	clean, first := inNetwork(t, anew, "network-look")
	other, second := inNetwork(t, anew, "network-look")
	require.Equal(t, clean, other)
	require.NotEqual(t, first, second)
	known := map[string]bool{}
	look := func() (all []string) {
		for range 2 { // the one that was given back last is taken first
			seen, ns := inNetwork(t, in, "network-look")
			require.Equal(t, clean, seen)
			known[ns] = true
			all = append(all, ns)
		}
		return all
	}
	for _, u := range uses {
		t.Run(u.name, func(t *testing.T) {
			if u.shows {
				seen, _ := inNetwork(t, anew, "network-use", u.name, "and look")
				require.NotEqual(t, clean, seen, "the control: it shows in the same namespace")
			}
			u.requireFate(t, in, known, look)
		})
	}
	for range 10 { // in all that the cell keeps, some time later
		seen, _ := inNetwork(t, in, "network-look")
		require.Equal(t, clean, seen)
	}
}

// TestAttackRootlessNetworkIsKept requires that the test above tries what it says: namespaces are
// used again, one run at a time is in one, and runs that may do what is not noticed are in new
// ones.
func TestAttackRootlessNetworkIsKept(t *testing.T) {
	cell, err := sandbox.NewCell()
	require.NoError(t, err)
	defer cell.Close()
	isAgain := func(opts ...sandbox.Option) bool {
		seen := map[string]bool{}
		for range 12 {
			_, ns := inNetwork(t, append([]sandbox.Option{sandbox.WithCell(cell)}, opts...), "network-look")
			if seen[ns] {
				return true
			}
			seen[ns] = true
		}
		return false
	}
	require.True(t, isAgain())
	require.True(t, isAgain(sandbox.WithReadOnlyBind(testkit.OpenDir(t), "/srv")), "with a bind")
	require.True(t, isAgain(sandbox.WithPrepared(1)), "prepared")
	if !testkit.Kernel(5, 14) {
		return // what is new can't be told from what is not
	}
	for name, opt := range map[string]sandbox.Option{
		"NetworkNew": sandbox.WithNetwork(sandbox.NetworkNew), "a capability": sandbox.WithCapabilities("CAP_NET_BIND_SERVICE"),
		"no filter": sandbox.WithoutSeccomp(), "a filter of one's own": sandbox.WithSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}),
	} {
		require.False(t, isAgain(opt), name)
	}
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		hostIDs, err := sandbox.NewCell(sandbox.CellWithoutUserNamespace())
		require.NoError(t, err)
		defer hostIDs.Close()
		require.False(t, isAgain(sandbox.WithCell(hostIDs), sandbox.WithoutUserNamespace(), sandbox.WithUser(runs.HostID, runs.HostID)))
	}
	live := map[string]bool{}
	for range 12 {
		p, err := sandbox.New(sandbox.WithCell(cell), sandbox.WithCommand("sleep", "1000")).Start(context.Background())
		require.NoError(t, err)
		defer func() { _ = p.Kill(); _, _ = p.Wait() }()
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID()))
		require.NoError(t, err)
		require.False(t, live[ns], "two runs at once")
		live[ns] = true
	}
}
