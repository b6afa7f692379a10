//go:build linux && peers

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"golang.org/x/sys/unix"
)

func morePeers() []networkPeer {
	return []networkPeer{{"gvisor-tap-vsock's library in this process", gvisorTap}}
}

// gvisorTap has a stack of TCP/IP in this process, at a tap device of the client's namespace.
func gvisorTap(exe string, port int) (*client, string, error) {
	c, err := inNetns(exe)
	if err != nil {
		return nil, "", err
	}
	const mtu, host = 65520, "10.0.2.254"
	n, err := virtualnetwork.New(&types.Configuration{MTU: mtu, Subnet: "10.0.2.0/24", GatewayIP: "10.0.2.2", GatewayMacAddress: "02:00:00:00:00:01",
		GatewayVirtualIPs: []string{host}, NAT: map[string]string{host: "127.0.0.1"}})
	if err != nil {
		return nil, "", err
	}
	f, err := tapIn(c.pid, "tap0")
	if err != nil {
		return nil, "", err
	}
	go func() { _ = n.AcceptBess(context.Background(), frames{f}) }()
	err = script(`nsenter -t %[1]d -n ip address add 10.0.2.15/24 dev tap0
		nsenter -t %[1]d -n ip link set tap0 mtu %[2]d up`, c.pid, mtu)
	return c, fmt.Sprint(host, ":", port), err
}

// tapIn makes a tap device in the network namespace of a process.
func tapIn(pid int, name string) (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread, which is in that namespace, ends with this goroutine
		f, err = tapThere(pid, name)
	}()
	<-done
	return f, err
}

func tapThere(pid int, name string) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// frames is a tap device as a connection, of which each read and write is a frame.
type frames struct{ *os.File }

func (frames) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "tap"} }
func (frames) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "tap"} }
