//go:build linux

package cli

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// echoing is a program that reads keys one by one and shows each, as editors do.
var echoing = []string{"sh", "-c", "stty raw -echo; echo ready; exec cat"}

// BenchmarkTerminal takes turns between a plain pty and terminals of commands in sandboxes: the
// time from a key to its echo by the program there. Its figures are medians in microseconds and, as
// NAME-x, what they are of a plain pty's. script(1) too is a program between two terminals, in C.
func BenchmarkTerminal(b *testing.B) {
	b.Setenv("XDG_RUNTIME_DIR", b.TempDir())
	session, err := sandbox.New(sandbox.WithHold()).Start(b.Context())
	require.NoError(b, err)
	defer session.Close()
	inSession, err := session.Exec(b.Context(), sandbox.WithCommand(echoing[0], echoing[1:]...), sandbox.WithTerminal(24, 80))
	require.NoError(b, err)
	held := exec.Command("sandbox", "run", "-name", "bench", "-hold")
	require.NoError(b, held.Start())
	defer func() { _ = held.Process.Signal(syscall.SIGTERM); _ = held.Wait() }()
	require.Eventually(b, func() bool { return exec.Command("sandbox", "exec", "bench", "true").Run() == nil }, time.Minute, 100*time.Millisecond)

	subjects := []struct {
		name string
		end  io.ReadWriter
	}{
		{"pty", onPTY(b, echoing...)},
		{"Exec", inSession.Terminal()},
		{"script", onPTY(b, "script", "-qc", "exec "+echoing[0]+" -c '"+echoing[2]+"'", "/dev/null")},
		{"run-t", onPTY(b, append([]string{"sandbox", "run", "-t", "--"}, echoing...)...)},
		{"exec-t", onPTY(b, append([]string{"sandbox", "exec", "-t", "bench", "--"}, echoing...)...)},
	}
	key := make([]byte, 1)
	for _, s := range subjects {
		for shown := ""; !strings.Contains(shown, "ready"); shown += string(key) {
			_, err := s.end.Read(key)
			require.NoError(b, err, "%s: %s", s.name, shown)
		}
		time.Sleep(100 * time.Millisecond) // the end of the line, and cat's start
		_, err := s.end.Read(make([]byte, 100))
		require.NoError(b, err)
	}
	times := make([][]time.Duration, len(subjects))
	for b.Loop() {
		for i, s := range subjects {
			start := time.Now()
			_, err := s.end.Write([]byte{'k'})
			require.NoError(b, err)
			_, err = s.end.Read(key)
			require.NoError(b, err)
			require.Equal(b, "k", string(key))
			times[i] = append(times[i], time.Since(start))
		}
	}
	median := func(i int) float64 { slices.Sort(times[i]); return float64(times[i][len(times[i])/2]) / 1e3 }
	for i, s := range subjects {
		b.ReportMetric(median(i), s.name+"-µs")
		if i > 0 {
			b.ReportMetric(median(i)/median(0), s.name+"-x")
		}
	}
	b.ReportMetric(0, "ns/op") // the sum of all subjects means nothing
}

// onPTY starts a command on a new terminal and returns the other end of that.
func onPTY(b *testing.B, args ...string) *os.File {
	tty, other := testkit.PTY(b)
	c := exec.Command(args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(b, c.Start())
	b.Cleanup(func() { _ = c.Process.Signal(syscall.SIGTERM); _ = c.Wait() })
	return other
}
