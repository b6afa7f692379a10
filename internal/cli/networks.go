package cli

// The values of flags that say what a run reaches, and what reaches it.

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/cellkit/sandbox"
)

func network(s *settings, value string) error {
	for _, n := range []sandbox.Network{sandbox.NetworkNone, sandbox.NetworkNew, sandbox.NetworkHost} {
		if value == n.String() {
			s.net = value
			s.add(sandbox.WithNetwork(n))
			if n == sandbox.NetworkHost {
				s.cell = append(s.cell, sandbox.CellNetwork(n))
			}
			return nil
		}
	}
	return fmt.Errorf("%q is neither none nor new nor host", value)
}

func allow(s *settings, value string) error {
	o, err := ParseAllow(value)
	if err == nil {
		s.private = append(s.private, o)
	}
	return err
}

// ParseAllow parses a name or addresses with ports, the value of -allow.
func ParseAllow(value string) (sandbox.NetworkOption, error) {
	i := strings.LastIndexByte(value, ':')
	if i < 0 {
		return nil, fmt.Errorf("%q names no port: it must be like api.example.org:443 or 10.2.0.0/16:5432", value)
	}
	host := strings.TrimSuffix(strings.TrimPrefix(value[:i], "["), "]")
	var ports []sandbox.Ports
	for text := range strings.SplitSeq(value[i+1:], ",") {
		p, err := allowedPorts(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %q is no port, nor 8000-8100, nor * for all, nor ping", value, text)
		}
		ports = append(ports, p)
	}
	if addr, _, _ := strings.Cut(host, "/"); isAddress(addr) {
		return sandbox.AllowCIDR(host, ports...), nil
	}
	return sandbox.AllowHost(host, ports...), nil
}

// allowedPorts parses a port or a range of them, all, or ping.
func allowedPorts(text string) (sandbox.Ports, error) {
	if text == "ping" {
		return sandbox.Ping(), nil
	}
	numbers, overUDP := strings.CutSuffix(text, "/udp")
	if numbers == "*" {
		numbers = "1-65535"
	}
	from, to, isRange := strings.Cut(numbers, "-")
	if !isRange {
		to = from
	}
	first, err := strconv.Atoi(from)
	last, lastErr := strconv.Atoi(to)
	if overUDP {
		return sandbox.UDPRange(first, last), errors.Join(err, lastErr)
	}
	return sandbox.TCPRange(first, last), errors.Join(err, lastErr)
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

func publish(s *settings, value string) error {
	i := strings.LastIndexByte(value, ':')
	text, protocol, given := strings.Cut(value[i+1:], "/")
	port, err := strconv.Atoi(text)
	if i < 0 || err != nil {
		return fmt.Errorf("%q must be like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp", value)
	}
	at := value[:i]
	if !strings.Contains(at, ":") {
		at = "127.0.0.1:" + at
	}
	if given {
		at += "/" + protocol
	}
	s.publish = true
	s.add(sandbox.WithPublish(at, port))
	return nil
}
