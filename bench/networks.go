//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cellkit/sandbox"
)

// network is one way for a client to reach a server.
type network struct {
	name    string
	client  *client
	address string // of the server, there
}

// networks measures private networks, and prints the figures.
func networks(rounds int) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	defer func() {
		for _, end := range started {
			end()
		}
	}()
	far, err := outside(exe, "server", "0.0.0.0:0") // not in this process, which passes on
	if err != nil {
		return err
	}
	line, err := far.line()
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(line)
	if err != nil {
		return err
	}
	own, ok := ownAddress()
	if !ok {
		return errors.New("this machine has no address but its loopback")
	}
	n, err := sandbox.NewNetwork(sandbox.AllowCIDR(own.String(), sandbox.TCP(port)), sandbox.MaxConns(2000))
	if err != nil {
		return err
	}
	defer n.Close()
	if err := setUps(n, rounds); err != nil {
		return err
	}
	all, err := ways(n, exe, own, port)
	if err != nil {
		return err
	}
	transfers(all, rounds)
	if err := byName(all[0].client, own, port, rounds); err != nil {
		return err
	}
	if err := connections(all[1]); err != nil {
		return err
	}
	return hundred()
}

// setUps compares runs on a network with those without one.
func setUps(n *sandbox.PrivateNetwork, rounds int) error {
	run := func(s *sandbox.Sandbox) func() error {
		return func() error { _, err := s.Run(context.Background()); return err }
	}
	s := sandbox.New(sandbox.WithCommand("/usr/bin/true"))
	list := []subject{{name: "none", run: run(s)}, {name: "in a namespace of its own", run: run(s.With(sandbox.WithNetwork(sandbox.NetworkNew)))},
		{name: "on a shared network", run: run(s.With(sandbox.WithNetwork(n.As("run"))))},
		{name: "on a shared network, with Reaches", run: run(s.With(sandbox.WithNetwork(n.As("run", sandbox.Reaches()))))},
		{name: "on a network of its own", run: run(s.With(sandbox.WithNetwork(sandbox.Private())))}}
	for _, s := range list {
		if err := s.run(); err != nil {
			return err
		}
	}
	for i, times := range inTurn(list, rounds, 5*time.Millisecond) {
		fmt.Printf("| run of /usr/bin/true, %s | %s |\n", list[i].name, ms(quantile(times, 0.5)))
	}
	return nil
}

// ways returns networks: the first is the host's loopback, the second leads out of a run.
func ways(n *sandbox.PrivateNetwork, exe string, own netip.Addr, port int) (all []network, err error) {
	add := func(name, address string, c *client, err error) {
		if err == nil {
			_, err = c.took("first", address)
		}
		if err != nil {
			progress("left out: %s: %v", name, err)
			return
		}
		all = append(all, network{name, c, address})
	}
	here, err := outside(exe, "client")
	add("the host's loopback", fmt.Sprintf("127.0.0.1:%d", port), here, err)
	out, _, err := inside([]string{"client"}, sandbox.WithNetwork(n.As("client")))
	add("out of a run", netip.AddrPortFrom(own, uint16(port)).String(), out, err)
	server, p, err := inside([]string{"server", "0.0.0.0:80"}, sandbox.WithNetwork(n.As("db")), sandbox.WithPublish("127.0.0.1:0", 80))
	if err != nil {
		return nil, err
	}
	if _, err := server.out.line(); err != nil {
		return nil, err
	}
	add("in, published", p.Published()[0].String(), here, nil)
	add("between runs", "db:80", out, nil)
	cell, err := sandbox.NewCell()
	if err != nil {
		return nil, err
	}
	other, _, err := inside([]string{"client"}, sandbox.WithNetwork(n.As("other")), sandbox.WithCell(cell))
	add("between runs of two cells", "db:80", other, err)
	peers(exe, port, add)
	return all, nil
}

func transfers(all []network, rounds int) {
	const bytes = 64 << 20
	for _, kind := range []struct {
		what  string
		times int
	}{{"send", max(rounds/10, 3)}, {"receive", max(rounds/10, 3)}, {"first", rounds}} {
		took := make([][]time.Duration, len(all))
		for range kind.times {
			for i, n := range all {
				if d, err := n.client.took(kind.what, n.address, bytes); err == nil {
					took[i] = append(took[i], d)
				} else {
					progress("%s, %s: %v", kind.what, n.name, err)
				}
			}
		}
		base := quantile(took[0], 0.5)
		for i, n := range all {
			if len(took[i]) == 0 {
				continue
			}
			d := quantile(took[i], 0.5)
			if kind.what == "first" {
				fmt.Printf("| connect and first byte, %s | %.0f µs | %.2f × |\n", n.name, float64(d.Nanoseconds())/1e3, float64(d)/float64(base))
			} else {
				fmt.Printf("| %s, %s | %.2f GB/s | %.2f × |\n", kind.what, n.name, bytes/d.Seconds()/1e9, float64(base)/float64(d))
			}
		}
	}
}

// byName measures what a name adds to a connection: to another run, and out, where this process
// looks it up again. Beside that, what a lookup takes on the host, from a resolver like the
// gateway's in this process.
func byName(here *client, own netip.Addr, port, rounds int) error {
	resolver, err := serveName(own)
	if err != nil {
		return err
	}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("far.test", port), sandbox.AllowCIDR(own.String(), sandbox.TCP(port)),
		sandbox.NetworkResolver(&net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, resolver)
		}}))
	if err != nil {
		return err
	}
	defer n.Close()
	from, p, err := inside([]string{"client"}, sandbox.WithNetwork(n.As("client")))
	if err != nil {
		return err
	}
	defer func() { _ = p.Kill(); _, _ = p.Wait() }()
	server, q, err := inside([]string{"server", "0.0.0.0:80"}, sandbox.WithNetwork(n.As("db")))
	if err != nil {
		return err
	}
	defer func() { _ = q.Kill(); _, _ = q.Wait() }()
	if _, err := server.out.line(); err != nil {
		return err
	}
	list := []struct {
		name string
		by   *client
		what []any
	}{
		{"connect and first byte, the host's loopback", here, []any{"first", fmt.Sprintf("127.0.0.1:%d", port)}},
		{"connect and first byte, another run by its address", from, []any{"first", "198.18.0.3:80"}}, // the second run
		{"connect and first byte, another run by its name", from, []any{"first", "db:80"}},
		{"connect and first byte, out by address", from, []any{"first", fmt.Sprintf("%v:%d", own, port)}},
		{"connect and first byte, out by name", from, []any{"first", fmt.Sprintf("far.test:%d", port)}},
		{"connect and first byte, by name on the host", here, []any{"named", fmt.Sprintf("far.test:%d", port), resolver}},
		{"name of another run, looked up", from, []any{"find", "db"}},
		{"name, looked up on the host", here, []any{"find", "far.test", resolver}},
	}
	took := make([][]time.Duration, len(list))
	for range rounds {
		for i, one := range list {
			d, err := one.by.took(one.what...)
			if err != nil {
				return fmt.Errorf("%s: %w", one.name, err)
			}
			took[i] = append(took[i], d)
		}
	}
	for i, one := range list {
		d := quantile(took[i], 0.5)
		fmt.Printf("| %s | %.0f µs | %.2f × |\n", one.name, float64(d.Nanoseconds())/1e3, float64(d)/float64(quantile(took[0], 0.5)))
	}
	return nil
}

// serveName answers each question over UDP with an address of IPv4 and one of IPv6, as a gateway's
// resolver does.
func serveName(own netip.Addr) (at string, err error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	go func() {
		for b := make([]byte, 1024); ; {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			var body dnsmessage.ResourceBody = &dnsmessage.AResource{A: own.As4()}
			if q.Type == dnsmessage.TypeAAAA {
				body = &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("fd00::1").As16()}
			}
			m.Response, m.Additionals = true, nil
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: body}}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
	return conn.LocalAddr().String(), nil
}

// connections measures what a thousand idle ones take of this process.
func connections(n network) error {
	const count = 1000
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	files := openFiles()
	if _, err := n.client.took("hold", n.address, count); err != nil {
		return err
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse
	fmt.Printf("| %d idle connections out, each | %.1f KiB of heap and stacks, %.1f descriptors |\n", count, float64(held)/count/1024, float64(openFiles()-files)/count)
	return nil
}

// hundred has a hundred services on one network, of which each reaches the next.
func hundred() error {
	const count = 100
	n, err := sandbox.NewNetwork()
	if err != nil {
		return err
	}
	defer n.Close()
	began := time.Now()
	for i := range count {
		name, next := fmt.Sprintf("s%d", i), fmt.Sprintf("s%d", (i+1)%count)
		c, p, err := inside([]string{"server", "0.0.0.0:80"}, sandbox.WithNetwork(n.As(name, sandbox.Reaches(next))))
		if err != nil {
			return err
		}
		defer func() { _ = p.Kill(); _, _ = p.Wait() }()
		if _, err := c.out.line(); err != nil {
			return err
		}
	}
	fmt.Printf("| %d services with Reaches, until all listen | %v |\n", count, time.Since(began).Round(time.Millisecond))
	free, _, err := inside([]string{"client"}, sandbox.WithNetwork(n.As("client")))
	if err != nil {
		return err
	}
	var took []time.Duration
	for i := range count {
		d, err := free.took("first", fmt.Sprintf("s%d:80", i))
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	fmt.Printf("| of these, name, connect and first byte | %.0f µs |\n", float64(quantile(took, 0.5).Nanoseconds())/1e3)
	return nil
}

func openFiles() int {
	all, _ := os.ReadDir("/proc/self/fd")
	return len(all)
}

// ownAddress returns an address of this machine that is not its loopback.
func ownAddress() (netip.Addr, bool) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}
