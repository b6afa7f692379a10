//go:build linux

package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// screen collects what a terminal shows.
type screen struct {
	*sandbox.Process
	mu    sync.Mutex
	shown bytes.Buffer
	end   chan error
}

func watch(t *testing.T, p *sandbox.Process) *screen {
	s := &screen{Process: p, end: make(chan error, 1)}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := p.Terminal().Read(b)
			s.mu.Lock()
			s.shown.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				s.end <- err
				return
			}
		}
	}()
	t.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() })
	return s
}

func (s *screen) typed(t *testing.T, keys string) {
	t.Helper()
	_, err := io.WriteString(s.Terminal(), keys)
	require.NoError(t, err)
}

// shows waits for a line that the expression matches, and forgets what was shown until then.
func (s *screen) shows(t *testing.T, expression string) string {
	t.Helper()
	re := regexp.MustCompile("(?m)" + expression)
	var found string
	for end := time.Now().Add(testkit.Patience / 2); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		if at := re.FindIndex(s.shown.Bytes()); at != nil {
			found = string(s.shown.Next(at[1])[at[0]:])
			s.mu.Unlock()
			return found
		}
		text := s.shown.String()
		s.mu.Unlock()
		if time.Now().After(end) {
			require.Regexp(t, expression, text)
		}
	}
}

// terminals starts a command on a terminal, as a run and in one.
func terminals(t *testing.T, do func(t *testing.T, s *screen), name string, args ...string) {
	with := []sandbox.Option{sandbox.WithCommand(name, args...), sandbox.WithTerminal(33, 111)}
	t.Run("run", func(t *testing.T) { do(t, watch(t, runs.Start(t, sandbox.New(with...)))) })
	t.Run("exec", func(t *testing.T) { do(t, watch(t, execute(t, session(t), with...))) })
}

// A shell on a terminal has job control, ^C, ^Z, ^D and the size, and knows the terminal's name.
func TestRootlessTerminal(t *testing.T) {
	terminals(t, func(t *testing.T, s *screen) {
		s.typed(t, "PS1=; stty -echo; tty; stty size; echo $TERM; test -t 2 && echo yes\n")
		s.shows(t, `/dev/pts/[0-9]+\r\n33 111\r\nxterm\r\nyes\r\n`)
		require.NoError(t, s.Resize(44, 55))
		s.typed(t, "stty size\n")
		s.shows(t, "^44 55\r\n")
		s.typed(t, "trap 'echo resized' WINCH; sleep 0.01; echo ready\n")
		s.shows(t, "^ready\r\n")
		require.NoError(t, s.Resize(45, 55))
		s.typed(t, ":\n")
		s.shows(t, "^resized\r\n")
		s.typed(t, "sh -c 'echo up; exec sleep 1000'\n")
		s.shows(t, "^up\r\n")
		s.typed(t, "\x03")
		s.typed(t, "echo interrupted $?\n")
		s.shows(t, "interrupted 130\r\n")
		s.typed(t, "sh -c 'echo up; exec sleep 1000'\n")
		s.shows(t, "^up\r\n")
		s.typed(t, "\x1a")
		s.shows(t, "Stopped")
		s.typed(t, "jobs; kill %1; fg\n")
		s.shows(t, "Terminated|sleep 1000")
		s.typed(t, "echo back\n")
		s.shows(t, "^back\r\n")
		if _, err := exec.LookPath("python3"); err == nil {
			s.typed(t, `python3 -c 'import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b"x")' 2>&1 | tail -n 1`+"\n")
			s.shows(t, "^PermissionError")
		}
		s.typed(t, "exit 7\n")
		require.ErrorIs(t, <-s.end, io.EOF)
		_, err := s.Wait()
		require.Equal(t, 7, runs.ExitError(t, err).ExitCode)
		_, err = s.Terminal().Read(make([]byte, 1))
		require.Error(t, err)
		require.Error(t, s.Resize(1, 1))
	}, "bash", "--norc", "--noediting", "-i")
}

// Closing the terminal hangs up.
func TestRootlessTerminalHangsUp(t *testing.T) {
	t.Parallel()
	terminals(t, func(t *testing.T, s *screen) {
		s.shows(t, "ready")
		require.NoError(t, s.Terminal().Close())
		_, err := s.Wait()
		require.Equal(t, syscall.SIGHUP, runs.ExitError(t, err).Signal)
	}, "sh", "-c", "echo ready; sleep 1000 & wait; wait; sleep 1000")
}

// describesXterm reports whether the machine has what programs look a terminal up in: terminfo(5).
func describesXterm() bool {
	for _, dir := range []string{"/etc", "/lib", "/usr/lib", "/usr/share"} {
		if _, err := os.Stat(dir + "/terminfo/x/xterm"); err == nil {
			return true
		}
	}
	return false
}

// Programs that draw work.
func TestRootlessTerminalPrograms(t *testing.T) {
	for _, test := range []struct{ name, args, shows, keys string }{
		{"less", "/etc/passwd", "root:", "q"},
		{"top", "", "PID", "q"},
		{"vi", "/tmp/file", "~", "\x1b:q!\n"},
		{"vim", "-u NONE /tmp/file", "~", "\x1b:q!\n"},
		{"tmux", "-f /dev/null new-session sh", `\[0\]`, "exit\n"},
		{"python3", "-q", ">>> ", "exit()\n"},
	} {
		if _, err := exec.LookPath(test.name); err != nil || (test.name == "top" || test.name == "tmux") && !describesXterm() {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			terminals(t, func(t *testing.T, s *screen) {
				s.shows(t, test.shows)
				s.typed(t, test.keys)
				<-s.end
				_, err := s.Wait()
				require.NoError(t, err)
			}, test.name, strings.Fields(test.args)...)
		})
	}
}

func TestRootlessTerminalOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]sandbox.Option{"WithStdin": sandbox.WithStdinPipe(), "WithStdout": sandbox.WithStdout(io.Discard), "WithOutputLimit": sandbox.WithOutputLimit(1)} {
		_, err := sandbox.New(sandbox.WithCommand("true"), sandbox.WithTerminal(1, 1), o).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, name+": with WithTerminal")
		_, err = session(t).Exec(testkit.Deadline(t), sandbox.WithCommand("true"), sandbox.WithTerminal(1, 1), o)
		require.ErrorContains(t, err, name+": with WithTerminal")
	}
	_, err := sandbox.New(sandbox.WithHold(), sandbox.WithTerminal(1, 1)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithTerminal: with WithHold")
	p := session(t)
	require.Nil(t, p.Terminal())
	require.Error(t, p.Resize(1, 1))
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("/none"), sandbox.WithTerminal(1, 1))
	require.Error(t, err)
}
