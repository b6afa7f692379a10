//go:build linux

package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("private-flood", flood)
	testkit.AddHelper("private-noise", noise)
	testkit.AddHelper("private-ask", askFor)
}

// flood opens connections to each address in turn and keeps them, and prints how many stay open.
func flood(args []string) error {
	var held []net.Conn
	for i := range 200 {
		conn, err := runs.Dial("tcp", args[i%len(args)])
		if err == nil {
			held = append(held, conn)
		}
	}
	// For all: those that nobody accepts stay silent.
	alive, end := 0, time.Now().Add(10*time.Second)
	for _, conn := range held {
		_ = conn.SetReadDeadline(end)
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			alive++
		}
	}
	fmt.Print(alive)
	return nil
}

// holding serves connections that stay open, until the other side ends them.
func holding(t *testing.T) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go func() {
				fmt.Fprint(conn, "x")
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// A run gets as many connections as MaxConns says, whatever it tries, and takes none from others.
func TestAttackRootlessPrivateFlood(t *testing.T) {
	port := holding(t)
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.MaxConns(20))
	require.NoError(t, err)
	defer n.Close()
	control := runs.Helper("private-flood", fmt.Sprintf("127.0.0.1:%d", port)).With(sandbox.WithNetwork(sandbox.NetworkHost))
	require.Equal(t, "200", runs.Output(t, control), "the control")
	s := runs.Helper("private-flood", runs.OverEach("tcp", fmt.Sprintf("one.test:%d", port))...).With(sandbox.WithNetwork(n.As("attacker")))
	got := make(chan string)
	for range 2 {
		go func() {
			out, err := s.Output(testkit.Deadline(t))
			got <- fmt.Sprint(string(out), err)
		}()
	}
	require.Equal(t, "20<nil>", <-got)
	require.Equal(t, "20<nil>", <-got)
}

// noise sends the resolver, at each of its addresses, what is no question, over UDP and TCP. Then
// it asks for many names, and prints the address that it got for the last.
func noise(at []string) error {
	udp, err := net.Dial("udp", at[0])
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	b := make([]byte, 2000)
	for i := range 20000 {
		_, _ = random.Read(b)
		copy(b[2:], []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		_, _ = udp.Write(b[:i%len(b)])
	}
	for i := range 30 {
		conn, err := net.Dial("tcp", at[i%len(at)])
		if err != nil {
			return err
		}
		_, _ = conn.Write(b[:i]) // and stays
	}
	for i := range 2000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		_, _ = net.DefaultResolver.LookupHost(ctx, fmt.Sprintf("x%d.wild.test", i))
		cancel()
	}
	fmt.Println(net.DefaultResolver.LookupNetIP(context.Background(), "ip4", "last.wild.test"))
	time.Sleep(time.Hour) // not select: without cgo, Go ends a program that waits for nothing
	return nil
}

// resolvers returns the addresses of the networks' resolver: over IPv6 it answers TCP alone.
func resolvers() []string {
	if runs.HasIPv6() {
		return []string{"198.18.0.1:53", "[fde0:6be0:7e22::c612:1]:53"}
	}
	return []string{"198.18.0.1:53"}
}

func askFor(names []string) error {
	fmt.Println(net.DefaultResolver.LookupNetIP(context.Background(), "ip4", names[0]))
	return nil
}

// A run that troubles the resolver troubles nobody else.
func TestAttackRootlessPrivateNoise(t *testing.T) {
	n, err := sandbox.NewNetwork(sandbox.AllowHost("*.wild.test", 80))
	require.NoError(t, err)
	defer n.Close()
	r, w := io.Pipe()
	p := runs.Start(t, runs.Helper("private-noise", resolvers()...).With(sandbox.WithNetwork(n.As("attacker")), sandbox.WithStdout(w)))
	ask := runs.Helper("private-ask", "a.wild.test").With(sandbox.WithNetwork(n.As("client")))
	require.Equal(t, "[198.19.0.1] <nil>", runs.Output(t, ask))
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	require.Regexp(t, `^\[198\.19\.\d+\.\d+\] <nil>`, line)
	require.NotContains(t, line, "[198.19.0.1]", "the control: the resolver has had questions before")
	require.Equal(t, "[198.19.0.1] <nil>", runs.Output(t, ask))
	require.NoError(t, p.Kill())
	_, _ = p.Wait()
}
