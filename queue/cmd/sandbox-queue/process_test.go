//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// The helper sandbox-queue is this command.
func init() {
	testkit.AddHelper("sandbox-queue", func(args []string) error {
		os.Args = append([]string{"sandbox-queue"}, args...)
		main()
		return nil
	})
}

// served is sandbox-queue serve as a process.
type served struct {
	cmd *exec.Cmd
	out *bufio.Reader
	log bytes.Buffer // what it has written to the standard error, when it has ended
}

func startServe(t *testing.T, args ...string) *served {
	t.Helper()
	s := &served{cmd: testkit.HelperCommand(testkit.Deadline(t), "sandbox-queue", append([]string{"serve", "-listen", "127.0.0.1:0"}, args...)...)}
	out, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	s.out, s.cmd.Stderr = bufio.NewReader(out), &s.log
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() { _ = s.cmd.Process.Kill() }) // or it has ended
	return s
}

func (s *served) line(t *testing.T) string {
	t.Helper()
	line, err := s.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

// end ends it by a signal, as which it has nothing to say.
func (s *served) end(t *testing.T, by syscall.Signal) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(by))
	rest, err := io.ReadAll(s.out)
	require.NoError(t, err)
	require.Empty(t, string(rest))
	require.NoError(t, s.cmd.Wait(), "%s", &s.log)
}

// listens returns the addresses at which a process listens, by TCP: proc_pid_net(5).
func listens(t *testing.T, pid int) (addresses []string) {
	t.Helper()
	own := map[string]bool{}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	for _, fd := range fds {
		// It may be closed meanwhile.
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		own[strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")] = true
	}
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line) // sl local_address rem_address st ... inode
			if len(f) < 10 || f[3] != "0A" || !own[f[9]] {
				continue
			}
			address, _, _ := strings.Cut(f[1], ":")
			ip, err := hex.DecodeString(address)
			require.NoError(t, err)
			if len(ip) == 4 { // of the host's byte order
				ip[0], ip[1], ip[2], ip[3] = ip[3], ip[2], ip[1], ip[0]
			}
			addresses = append(addresses, net.IP(ip).String())
		}
	}
	return addresses
}

// A queue is served by a process, of which a signal leaves nothing but its files.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	s := startServe(t, "-json", "-dir", dir, "-lease", "3s", "-metrics", "127.0.0.1:0")
	var at struct{ URL, Metrics string }
	require.NoError(t, json.Unmarshal([]byte(s.line(t)), &at))
	require.Equal(t, []string{"127.0.0.1", "127.0.0.1"}, listens(t, s.cmd.Process.Pid))

	t.Setenv("SANDBOX_QUEUE_URL", at.URL)
	do := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, stderr bytes.Buffer
		require.Equal(t, want, run(testkit.Deadline(t), args, nil, &out, &stderr), "%q: %s", args, &stderr)
		return strings.TrimSpace(out.String()), stderr.String()
	}
	nc, err := nats.Connect(at.URL)
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	tasks, err := js.Stream(testkit.Deadline(t), "sandbox-tasks")
	require.NoError(t, err)
	require.Equal(t, "3s", tasks.CachedInfo().Config.Metadata["sandbox.lease"])

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"work"}, nil, io.Discard, io.Discard) }()
	id, _ := do(0, "submit", "--", "echo", "hello")
	out, _ := do(0, "wait", id)
	require.Equal(t, "hello", out)
	waiting, _ := do(0, "submit", "-class", "other", "--", "true")
	stop()
	require.Zero(t, <-ended)
	r, err := http.Get(at.Metrics)
	require.NoError(t, err)
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	require.Contains(t, string(body), "sandbox_queue_tasks{class=\"other\"} 1\n")
	http.DefaultClient.CloseIdleConnections()

	_, text := do(misused, "serve", "-dir", dir, "-listen", "127.0.0.1:0")
	require.Contains(t, text, "-dir: "+dir+" can't be locked")
	address := strings.TrimPrefix(nc.ConnectedAddr(), "nats://")
	_, text = do(failed, "serve", "-dir", t.TempDir(), "-listen", address)
	require.Contains(t, text, "-listen: "+address+" is in use")
	_, text = do(misused, "serve", "-dir", t.TempDir(), "-listen", "0.0.0.0:0")
	require.Contains(t, text, "-listen: 0.0.0.0:0 can be reached")
	out, _ = do(0, "serve", "-h")
	require.Contains(t, out, `a loopback one (default "127.0.0.1:4222")`)
	require.Contains(t, out, "Prometheus, such as 127.0.0.1:9464; default: none")
	nc.Close()

	s.end(t, syscall.SIGTERM)
	for line := range strings.Lines(s.log.String()) {
		require.True(t, json.Valid([]byte(line)), "%s", line)
	}
	_, err = net.Dial("tcp", address)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	// Its files are as it left them, and nobody else has them.
	s = startServe(t, "-dir", dir)
	t.Setenv("SANDBOX_QUEUE_URL", s.line(t))
	out, _ = do(0, "ls", "-json")
	require.Contains(t, out, `{"id":"`+waiting+`","state":"waiting"`)
	s.end(t, syscall.SIGINT)
}

// On a terminal top has a screen of its own, shows what changes, and leaves all as it was.
func TestTopTerminal(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	tty, other := testkit.PTY(t)
	require.NoError(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 110}))
	modes := func() *unix.Termios {
		m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		require.NoError(t, err)
		return m
	}
	was := modes()
	for class, key := range map[string]string{"one": "q", "two": "\x03", "three": "\x1c", "four": "hang-up"} {
		c := testkit.HelperCommand(testkit.Deadline(t), "sandbox-queue", "top", "-every", "100ms")
		c.Env = append(c.Env, "SANDBOX_QUEUE_URL="+q.URL())
		c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, c.Start())
		t.Cleanup(func() { _ = c.Process.Kill() }) // or it has ended
		shown := ""
		until := func(text string) {
			t.Helper()
			require.NoError(t, other.SetReadDeadline(time.Now().Add(testkit.Patience)))
			for b := make([]byte, 4<<10); !strings.Contains(shown, text); {
				n, err := other.Read(b)
				require.NoError(t, err, "%q", shown)
				shown += string(b[:n])
			}
		}
		until("PROGRESS")
		require.True(t, strings.HasPrefix(shown, "\x1b[?1049h\x1b[?25l\x1b[H"), "%q", shown)
		require.Zero(t, modes().Lflag&(unix.ICANON|unix.ECHO), "keys wait for a line, and are shown")
		require.NotContains(t, shown, class+" ")
		_, err := q.Submit(testkit.Deadline(t), queue.Task{Class: class, Command: []string{"true"}})
		require.NoError(t, err)
		until("\n" + class + " ")
		shown = ""
		if key == "hang-up" {
			err = c.Process.Signal(syscall.SIGHUP)
		} else {
			_, err = other.Write([]byte("x" + key))
		}
		require.NoError(t, err)
		require.NoError(t, c.Wait(), "%q", shown)
		until("\x1b[?25h\x1b[?1049l")
		require.True(t, strings.HasSuffix(shown, "\x1b[?25h\x1b[?1049l"), "%q", shown)
		require.Equal(t, was, modes())
	}
}
