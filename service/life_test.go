//go:build linux

package service_test

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// takeAny returns what somebody gets who asks for any port, where there is no other than that one:
// IP_LOCAL_PORT_RANGE, of Linux 6.3.
func takeAny(t *testing.T, addr string) error {
	port := testAddr(t, addr).Port
	only := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		require.NoError(t, c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, port<<16|port)
		}))
		return err
	}}
	l, err := only.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	return err
}

func testAddr(t *testing.T, addr string) *net.TCPAddr {
	a, err := net.ResolveTCPAddr("tcp", addr)
	require.NoError(t, err)
	return a
}

// While a service waits to be restarted, nothing listens at its address, and nobody gets the port.
func TestRootlessPortHeld(t *testing.T) {
	testkit.Need(t, "ranges of ports by socket")
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	waits, goOn := make(chan struct{}), make(chan struct{})
	i, err := service.New("x", python(hello), service.Port(7), service.Restart(1), service.Observe(func(e service.Event) {
		if e.State == service.Waiting {
			close(waits)
			<-goOn
		}
	})).Start(ctx)
	require.NoError(t, err)
	defer i.Close()
	addr := i.Addr(7)
	require.NoError(t, i.Process().Kill())
	<-waits
	_, err = net.Dial("tcp", addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.ErrorIs(t, takeAny(t, addr), syscall.EADDRINUSE)
	close(goOn)
	testkit.Eventually(t, "the service to run again", func() bool { return i.State() == service.Running })
	require.Equal(t, addr, i.Addr(7))
	require.Equal(t, "hello", testkit.Ask(t, addr))
	require.NoError(t, i.Close())
	// The control: afterwards anybody gets it, once what was connected there is forgotten.
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// However services end, nothing of them is left in this process, even if nobody calls Close.
func TestRootlessServiceLeavesNothing(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	deaf := service.New("deaf", sh("trap '' TERM; echo ready; while :; do sleep 1000; done", sandbox.WithStopSignal(syscall.SIGTERM, 50*time.Millisecond)), service.Port(7), service.Ready(service.Log("ready")))
	fails := service.New("fails", sh("exit 1"), service.Port(7), service.Restart(1), service.After("deaf"))
	round := func() {
		_, err := fails.Start(ctx)
		require.Error(t, err)
		_, err = service.StartAll(ctx, deaf, fails)
		require.ErrorContains(t, err, "service fails: ")
		_, err = service.New("x", sandbox.New(sandbox.WithCommand("no-such-program")), service.Port(7)).Start(ctx)
		require.ErrorIs(t, err, os.ErrNotExist)
		short, cancel := context.WithCancel(ctx)
		i, err := deaf.Start(short)
		require.NoError(t, err)
		cancel()
		<-i.Ended()
		i, err = service.New("x", sh("echo ready; sleep 0.3; exit 1"), service.Ready(service.Log("ready"))).Start(ctx)
		if err == nil { // else it has ended before that was seen
			<-i.Ended()
		}
		i, err = service.New("x", sh("echo ready; sleep 0.05; exit 1"), service.Port(7), service.Scale(2), service.Ready(service.Log("ready"))).Start(ctx)
		if err == nil { // else one has ended before the other was ready
			<-i.Ended()
		}
		g, err := service.StartAll(ctx, deaf)
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { _ = g.Close() })
			all.Go(func() { _ = g.Service("deaf").Close() })
		}
		all.Wait()
	}
	round() // what the process has once for all runs is there then
	before := testkit.TakeInventory()
	round()
	require.Empty(t, before.AwaitNothingAdded(10*time.Second))
}

// A run reaches services of one group; of others there is an error, rather than the last alone.
func TestRootlessReachSeveral(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	one, err := service.New("client", python(hello), service.Port(7)).Start(ctx)
	require.NoError(t, err)
	defer one.Close()
	two, err := service.New("two", sh("exec sleep 1000")).Start(ctx)
	require.NoError(t, err)
	defer two.Close()
	_, err = sandbox.New(sandbox.WithCommand("true"), one.Reach(), two.Reach()).Run(ctx)
	require.ErrorContains(t, err, "Instance.Reach: two is on another network than client: ")
	require.ErrorAs(t, err, new(*sandbox.OptionError))
	// The run has a name of its own: that of the service leads to that alone.
	out, err := sandbox.New(sandbox.WithCommand("python3", "-c", "import socket; print(len(socket.gethostbyname_ex('client')[2]))"), one.Reach()).CombinedOutput(ctx)
	require.NoError(t, err, "%s", out)
	require.Equal(t, "1", strings.TrimSpace(string(out)))
}
