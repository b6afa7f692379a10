//go:build linux

package attack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-link", runLink) }

// The addresses at the ends of a plain link, and of nobody's neighbour.
var (
	linkAttacker  = []string{"198.18.0.3/16", "198.19.0.3/16", "fde0:6be0:7e22::c612:3/64"}
	linkVictim    = []string{"198.18.0.2/16", "198.19.0.2/16", "fde0:6be0:7e22::c612:2/64"}
	linkNeighbour = []string{"198.18.0.4/16", "198.19.0.4/16", "fde0:6be0:7e22::c612:4/64"}
)

// onPlainLink is the control of attacks by what is sent. It runs two helpers with all powers, each
// in a network namespace of its own with one end of a veth, and no gateway between; the attacker,
// once the victim has printed a line. It returns the other lines of both.
func onPlainLink(t *testing.T, victim, attacker string, args ...string) *bufio.Scanner {
	t.Helper()
	hosts := ""
	for name, own := range map[string][]string{"attacker": linkAttacker, "victim": linkVictim, "neighbour": linkNeighbour} {
		for _, at := range []string{own[0], own[2]} {
			hosts += strings.Split(at, "/")[0] + " " + name + "\n"
		}
	}
	file := filepath.Join(t.TempDir(), "hosts")
	require.NoError(t, os.WriteFile(file, []byte(hosts), 0o644))
	cmd := testkit.HelperCommand(testkit.Deadline(t), "private-link", append([]string{file, victim, attacker}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its first process, and so all
		_ = cmd.Wait()
	})
	return bufio.NewScanner(out)
}

// runLink makes the two ends and runs a helper at each. A child is in the namespace of the thread
// that starts it.
func runLink(args []string) error {
	runtime.LockOSThread()
	if err := unix.Mount(args[0], "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	there, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	enter := func(ns *os.File) error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) }
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", Index: 64}, PeerName: "eth0", PeerNamespace: netlink.NsFd(there.Fd())}
	if err := errors.Join(enter(here), netlink.LinkAdd(veth), addEnd(linkAttacker), enter(there), addEnd(linkVictim), awaitUp(), enter(here), awaitUp(), enter(there)); err != nil {
		return err
	}
	hears := testkit.HelperCommand(context.Background(), args[1])
	hears.Stderr = os.Stderr
	heard, err := hears.StdoutPipe()
	if err == nil {
		err = hears.Start()
	}
	if err != nil {
		return err
	}
	lines := bufio.NewReader(heard)
	if _, err := lines.ReadString('\n'); err != nil {
		return err
	}
	says := testkit.HelperCommand(context.Background(), args[2], args[3:]...)
	says.Stdout, says.Stderr = os.Stdout, os.Stderr
	if err := errors.Join(enter(here), says.Run()); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, lines)
	return errors.Join(err, hears.Wait())
}

// awaitUp waits until the kernel has noticed that the other end is up.
func awaitUp() error {
	for end := time.Now().Add(testkit.Patience / 2); time.Now().Before(end); time.Sleep(time.Millisecond) {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil || eth0.Attrs().OperState == netlink.OperUp {
			return err
		}
	}
	return errors.New("the link does not come up")
}

// addEnd gives eth0 its addresses. All others are on the link too, as one is taken for another's
// only from where that would be reached (rp_filter). Go uses IPv6 only if the loopback has it.
func addEnd(own []string) error {
	lo, loErr := netlink.LinkByName("lo")
	eth0, err := netlink.LinkByName("eth0")
	if err = errors.Join(loErr, err); err == nil {
		err = errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(eth0))
	}
	if err != nil {
		return err
	}
	for _, at := range own {
		ip, prefix, err := net.ParseCIDR(at)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: prefix.Mask}, Flags: unix.IFA_F_NODAD}
		if a.IP.To4() == nil && !runs.HasIPv6() {
			continue
		}
		if err := netlink.AddrAdd(eth0, a); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK})
}
