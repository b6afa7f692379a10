//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// ready is how long a peer may take until its network is there.
const ready = 10 * time.Second

// networkPeer is another way between a network namespace and its host.
type networkPeer struct {
	name  string
	start func(exe string, port int) (*client, string, error)
}

// peers adds other ways between a network namespace and its host, as far as this machine has them.
func peers(exe string, port int, add func(name, address string, c *client, err error)) {
	if os.Geteuid() != 0 {
		progress("left out: other ways out of a network namespace, which take root here")
		return
	}
	install("iproute2", "nftables", "passt", "slirp4netns")
	for _, p := range append([]networkPeer{{"a bridge, veth and masquerade, as Docker's", bridge}, {"pasta", pasta}, {"slirp4netns", slirp}}, morePeers()...) {
		c, address, err := p.start(exe, port)
		for end := time.Now().Add(ready); err == nil; {
			if _, err = c.took("first", address); err == nil || time.Now().After(end) {
				break
			}
			err = nil
			time.Sleep(ready / 50)
		}
		add("out, "+p.name, address, c, err)
	}
}

// inNetns starts this program as a client in a network namespace of its own.
func inNetns(exe string) (*client, error) {
	c, err := outside("unshare", "--net", exe, "client")
	if err != nil {
		return nil, err
	}
	_, err = c.ask("first", "nowhere") // whatever it says, it is there
	return c, err
}

// script executes commands of a shell.
func script(format string, args ...any) error {
	out, err := exec.Command("sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// bridge has a namespace in the place of the host, with the server, a bridge and its rules, so that
// nothing is changed outside of it.
func bridge(exe string, _ int) (*client, string, error) {
	host, err := outside("unshare", "--net", "sh", "-ec", `ip link set lo up
		ip link add br0 type bridge && ip address add 10.88.0.1/16 dev br0 && ip link set br0 up
		nft add table ip nat && nft add chain ip nat post '{ type nat hook postrouting priority 100; }'
		nft add rule ip nat post ip saddr 10.88.0.0/16 oifname != br0 masquerade
		exec "$0" server 10.88.0.1:0`, exe)
	if err != nil {
		return nil, "", err
	}
	port, err := host.line()
	if err != nil {
		return nil, "", err
	}
	c, err := inNetns(exe)
	if err != nil {
		return nil, "", err
	}
	err = script(`nsenter -t %[1]d -n ip link add port0 master br0 type veth peer name eth0 netns %[2]d
		nsenter -t %[1]d -n ip link set port0 up
		nsenter -t %[2]d -n ip address add 10.88.0.2/16 dev eth0
		nsenter -t %[2]d -n ip link set eth0 up`, host.pid, c.pid)
	return c, "10.88.0.1:" + port, err
}

func pasta(exe string, port int) (*client, string, error) {
	c, err := outside("pasta", "--quiet", "--runas", "0", "--config-net", "-4", "-a", "10.0.2.15", "-n", "255.255.255.0", "-g", "10.0.2.2", "--", exe, "client")
	return c, fmt.Sprint("10.0.2.2:", port), err
}

func slirp(exe string, port int) (*client, string, error) {
	c, err := inNetns(exe)
	if err != nil {
		return nil, "", err
	}
	_, err = outside("slirp4netns", "--configure", "--mtu=65520", fmt.Sprint(c.pid), "tap0")
	return c, fmt.Sprint("10.0.2.2:", port), err
}
