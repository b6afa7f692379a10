//go:build linux

package run

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// scriptedRun returns a run whose events the test sends, and its end of the run's socket.
func scriptedRun(t *testing.T) (*clone, func(...program.Kind), int) {
	t.Helper()
	client, control, err := forkserver.NewClient()
	require.NoError(t, err)
	conn, err := client.Send(&forkserver.Request{}, nil)
	require.NoError(t, err)
	var buf, oob [128]byte
	_, n, _, _, err := unix.Recvmsg(int(control.Fd()), buf[:], oob[:], unix.MSG_CMSG_CLOEXEC)
	require.NoError(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	require.NoError(t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	require.NoError(t, err)
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	require.NoError(t, err)
	r := &clone{recipe: recipe{plan: &compile.Plan{Run: &program.Program{}}}, spec: described("true"), conn: conn}
	t.Cleanup(func() {
		require.NoError(t, unix.Close(self))
		require.NoError(t, unix.Close(fds[0]))
		require.NoError(t, conn.Close())
		require.NoError(t, control.Close())
		require.NoError(t, client.Close())
		closeFiles(slices.DeleteFunc([]*os.File{r.init, r.pidfd}, func(f *os.File) bool { return f == nil }))
	})
	return r, func(kinds ...program.Kind) {
		for _, k := range kinds {
			var rights []byte
			if k == program.Cloned {
				rights = unix.UnixRights(self)
			}
			require.NoError(t, unix.Sendmsg(fds[0], program.Event{Kind: k}.Marshal(), rights, nil, 0))
		}
	}, fds[0]
}

// TestFollow puts Cloned, the event of the fork server, at every place among the events of the run:
// it may be late.
func TestFollow(t *testing.T) {
	words := []program.Kind{program.Ready, program.Waiting}
	for at := range 3 {
		r, say, _ := scriptedRun(t)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		follow := func(until program.Kind) {
			require.NoError(t, r.under(ctx, func() error { return r.follow(ctx, until) }), "place %d, %v", at, until)
		}
		say(slices.Insert(slices.Clone(words), at, program.Cloned)...)
		follow(program.Ready)
		follow(program.Waiting)
		r.command = &program.Program{}
		say(program.Started)
		follow(program.Started)
		require.NotNil(t, r.init)
	}
}

// A command that has been handed over when its context ends is awaited for the grace of
// WithStopSignal, and is a process then, which gets the signal.
func TestFollowGrace(t *testing.T) {
	b := program.NewBuilder()
	b.Call("getpid", unix.SYS_GETPID)
	command, err := b.Program()
	require.NoError(t, err)
	for _, test := range []struct {
		grace   time.Duration
		started bool
		runEnds bool
	}{{grace: time.Minute, started: true}, {grace: 0}, {grace: time.Millisecond}, {grace: time.Minute, runEnds: true}} {
		ready, say, far := scriptedRun(t)
		r := &Run{clone: ready}
		say(program.Cloned, program.Ready, program.Waiting)
		ctx, cancel := context.WithCancelCause(context.Background())
		require.NoError(t, r.follow(ctx, program.Waiting))
		next := func() {
			_, err := unix.Read(far, make([]byte, 1<<16))
			require.NoError(t, err)
		}
		conf := described("true")
		conf.Supervision.StopGrace = test.grace
		done := make(chan error)
		go func() { done <- r.execute(ctx, conf, command) }()
		next()
		cause := errors.New("enough")
		if test.runEnds {
			cause = errRunEnds
		}
		cancel(cause)
		if test.started {
			time.Sleep(10 * time.Millisecond) // an interruption would come at once
			say(program.Started)
			require.NoError(t, <-done)
		} else {
			require.ErrorIs(t, <-done, cause, test.grace)
		}
		r.streams.Close()
	}
}

// TestFollowLiar sends events of a run too early. None takes its start further.
func TestFollowLiar(t *testing.T) {
	for _, words := range [][]program.Kind{{program.Waiting}, {program.Started}, {program.Cloned, program.Started},
		{program.Ready, program.Started}, {program.Finished}} {
		r, say, _ := scriptedRun(t)
		say(words...)
		require.ErrorContains(t, r.follow(context.Background(), program.Ready), "unexpected event", "%v", words)
	}
}

// TestFollowNoTerminal sends a terminal that nobody asked for, and one that is none.
func TestFollowNoTerminal(t *testing.T) {
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		require.NoError(t, err)
		return f
	}
	r, _, _ := scriptedRun(t)
	require.ErrorContains(t, r.adoptTerminal(open()), "unexpected event terminal")
	r.command, r.spec = &program.Program{}, described("true")
	require.ErrorContains(t, r.adoptTerminal(open()), "unexpected event terminal")
	r.spec.Command.Terminal.On = true
	require.ErrorContains(t, r.adoptTerminal(open()), "no terminal")
	require.Nil(t, r.terminal)
}

func described(argv ...string) *spec.Spec {
	c := spec.Defaults()
	c.Command.Argv = argv
	return &c
}
