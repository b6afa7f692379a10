//go:build linux

package attack

import (
	"bufio"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// echoing is a run that answers each line, as long as nothing disturbs it.
type echoing struct {
	in  *os.File
	out *bufio.Reader
}

func startEchoing(t *testing.T) *echoing {
	childIn, in, err := os.Pipe()
	require.NoError(t, err)
	out, childOut, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { in.Close(); out.Close() })
	runs.Start(t, sandbox.New(sandbox.WithCommand("cat"), sandbox.WithStdin(childIn), sandbox.WithStdout(childOut)))
	childIn.Close()
	childOut.Close()
	return &echoing{in, bufio.NewReader(out)}
}

func (e *echoing) requireAlive(t *testing.T) {
	t.Helper()
	word := testkit.ALongTime() + "\n"
	_, err := e.in.WriteString(word)
	require.NoError(t, err)
	answer, err := e.out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, word, answer)
}

// The bomb tests here run alone on the machine: time stops most of the bombs.

// Bombs in prepared runs are stopped by the same limits as in fresh ones. The prepared runs that
// wait beside them, and one that is active, notice nothing.
func TestAttackBombsPrepared(t *testing.T) {
	neighbour := startEchoing(t)
	for _, test := range bombTests(t) {
		t.Run(test.name, func(t *testing.T) {
			if test.needs != "" {
				testkit.Need(t, test.needs)
			}
			s := test.run.With(sandbox.WithPrepared(2))
			require.NoError(t, s.Prepare(testkit.Deadline(t)))
			test.goOff(t, s, runs.StartPrepared)
			next := []sandbox.Option{sandbox.WithCommand("echo", "fine"), sandbox.WithStdout(nil), sandbox.WithTimeout(testkit.Patience)}
			if test.needs == "CPU accounting" {
				next = append(next, sandbox.WithCPUTime(testkit.Patience))
			}
			require.Equal(t, "fine", runs.Output(t, s.With(next...)), "the next one")
			neighbour.requireAlive(t)
		})
	}
}

// Bombs in a function's process are stopped by the same limits, with the same errors. The next call
// has a process of its own.
func TestAttackBombsInFunctions(t *testing.T) {
	neighbour := startEchoing(t)
	limit := 2 * bombLimit() // the serving process needs memory before
	memory, few := sandbox.WithMemory(64*sandbox.MiB), sandbox.WithPIDs(64)
	for _, test := range []struct {
		name, needs string
		limit       sandbox.Option
		reason      sandbox.Reason
	}{
		{"memory", "cgroup memory", memory, sandbox.OutOfMemory},
		{"files in memory", "cgroup memory", memory, sandbox.OutOfMemory},
		{"pipes", "cgroup memory", memory, sandbox.OutOfMemory},
		{"sockets", "cgroup memory", memory, sandbox.OutOfMemory},
		{"threads", "cgroup pids", few, sandbox.PIDsExceeded},
		{"processes", "cgroup pids", few, sandbox.TimedOut}, // or Go's runtime finds no room for a thread
		{"stops", "", nil, sandbox.TimedOut},
		{"deaf", "", nil, sandbox.TimedOut},
		{"deep directories", "", nil, sandbox.TimedOut},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.needs != "" {
				testkit.Need(t, test.needs)
			}
			timeout := testkit.Patience
			if test.reason == sandbox.TimedOut {
				timeout = limit
			}
			workers := setOff.With(test.limit, sandbox.WithTimeout(timeout), sandbox.WithRootfs(sandbox.HostRootfs())).Workers(1)
			defer workers.Close()
			out, err := workers.Call(testkit.Deadline(t), "warm")
			require.NoError(t, err)
			require.Equal(t, "warm", out)
			began := time.Now()
			_, err = workers.Call(testkit.Deadline(t), test.name)
			reason := runs.ExitError(t, err).Reason
			require.True(t, reason == test.reason || test.name == "processes" && reason == sandbox.PIDsExceeded, "%v", err)
			require.Less(t, time.Since(began), testkit.Patience/2)
			ctx, cancel := context.WithTimeout(testkit.Deadline(t), testkit.Patience)
			defer cancel()
			out, err = workers.Call(ctx, "fine")
			require.NoError(t, err)
			require.Equal(t, "fine", out)
			neighbour.requireAlive(t)
		})
	}
}
