//go:build linux

package run_test

import (
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/testkit"
)

// A run that is tried on a network after that was closed has nobody remember it.
func TestRootlessClosedNetwork(t *testing.T) {
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	s := made(sandbox.WithCommand("true"), sandbox.WithNetwork(n.As("x")))
	require.NoError(t, runOnce(testkit.Deadline(t), s))
	require.Equal(t, 1, engine.Networks())
	engine.CloseNetwork(s.Spec.Place.Member.Of.(*gateway.Network))
	require.ErrorContains(t, runOnce(testkit.Deadline(t), s), "the network was closed")
	require.Zero(t, engine.Networks())
}

// within returns how many goroutines are in a function.
func within(t *testing.T, function string) int {
	var all strings.Builder
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&all, 2))
	return strings.Count(all.String(), function+"(")
}

// serving returns how many gateways serve runs.
func serving(t *testing.T) int { return within(t, "gateway.(*gateway).serveNames") }

// above returns the processes between a run and this one, the fork server among them.
func above(t *testing.T, pid int) (pids []int) {
	for pid = testkit.Parent(t, pid); pid != os.Getpid() && pid != 0; pid = testkit.Parent(t, pid) {
		pids = append(pids, pid)
	}
	return pids
}

// A gateway ends with its cell, also if nobody starts or ends anything after that.
func TestGatewayOfLostCell(t *testing.T) {
	testkit.Need(t, "root") // the fork server of an ordinary user has another id
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	defer c.Close()
	s := made(sandbox.WithCommand("sleep", "1000"), sandbox.WithNetwork(n.As("x")), sandbox.WithCell(c))
	defer engine.CloseNetwork(s.Spec.Place.Member.Of.(*gateway.Network))
	r, err := s.Start(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, 1, serving(t))
	for _, pid := range above(t, r.PID()) {
		_ = unix.Kill(pid, unix.SIGKILL) // most have gone with the first
	}
	_, err = r.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	testkit.Eventually(t, "the gateway has ended", func() bool { return serving(t) == 0 })
}

// Runs of one cell join a network while those of another, whose fork server is stuck, can't.
func TestJoinBesideStuckCell(t *testing.T) {
	testkit.Need(t, "root") // the fork server of an ordinary user has another id
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	var each []*run.Sandbox
	var stuck []int
	for range 2 {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		defer c.Close()
		s := made(sandbox.WithCommand("sleep", "1000"), sandbox.WithNetwork(n.As("x")), sandbox.WithCell(c))
		r, err := s.Start(testkit.Deadline(t))
		require.NoError(t, err)
		defer func() { _ = r.Kill() }()
		stuck = above(t, r.PID())
		each = append(each, derive(s, sandbox.WithCommand("true")))
	}
	defer engine.CloseNetwork(each[0].Spec.Place.Member.Of.(*gateway.Network))
	signal := func(s unix.Signal) {
		for _, pid := range stuck {
			require.NoError(t, unix.Kill(pid, s))
		}
	}
	signal(unix.SIGSTOP)
	defer signal(unix.SIGCONT)
	late, soon := make(chan error, 1), make(chan error, 1)
	go func() { late <- runOnce(testkit.Deadline(t), each[1]) }()
	testkit.Eventually(t, "the other's run waits", func() bool { return within(t, "gateway.newNamespace") == 1 })
	go func() { soon <- runOnce(testkit.Deadline(t), each[0]) }()
	select {
	case err := <-soon:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Error("it waits as well")
	}
	signal(unix.SIGCONT)
	require.NoError(t, <-late)
}
