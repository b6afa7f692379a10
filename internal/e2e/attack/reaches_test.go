//go:build linux

package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-answer", answerAll)
	testkit.AddHelper("private-tryall", tryAll)
}

// answerAll answers over TCP at ports 80 and 40000 and over UDP at 99, and prints its address.
func answerAll([]string) error {
	for _, port := range []int{80, 40000} {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "x")
				conn.Close()
			}
		}()
	}
	udp, err := net.ListenPacket("udp", ":99")
	if err != nil {
		return err
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	own, err := eth0.Addrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		fmt.Print(a.(*net.IPNet).IP, " ")
	}
	fmt.Println()
	b := make([]byte, 100)
	for {
		n, from, err := udp.ReadFrom(b)
		if err == nil {
			_, _ = udp.WriteTo(b[:n], from)
		}
	}
}

// tryAll prints the ways in which it gets an answer of the first addresses, one of IPv4 or one of
// both. The others are those of neighbours, as which it speaks, or through which it goes.
func tryAll(args []string) error {
	victim := netip.MustParseAddr(strings.Fields(args[0])[0])
	ways := map[string]func() error{
		"tcp":       func() error { return overTCP(victim, 80, nil) },
		"tcp-above": func() error { return overTCP(victim, 40000, nil) },
		"udp":       func() error { return sent(unix.IPPROTO_UDP, victim, 99, "hello", nil) },
		"ping":      func() error { return sent(unix.IPPROTO_ICMP, victim, 0, "\x08\x00\x00\x00\x00\x00\x00\x01", nil) },
	}
	others := []string{"198.18.0.1", "fde0:6be0:7e22::c613:0"}
	for _, other := range args[1:] {
		others = append(others, strings.Fields(other)...)
	}
	if _, six, has := strings.Cut(args[0], " "); has {
		victim6 := netip.MustParseAddr(six)
		ways["tcp6"] = func() error { return overTCP(victim6, 80, nil) }
		ways["tcp6-above"] = func() error { return overTCP(victim6, 40000, nil) }
		ways["udp6"] = func() error { return sent(unix.IPPROTO_UDP, victim6, 99, "hello", nil) }
		ways["ping6"] = func() error {
			return sent(unix.IPPROTO_ICMPV6, victim6, 0, "\x80\x00\x00\x00\x00\x00\x00\x01", nil)
		}
		for i, other := range others {
			if as := netip.MustParseAddr(other); as.Is6() {
				ways[fmt.Sprint("as6-", i)] = func() error {
					return overTCP(victim6, 80, func(s int) error {
						_ = unix.SetsockoptInt(s, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
						return unix.Bind(s, &unix.SockaddrInet6{Addr: as.As16()})
					})
				}
			}
		}
	}
	for i, other := range others {
		via := netip.MustParseAddr(other)
		if via.Is6() {
			continue
		}
		hop := victim.As4()
		// Loose source route: RFC 791.
		route := string(append([]byte{131, 7, 4}, hop[:]...)) + "\x00"
		ways[fmt.Sprint("routed", i)] = func() error {
			return sent(unix.IPPROTO_UDP, via, 99, "hello", func(s int) error { return unix.SetsockoptString(s, unix.SOL_IP, unix.IP_OPTIONS, route) })
		}
		ways[fmt.Sprint("as", i)] = func() error {
			return overTCP(victim, 80, func(s int) error {
				_ = unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_FREEBIND, 1)
				return unix.Bind(s, &unix.SockaddrInet4{Addr: via.As4()})
			})
		}
	}
	got := make(chan string)
	for name, try := range ways {
		go func() {
			if try() != nil {
				name = ""
			}
			got <- name
		}()
	}
	var all []string
	for range ways {
		all = append(all, <-got)
	}
	slices.Sort(all)
	fmt.Print(strings.Join(all, " "))
	return nil
}

// answerTime is how long an answer may take, where there is to be none. The control has as much.
const answerTime = 2 * time.Second

func overTCP(to netip.Addr, port int, prepare func(s int) error) error {
	return answers(unix.SOCK_STREAM, 0, to, port, "", prepare)
}

func sent(protocol int, to netip.Addr, port int, text string, prepare func(s int) error) error {
	return answers(unix.SOCK_DGRAM, protocol, to, port, text, prepare)
}

// answers succeeds if anything comes back.
func answers(kind, protocol int, to netip.Addr, port int, text string, prepare func(s int) error) error {
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: to.As16()})
	if to.Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: to.As4()}
	}
	s, err := unix.Socket(family, kind, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if prepare != nil {
		if err := prepare(s); err != nil {
			return err
		}
	}
	wait := unix.NsecToTimeval(int64(answerTime))
	err = errors.Join(unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait), unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err == nil {
		err = unix.Connect(s, at)
	}
	if err == nil && text != "" {
		_, err = unix.Write(s, []byte(text))
	}
	if err != nil {
		return err
	}
	n, err := unix.Read(s, make([]byte, 100))
	if err == nil && n == 0 {
		err = io.EOF
	}
	return err
}

// answering starts a run that answers in all ways, and returns its address.
func answering(t *testing.T, place sandbox.Network) string {
	r, w := io.Pipe()
	runs.Start(t, runs.Helper("private-answer").With(sandbox.WithNetwork(place), sandbox.WithStdout(w)))
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

// A run reaches none but those that Reaches names, in no way, and whom it may only answer, not by
// asking.
func TestAttackRootlessPrivateReaches(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	db := answering(t, n.As("db", sandbox.Reaches()))
	victim := answering(t, n.As("victim", sandbox.Reaches("answerer")))
	var running sync.WaitGroup
	for place, want := range map[sandbox.Network]string{
		n.As("control"):                         "ping tcp tcp-above udp",
		n.As("attacker", sandbox.Reaches("db")): "",
		n.As("nobody", sandbox.Reaches()):       "",
		// As docs/PRIVATE_NETWORKS.md says.
		n.As("answerer", sandbox.Reaches("db")):   "ping tcp-above",
		n.As("friend", sandbox.Reaches("victim")): "ping tcp tcp-above udp",
	} {
		running.Go(func() {
			s := runs.Helper("private-tryall", victim, db).With(sandbox.WithNetwork(place), sandbox.WithUser(0, 0), sandbox.WithoutSeccomp())
			got, err := s.Output(testkit.Deadline(t))
			assert.NoError(t, err)
			ways := strings.Fields(want)
			if runs.HasIPv6() {
				ways = append(ways, strings.Fields(strings.NewReplacer("ping", "ping6", "tcp", "tcp6", "udp", "udp6").Replace(want))...)
			}
			slices.Sort(ways)
			assert.Equal(t, strings.Join(ways, " "), strings.TrimSpace(string(got)), place)
		})
	}
	running.Wait()
}
