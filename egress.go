package sandbox

import "github.com/cellkit/sandbox/internal/gateway"

// AllowHost lets runs connect to the ports of a host by its name: numbers, which are of TCP, or
// TCP(443), UDP(443). "*.example.org" are all names below example.org, without that itself, and "*"
// all names, but neither is for those of runs: names without a dot, also with ".internal" after
// them, and Aliases. So "*.internal" is for a.b.internal and not for a.internal, which AllowHost
// takes by itself. The network's resolver answers for names that are listed, and says of all others
// that they don't exist, without asking anybody. What it answers is an address that stands for the
// name in this run: when the run connects to it, this process looks the name up and connects. It
// does not connect to addresses that are not the internet's (private, loopback and link-local ones,
// such as 169.254.169.254) or are this machine's, unless AllowCIDR names them. A run that shows the
// server another name first, as the server name of TLS or the host of HTTP/1, is cut off; a proxy
// takes AllowCIDR. "bücher.example" stands for xn--bcher-kva.example, which observers are told.
func AllowHost[P int | Ports](name string, ports ...P) NetworkOption {
	return func(c *gateway.Config) {
		var all gateway.Ports
		for _, p := range ports {
			switch p := any(p).(type) {
			case int:
				all.Add(TCP(p).of)
			case Ports:
				all.Add(p.of)
			}
		}
		c.AllowHost(name, all)
	}
}

// AllowCIDR lets runs connect to addresses, "10.2.0.0/16" or "10.2.0.1", and lets names of
// AllowHost lead there. A range names the addresses of a special block, such as 10.0.0.0/8, only if
// it lies within that: 0.0.0.0/0 is the internet alone. An address of this machine has to be named
// by itself. Addresses may be of IPv6, "fd00::/64", where the kernel has it.
func AllowCIDR(addresses string, ports ...Ports) NetworkOption {
	return func(c *gateway.Config) {
		var all gateway.Ports
		for _, p := range ports {
			all.Add(p.of)
		}
		c.AllowCIDR(addresses, all)
	}
}

// Ports is ports of a protocol, or ping, which has none.
type Ports struct{ of gateway.Ports }

// TCP returns ports of TCP, 1 to 65535, or all without any, as TCPRange.
func TCP(ports ...int) Ports {
	if len(ports) == 0 {
		return TCPRange(gateway.AllPorts.First, gateway.AllPorts.Last)
	}
	return Ports{gateway.Ports{TCP: gateway.Spans(ports...)}}
}

// TCPRange returns the ports of TCP from the first to the last. A network whose options list more
// than 200 different ports, with those of UDP, takes a kernel with nft_tproxy (CONFIG_NFT_TPROXY),
// as distributions have it; without that, its runs fail with an *OptionError. No further privilege
// is needed.
func TCPRange(first, last int) Ports {
	return Ports{gateway.Ports{TCP: []gateway.Span{{First: first, Last: last}}}}
}

// UDP returns ports of UDP, 1 to 65535, or all without any, as UDPRange. QUIC, which is HTTP/3,
// takes UDP(443).
func UDP(ports ...int) Ports {
	if len(ports) == 0 {
		return UDPRange(gateway.AllPorts.First, gateway.AllPorts.Last)
	}
	return Ports{gateway.Ports{UDP: gateway.Spans(ports...)}}
}

// UDPRange returns the ports of UDP from the first to the last, with the limit of TCPRange.
func UDPRange(first, last int) Ports {
	return Ports{gateway.Ports{UDP: []gateway.Span{{First: first, Last: last}}}}
}

// Ping lets runs ping a host or addresses: it passes echo requests (ICMP, ICMPv6) on and echo
// replies back, at most 100 a second of each run. Programs in a run need no capability for it, as
// they may have ICMP sockets of SOCK_DGRAM: icmp(7). This process must be allowed such a socket, by
// net.ipv4.ping_group_range, or a raw one, by CAP_NET_RAW; else runs fail with an *OptionError.
func Ping() Ports { return Ports{gateway.Ports{Ping: true}} }

// Bandwidth limits what the runs of the network send to the outside and get from there, by TCP and
// UDP and also through WithPublish, to so many bytes per second each way, for all of them together
// and within a tenth. Their connections take turns, and leave half to datagrams, if there are such.
// Not limited is what runs send each other, which the kernel forwards. 0 is no limit, the default.
func Bandwidth(bytesPerSecond int64) NetworkOption {
	return func(c *gateway.Config) { c.Bandwidth = bytesPerSecond }
}

// RunBandwidth is Bandwidth for each run by itself. With both, each holds.
func RunBandwidth(bytesPerSecond int64) NetworkOption {
	return func(c *gateway.Config) { c.RunBandwidth = bytesPerSecond }
}

// MaxNewConns sets how many connections each run of the network may begin in a second, and as many
// that come in to it, 1 to 1000000. More are reset. It may begin the connections of one second at
// once. Default: 1000.
func MaxNewConns(perSecond int) NetworkOption {
	return func(c *gateway.Config) { c.MaxNewConns = perSecond }
}
