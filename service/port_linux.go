package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reserve returns an address of the loopback with a port that is free, and what keeps it until it
// is closed: a socket that is bound but does not listen. The kernel gives such a port to nobody who
// asks for any (inet_csk_find_open_port, __inet_hash_connect), and lets one that sets SO_REUSEADDR,
// as package net does, listen there.
func reserve() (addr string, keep io.Closer, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "port")
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		f.Close()
		return "", nil, fmt.Errorf("finding a free port: %w", err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port)), f, nil
}

var errNobody = errors.New("nothing listens there")

// maxSockets bounds what is read of a table of sockets. Those that listen come first.
const maxSockets = 1 << 20

// listens returns nil if something listens on one of the ports, for others to reach, in the network
// namespace of the process.
func listens(pid int, ports ...int) error {
	wanted := make(map[int]bool, len(ports))
	for _, port := range ports {
		wanted[port] = true
	}
	found := errNobody
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6, or it has ended
		}
		if err != nil {
			return err
		}
		err = inTable(io.LimitReader(f, maxSockets), wanted)
		f.Close()
		if err == nil {
			return nil
		}
		if err != errNobody {
			found = err
		}
	}
	return found
}

// inTable looks for a listener in a table of sockets: proc_net_tcp(5).
func inTable(r io.Reader, wanted map[int]bool) error {
	found := errNobody
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != "0A" { // TCP_LISTEN
			continue
		}
		address, p, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(p, 16, 16); err != nil || !wanted[int(n)] {
			continue
		}
		if a, ok := parseAddress(address); !ok || !a.IsLoopback() {
			return nil
		}
		found = fmt.Errorf("only its own loopback is listened on: have it listen on 0.0.0.0")
	}
	return found
}

// parseAddress parses words of 32 bits, each in the order of this machine's bytes: that of amd64
// and arm64.
func parseAddress(hex string) (netip.Addr, bool) {
	var b []byte
	for ; len(hex) >= 8; hex = hex[8:] {
		word, err := strconv.ParseUint(hex[:8], 16, 32)
		if err != nil {
			return netip.Addr{}, false
		}
		b = append(b, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
