//go:build linux

package runs

import (
	"net"
	"os"
	"strings"
)

// HasIPv6 reports whether runs on private networks have it.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// Over takes an address apart that may have a network before it, as "tcp6/db:80".
func Over(network, at string) (string, string) {
	if n, rest, given := strings.Cut(at, "/"); given {
		return n, rest
	}
	return network, at
}

// Dial connects to an address for Over.
func Dial(protocol, at string) (net.Conn, error) {
	network, at := Over(protocol, at)
	return net.Dial(network, at)
}

// OverEach returns an address for Over with each network over which runs on private networks reach
// others: "tcp4/db:80" and, if they have IPv6, "tcp6/db:80".
func OverEach(protocol, at string) []string {
	list := []string{protocol + "4/" + at}
	if HasIPv6() {
		list = append(list, protocol+"6/"+at)
	}
	return list
}
