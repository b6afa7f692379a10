package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/program"
)

// gateway is a network namespace in which every address is local, so that what runs send to any one
// arrives at its listeners, which this process holds, unless it is a run's. It has no interface but
// one to each run: what neither takes goes nowhere, also when this process has died.
type gateway struct {
	config *Config
	rules  [overPing + 1]*Config // of each protocol
	cell   *cell.Cell
	ns     namespace
	noIPv6 error           // why runs have IPv4 alone
	ctx    context.Context // ends with the gateway
	end    context.CancelFunc
	busy   sync.WaitGroup // goroutines

	listeners []*net.TCPListener

	roster *roster               // of the network
	cable  atomic.Pointer[cable] // to the gateways of other cells, nil for none

	mu     sync.Mutex
	closed bool
	joins  int
	ahead  *Member // for the next run
	making bool    // of ahead

	netlinkMu sync.Mutex

	tables    []uint32 // numbers that can be used again; by roster.reachMu, as the next
	lastTable uint32

	answers map[int]near // by family: what answers datagrams from any port, if many are allowed

	unlisted *unlisted // nil without an observer

	spareMu sync.Mutex
	spare   map[kind][]*os.File
}

// namespace is a network namespace and what this process has in it.
type namespace struct {
	file    *os.File
	netlink *os.File
	sockets []*os.File
}

func (n *namespace) close() {
	for _, f := range append(n.sockets, n.netlink, n.file) {
		if f != nil {
			f.Close()
		}
	}
}

// newNamespace makes a network namespace. setUp adds what is set in it, and returns sockets.
func newNamespace(c *cell.Cell, setUp func(b *program.Builder) []program.Slot) (namespace, error) {
	files, err := c.InNetwork(nil, func(b *program.Builder) []program.Slot {
		ns := b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/self/ns/net"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC, "O_RDONLY|O_CLOEXEC"), program.Int(0))
		nl := socket(b, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		return append([]program.Slot{ns, nl}, setUp(b)...)
	})
	if err != nil {
		return namespace{}, err
	}
	return namespace{files[0], files[1], files[2:]}, nil
}

func socket(b *program.Builder, family, kind, protocol int) program.Slot {
	return b.CallTo("socket", unix.SYS_SOCKET, program.Int(family), program.Int(kind|unix.SOCK_CLOEXEC), program.Int(protocol))
}

// set writes a setting of the kernel, which must exist.
func set(b *program.Builder, name, value string) {
	f := b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/sys/net/"+name), program.Int(unix.O_WRONLY|unix.O_CLOEXEC, "O_WRONLY|O_CLOEXEC"), program.Int(0))
	b.Call("write", unix.SYS_WRITE, program.Use(f), b.Str(value), program.Int(len(value)))
	b.Close(f)
}

// setUpAny is for every namespace: any user may listen on any port.
func setUpAny(b *program.Builder) {
	set(b, "ipv4/ip_unprivileged_port_start", "0")
	setUpIPv6(b)
}

// setUpMember sets up a run's namespace.
func setUpMember(c *cell.Cell) func(b *program.Builder) []program.Slot {
	return func(b *program.Builder) []program.Slot {
		setUpAny(b)
		set(b, "ipv4/ping_group_range", c.PingGroups())
		return nil
	}
}

const backlog = 1024

// setUpGateway sets up the gateway's namespace: it forwards from run to run, takes from each
// interface only what the run there may send (rp_filter: no other's address), and answers no echo
// requests, as every address would seem to be there. Settings of IPv4 are inherited from the
// machine's (Documentation/admin-guide/sysctl/net.rst, devconf_inherit_init_net). The sockets are
// that of the resolver, those that see what is not listed, listeners of DNS over TCP and of all
// ports that are allowed, those for ports of UDP that are, and for ping. The last ones answer from
// any address (ip(7), IP_TRANSPARENT): once there was a rule of reach, the kernel knows those as
// local no more that only table main has so (__ip_dev_find in net/ipv4/devinet.c, fib_unmerge).
func setUpGateway(config *Config) func(b *program.Builder) []program.Slot {
	return func(b *program.Builder) []program.Slot {
		setUpAny(b)
		for _, s := range [][2]string{{"ip_forward", "1"}, {"conf/all/rp_filter", "1"}, {"conf/default/rp_filter", "1"}, {"conf/all/accept_local", "0"}, {"conf/default/accept_local", "0"}, {"conf/all/accept_source_route", "0"}, {"icmp_echo_ignore_all", "1"}} {
			set(b, "ipv4/"+s[0], s[1])
		}
		family := unix.AF_INET
		if kernelIPv6() == nil {
			family = unix.AF_INET6
			set(b, "ipv6/conf/all/forwarding", "1")
			set(b, "ipv6/icmp/echo_ignore_all", "1")
		}
		transparent := func(kind int, port uint16) program.Slot {
			s := socket(b, family, kind, 0)
			option(b, s, unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR")
			any := anywhere.Addr()
			if family == unix.AF_INET6 {
				any = everywhere.Addr()
				b.Call("setsockopt", unix.SYS_SETSOCKOPT, program.Use(s), program.Int(unix.SOL_IPV6), program.Int(unix.IPV6_V6ONLY, "IPV6_V6ONLY"), b.Bytes(make([]byte, 4), "0"), program.Int(4))
				option(b, s, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT")
			} else {
				option(b, s, unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT")
			}
			bind(b, s, netip.AddrPortFrom(any, port))
			return s
		}
		names := socket(b, unix.AF_INET, unix.SOCK_DGRAM, 0)
		option(b, names, unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR")
		// The address is not there yet.
		option(b, names, unix.SOL_IP, unix.IP_FREEBIND, "IP_FREEBIND")
		bind(b, names, netip.AddrPortFrom(resolver, dnsPort))
		made := []program.Slot{names}
		if config.Observe != nil {
			made = append(made, setUpUnlisted(b)...)
		}
		for _, port := range config.listened() {
			s := transparent(unix.SOCK_STREAM, port)
			b.Call("listen", unix.SYS_LISTEN, program.Use(s), program.Int(backlog))
			made = append(made, s)
		}
		for _, port := range config.taken() {
			made = append(made, transparent(unix.SOCK_DGRAM, port))
		}
		if config.isWide() {
			made = append(made, setUpAnswers(b)...)
		}
		if config.all().Ping {
			made = append(made, setUpPing(b)...)
		}
		return made
	}
}

// option sets an option of a socket to 1: setsockopt(2).
func option(b *program.Builder, s program.Slot, level, number int, name string) {
	b.Call("setsockopt", unix.SYS_SETSOCKOPT, program.Use(s), program.Int(level), program.Int(number, name), b.Bytes([]byte{1, 0, 0, 0}, "1"), program.Int(4))
}

// bind gives a socket an address: bind(2).
func bind(b *program.Builder, s program.Slot, to netip.AddrPort) {
	at := make([]byte, unix.SizeofSockaddrInet4) // ip(7)
	if to.Addr().Is6() {
		at = make([]byte, unix.SizeofSockaddrInet6) // ipv6(7)
		copy(at[8:], to.Addr().AsSlice())
	} else {
		copy(at[4:], to.Addr().AsSlice())
	}
	at[2], at[3] = byte(to.Port()>>8), byte(to.Port())
	binary.NativeEndian.PutUint16(at, uint16(family(to.Addr())))
	b.Call("bind", unix.SYS_BIND, program.Use(s), b.Bytes(at, fmt.Sprintf("{%v}", to)), program.Int(len(at)))
}

// newGateway makes a gateway in the cell, and begins to listen.
func newGateway(config *Config, of *roster, c *cell.Cell) (_ *gateway, err error) {
	g := &gateway{config: config, rules: [...]*Config{config.of(overTCP), config.of(overUDP), config.of(overPing)}, cell: c, roster: of, spare: map[kind][]*os.File{}}
	g.ctx, g.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if config.all().Ping {
		if err := canPing(); err != nil {
			return nil, err
		}
	}
	if config.Observe != nil {
		if err := canWatch(); err != nil {
			return nil, err
		}
	}
	if g.ns, err = newNamespace(c, setUpGateway(config)); err != nil {
		return nil, fmt.Errorf("the gateway's network namespace: %w", err)
	}
	var x batch
	x.up(loopback)
	x.address(loopback, netip.PrefixFrom(resolver, resolver.BitLen()))
	x.route(route{to: anywhere, index: loopback, kind: unix.RTN_LOCAL, scope: unix.RT_SCOPE_HOST})
	if err := g.change(&x); err != nil {
		return nil, fmt.Errorf("the gateway's interfaces: %w", err)
	}
	g.noIPv6 = g.addIPv6()
	if config.isWide() {
		if err := g.addWide(); err != nil {
			return nil, err
		}
	}
	if err := g.listen(); err != nil {
		return nil, err
	}
	return g, of.enter(g)
}

// listen gives each of the gateway's sockets a goroutine, in the order in which setUpGateway makes
// them.
func (g *gateway) listen() error {
	rest := g.ns.sockets
	take := func(n int) (some []*os.File) {
		some, rest = rest[:n], rest[n:]
		return some
	}
	names, err := packetConn[*net.UDPConn](g, take(1)[0])
	if err != nil {
		return err
	}
	g.busy.Go(func() { g.serveNames(names) })
	var watched []*os.File
	if g.config.Observe != nil {
		watched = take(len(families()))
		if err := g.watchUnlisted(watched); err != nil {
			return err
		}
	}
	for _, f := range take(len(g.config.listened())) {
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		tcp := l.(*net.TCPListener)
		g.listeners = append(g.listeners, tcp)
		context.AfterFunc(g.ctx, func() { tcp.Close() })
		g.busy.Go(func() { g.accept(tcp) })
	}
	datagrams := take(len(g.config.taken()))
	if g.config.isWide() {
		if err := g.useAnswers(take(len(families()))); err != nil {
			return err
		}
	}
	for _, f := range datagrams {
		udp, err := packetConn[*net.UDPConn](g, f)
		if err == nil {
			err = g.serveDatagrams(udp)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range rest {
		raw, err := packetConn[*net.IPConn](g, f)
		if err == nil {
			err = g.serveEchoes(raw)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range g.ns.sockets { // the copies remain
		if !slices.Contains(watched, f) {
			f.Close()
		}
	}
	g.ns.sockets = nil
	return nil
}

// packetConn returns a socket of the gateway, which is closed when that is.
func packetConn[C *net.UDPConn | *net.IPConn](g *gateway, f *os.File) (c C, err error) {
	p, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(g.ctx, func() { p.Close() })
	return p.(C), nil
}

// hasWaiting reports whether a connection is still to be accepted.
func (g *gateway) hasWaiting() (yes bool) {
	for _, l := range g.listeners {
		raw, err := l.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			yes = yes || n > 0
		})
	}
	return yes
}

// begin begins a goroutine, unless the gateway is closed.
func (g *gateway) begin(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.busy.Go(f)
	}
	return !g.closed
}

// close ends all connections, and with the namespace the interfaces of members that have not left.
// A gateway may be nil. It waits for observers, so no lock may be held that they could want.
func (g *gateway) close() {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.unlisted.drain()
	g.end()
	g.busy.Wait()
	g.roster.leave(g)
	if g.ahead != nil {
		g.ahead.disconnect()
	}
	g.ns.close()
	g.spareMu.Lock()
	defer g.spareMu.Unlock()
	for _, files := range g.spare {
		for _, f := range files {
			f.Close()
		}
	}
	clear(g.spare)
}

const (
	loopback = 1 // index of the interface, in every namespace
	runLink  = 64
	linkBase = 1000 // above those that the kernel may make by itself
)

var anywhere = netip.MustParsePrefix("0.0.0.0/0")

// link is the index of the gateway's end of the member's veth.
func (m *Member) link() int32 { return int32(linkBase + m.index) }

func (m *Member) linkName() string { return fmt.Sprintf("run%d", m.index) }

// hardware returns the addresses of the veth's two ends, which are of those that nobody was given
// (IEEE 802, locally administered).
func (m *Member) hardware() (gateway, run net.HardwareAddr) {
	a := m.address.As4()
	return append(net.HardwareAddr{2, 1}, a[:]...), append(net.HardwareAddr{2, 0}, a[:]...)
}

// connect makes a veth between the gateway and a member.
func (g *gateway) connect(m *Member) error {
	own, via := netip.PrefixFrom(m.address, 32), netip.PrefixFrom(resolver, 32)
	var x batch
	here, inside := m.hardware()
	x.veth(end{m.linkName(), m.link(), here, nil}, end{"eth0", runLink, inside, m.ns.file})
	x.up(m.link())
	x.route(route{to: own, index: m.link(), kind: unix.RTN_UNICAST, scope: unix.RT_SCOPE_LINK})
	var there batch
	there.up(loopback)
	there.up(runLink)
	there.address(runLink, own)
	there.route(route{to: via, index: runLink, kind: unix.RTN_UNICAST, scope: unix.RT_SCOPE_LINK})
	there.route(route{to: anywhere, index: runLink, via: resolver, kind: unix.RTN_UNICAST})
	if g.noIPv6 == nil {
		m.connectIPv6(&x, &there)
	}
	if err := g.change(&x); err != nil {
		return err
	}
	return there.send(m.ns.netlink)
}

// change changes the gateway's interfaces.
func (g *gateway) change(x *batch) error {
	g.netlinkMu.Lock() // of several senders each would get the others' answers
	defer g.netlinkMu.Unlock()
	return x.send(g.ns.netlink)
}
