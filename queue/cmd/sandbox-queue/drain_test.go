//go:build linux

package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// working is sandbox-queue work as a process.
type working struct {
	*exec.Cmd
	log *bufio.Reader
}

func startWork(t *testing.T, args ...string) *working {
	t.Helper()
	w := &working{Cmd: testkit.HelperCommand(testkit.Deadline(t), "sandbox-queue", append([]string{"work"}, args...)...)}
	w.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := w.StderrPipe()
	require.NoError(t, err)
	w.log = bufio.NewReader(log)
	require.NoError(t, w.Start())
	t.Cleanup(func() { _ = w.Process.Kill() }) // or it has ended
	return w
}

// says reads what it logs up to a line with a text.
func (w *working) says(t *testing.T, what string) string {
	t.Helper()
	for all := ""; ; {
		line, err := w.log.ReadString('\n')
		require.NoError(t, err, "%s: it did not say %q", all, what)
		if all += line; strings.Contains(line, what) {
			return line
		}
	}
}

// ends requires that it exits with 0.
func (w *working) ends(t *testing.T) {
	t.Helper()
	for line, err := w.log.ReadString('\n'); err == nil; line, err = w.log.ReadString('\n') {
		t.Log(line)
	}
	require.NoError(t, w.Wait())
}

// At the first signal a worker is drained, and says how to end it at once, which the second one
// does; without -drain the first one does. What is ignored stays so.
func TestWorkDrains(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	submit := func(command ...string) string {
		id, err := q.Submit(testkit.Deadline(t), queue.Task{Command: command, Retry: queue.Retry{Attempts: 1}})
		require.NoError(t, err)
		return id
	}
	await := func(id string, state queue.State) (s queue.Status) {
		t.Helper()
		testkit.Eventually(t, id+": "+state.String(), func() bool {
			time.Sleep(20 * time.Millisecond)
			var err error
			s, err = q.Status(testkit.Deadline(t), id)
			require.NoError(t, err)
			return s.State == state
		})
		return s
	}
	cancel := func(id string) {
		t.Helper()
		won, err := q.Cancel(testkit.Deadline(t), id, "enough")
		require.NoError(t, err)
		require.True(t, won)
	}

	// It waits for all that runs.
	w := startWork(t, "-drain", "1h", "-slots", "2")
	says := []string{"sh", "-c", "echo begun; exec sleep 1000"}
	one, two := submit(says...), submit(says...)
	for _, id := range []string{one, two} {
		for _, err := range q.Logs(testkit.Deadline(t), id, 0) {
			require.NoError(t, err)
			break // its command runs
		}
	}
	require.NoError(t, syscall.Kill(-w.Process.Pid, syscall.SIGINT)) // as Ctrl-C does
	require.Contains(t, w.says(t, "takes no more tasks"), "running=2 up_to=1h0m0s")
	w.says(t, "another SIGTERM, SIGINT or SIGHUP ends at once what still runs")
	cancel(one)
	w.says(t, one)
	testkit.Eventually(t, "workers shows it", func() bool {
		time.Sleep(20 * time.Millisecond)
		var out bytes.Buffer
		require.Zero(t, run(testkit.Deadline(t), []string{"workers"}, nil, &out, os.Stderr))
		return strings.Contains(out.String(), "  draining  ")
	})
	left := submit("sleep", "1000")
	require.Equal(t, 1, await(two, queue.Running).Attempt)
	cancel(two)
	w.ends(t)
	require.Zero(t, await(left, queue.Waiting).Attempt)

	// Or until the second signal.
	w = startWork(t, "-drain", "1h", "-json")
	await(left, queue.Running)
	require.NoError(t, w.Process.Signal(syscall.SIGTERM))
	w.says(t, "another SIGTERM, SIGINT or SIGHUP ends at once what still runs")
	require.NoError(t, w.Process.Signal(syscall.SIGHUP))
	w.ends(t)
	require.Equal(t, 1, await(left, queue.Waiting).Attempt)

	// Or until the time is over.
	w = startWork(t, "-drain", "100ms")
	await(left, queue.Running)
	require.NoError(t, w.Process.Signal(syscall.SIGTERM))
	w.ends(t)
	require.Equal(t, 2, await(left, queue.Waiting).Attempt)

	w = startWork(t)
	await(left, queue.Running)
	require.NoError(t, w.Process.Signal(syscall.SIGHUP))
	w.ends(t)
	require.Equal(t, 3, await(left, queue.Waiting).Attempt)

	signal.Ignore(syscall.SIGHUP) // as nohup does, for what it starts
	w = startWork(t)
	signal.Reset(syscall.SIGHUP)
	await(left, queue.Running)
	require.NoError(t, w.Process.Signal(syscall.SIGHUP))
	_, err = q.Wait(testkit.Deadline(t), submit("true"))
	require.NoError(t, err)
	cancel(left)
	require.NoError(t, w.Process.Signal(syscall.SIGTERM))
	w.ends(t)
}
