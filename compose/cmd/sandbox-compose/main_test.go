//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/compose"
	"github.com/cellkit/sandbox/internal/console"
	"github.com/cellkit/sandbox/internal/named"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sweep, sandbox.Shutdown) }

// sweep removes what a holder that was killed has left, as the next cell of any process does.
func sweep(context.Context) error {
	c, err := sandbox.NewCell()
	if err != nil {
		return err
	}
	return c.Close()
}

// holderOf returns the process that holds the project.
func holderOf(t *testing.T) int {
	t.Helper()
	holders, err := named.List()
	require.NoError(t, err)
	require.Len(t, holders, 1)
	require.Equal(t, socketName("box"), holders[0].Name)
	return holders[0].PID
}

// The helpers are the command itself, which executes itself with another first argument.
func init() {
	for _, name := range []string{"up", held, "exec", console.GuardName} {
		testkit.AddHelper(name, func(args []string) error {
			os.Args = append([]string{"sandbox-compose", name}, args...)
			main()
			return nil
		})
	}
}

const file = `
services:
  one:
    image: ./busybox.tar
    command: [sh, -c, "echo hello; trap 'echo bye; exit 0' TERM; sleep %s & wait"]
    healthcheck: {test: "true", interval: 1s}
  two:
    image: ./busybox.tar
    command: sleep 1000000
    stop_signal: KILL
    ports: ["9"]
    scale: 2
    depends_on: {one: {condition: service_healthy}}
`

// setUp makes a project in a new working directory, with names and images apart from the user's. It
// returns the argument of a process of it.
func setUp(t *testing.T) (marker string) {
	t.Helper()
	dir := filepath.Join(testkit.OpenDir(t), "box")
	require.NoError(t, os.Mkdir(dir, 0o755))
	testkit.BusyboxImage(t, filepath.Join(dir, "busybox.tar"))
	marker = testkit.ALongTime()
	testkit.WriteFile(t, filepath.Join(dir, "compose.yaml"), strings.Replace(file, "%s", marker, 1), 0o644)
	t.Chdir(dir)
	t.Setenv("XDG_RUNTIME_DIR", testkit.OpenDir(t))
	t.Setenv("XDG_CACHE_HOME", testkit.OpenDir(t))
	require.NoError(t, os.Chmod(os.Getenv("XDG_RUNTIME_DIR"), 0o700))
	return marker
}

// do runs the command in this process.
func do(t *testing.T, want int, args ...string) (out, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	require.Equal(t, want, run(testkit.Deadline(t), args, strings.NewReader("in"), &o, &e), "%q: %s%s", args, &o, &e)
	return o.String(), e.String()
}

// watch has ps show pictures on a terminal until the project ends, and returns what is on that.
func watch(t *testing.T) <-chan string {
	t.Helper()
	tty, other := testkit.PTY(t)
	ctx, shown := testkit.Deadline(t), make(chan string)
	go func() {
		run(ctx, []string{"ps", "-watch"}, nil, tty, &bytes.Buffer{})
		tty.Close()
	}()
	go func() {
		defer close(shown)
		for b := make([]byte, 4<<10); ; {
			n, err := other.Read(b)
			if err != nil { // nobody has the terminal any more
				return
			}
			shown <- string(b[:n])
		}
	}()
	return shown
}

// In the foreground: other commands find the project, and a signal ends it gently.
func TestRootlessForeground(t *testing.T) {
	marker := setUp(t)
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	var out, stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"up"}, nil, &out, &stderr) }()
	testkit.Eventually(t, "three runs", func() bool {
		var o bytes.Buffer
		return run(ctx, []string{"ps"}, nil, &o, &o) == 0 && strings.Count(o.String(), "running") == 3
	})
	shown, _ := do(t, 0, "ps", "-json")
	var status []compose.Status
	require.NoError(t, json.Unmarshal([]byte(shown), &status))
	require.Len(t, status, 3)
	require.Equal(t, "healthy", status[0].Health)
	require.Equal(t, "two.2", status[2].Name())
	require.Len(t, status[2].Ports, 1)
	require.NotEqual(t, status[1].PID, status[2].PID)
	shown, _ = do(t, 0, "logs", "one")
	require.Equal(t, "one | hello\n", shown)
	_, wrong := do(t, failed, "logs", "nobody")
	require.Contains(t, wrong, `no service "nobody"`)
	shown, wrong = do(t, 3, "exec", "two", "sh", "-c", "cat; echo; echo err >&2; exit 3")
	require.Equal(t, "in\n", shown)
	require.Equal(t, "err\n", wrong)
	// What a command leaves behind may keep its streams: that is not waited for.
	left := make(chan string, 1)
	go func() {
		shown, _ := do(t, 0, "exec", "two", "sh", "-c", "setsid sh -c 'while sleep 0.01; do echo on; done' & echo left")
		left <- shown
	}()
	select {
	case shown = <-left:
		require.Contains(t, shown, "left\n")
	case <-time.After(10 * time.Second):
		require.Fail(t, "exec waits for what its command has left behind")
	}
	shown, _ = do(t, 0, "exec", "two", "--", "echo", "--")
	require.Equal(t, "--\n", shown)
	_, wrong = do(t, failed, "exec", "two", "--")
	require.Contains(t, wrong, "no command is given")
	_, wrong = do(t, failed, "exec", "nobody", "true")
	require.Contains(t, wrong, `no service "nobody"`)
	_, wrong = do(t, failed, "up")
	require.Contains(t, wrong, "is up already: sandbox-compose down ends it")
	screen, picture := watch(t), ""
	for !strings.Contains(picture, "running (healthy)") {
		more, goesOn := <-screen
		require.True(t, goesOn, "%q", picture)
		picture += more
	}
	require.Regexp(t, "^\x1b\\[H\x1b\\[JSERVICE +STATE +STARTS +FOR +MEMORY +PORTS\r\n", picture)
	gone := make(chan struct{})
	go func() { // the project does not wait for whoever watches it
		defer close(gone)
		for range screen {
		}
	}()
	interrupt()
	require.Zero(t, <-ended, "%s", &stderr)
	<-gone
	require.Contains(t, out.String(), "one   | bye\n")
	require.Contains(t, stderr.String(), "two.1: running\n")
	testkit.RequireGone(t, marker)
	_, wrong = do(t, failed, "ps")
	require.Contains(t, wrong, "project box is not up")
}

// exec -t gives the command a terminal of its own, of the size and kind of this program's, which is
// as it was afterwards.
func TestRootlessTerminal(t *testing.T) {
	marker := setUp(t)
	out, err := testkit.HelperCommand(testkit.Deadline(t), "up", "-d", "one").CombinedOutput()
	require.NoError(t, err, "%s", out)
	tty, other := testkit.PTY(t)
	require.NoError(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 111}))
	was, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)
	onTTY := func(args ...string) *exec.Cmd {
		c := testkit.HelperCommand(testkit.Deadline(t), "exec", args...)
		c.Env = append(c.Env, "TERM=vt100")
		c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, c.Start())
		return c
	}
	shown := ""
	until := func(text string) {
		t.Helper()
		b := make([]byte, 100)
		for !strings.Contains(shown, text) {
			n, err := other.Read(b)
			require.NoError(t, err, "%s", shown)
			shown += string(b[:n])
		}
	}
	c := onTTY("-t", "one", "sh", "-c", "busybox tty; busybox stty size; echo $TERM; read line; echo got $line; exit 3")
	until("vt100\r\n")
	require.Contains(t, shown, "/dev/pts/0\r\n33 111\r\n")
	_, err = other.Write([]byte("hello\n"))
	require.NoError(t, err)
	until("got hello\r\n")
	err = c.Wait()
	require.Equal(t, 3, c.ProcessState.ExitCode(), "%v: %s", err, shown)
	now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	require.NoError(t, err)
	require.Equal(t, was, now)

	c = onTTY("-t", "one", "/missing")
	until("/missing")
	require.Error(t, c.Wait())
	require.Equal(t, failed, c.ProcessState.ExitCode(), "%s", shown)
	_, wrong := do(t, failed, "exec", "-t", "one", "true") // whose streams are no terminal
	require.Contains(t, wrong, "no terminal: leave the flag out")
	require.Error(t, testkit.HelperCommand(testkit.Deadline(t), console.GuardName).Run())
	do(t, 0, "down")
	testkit.RequireGone(t, marker)
}

// In the background: up -d returns when all is ready, and down ends it.
func TestRootlessBackground(t *testing.T) {
	marker := setUp(t)
	upInBackground := func() {
		c := testkit.HelperCommand(testkit.Deadline(t), "up", "-d")
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "two.2: running")
	}
	upInBackground()
	shown, _ := do(t, 0, "ps")
	require.Equal(t, 3, strings.Count(shown, "running"), "%s", shown)
	again, err := testkit.HelperCommand(testkit.Deadline(t), "up", "-d").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(again), "is up already: sandbox-compose down ends it")
	do(t, 0, "down")
	testkit.RequireGone(t, marker)
	_, wrong := do(t, failed, "down")
	require.Contains(t, wrong, "is not up")

	// A killed host leaves nothing.
	upInBackground()
	require.Len(t, testkit.Running(marker), 1)
	require.NoError(t, syscall.Kill(holderOf(t), syscall.SIGKILL))
	testkit.Eventually(t, "the end of all", func() bool { return len(testkit.Running(marker)) == 0 })
	do(t, failed, "ps")
}

// What does not start in the background is said, and nothing is left.
func TestRootlessBackgroundFails(t *testing.T) {
	marker := setUp(t)
	text, err := os.ReadFile("compose.yaml")
	require.NoError(t, err)
	testkit.WriteFile(t, "compose.yaml", strings.Replace(string(text), "sleep 1000000", "/missing", 1), 0o644)
	c := testkit.HelperCommand(testkit.Deadline(t), "up", "-d", "-profile", marker)
	out, err := c.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "service two")
	require.Contains(t, string(out), "/missing")
	testkit.RequireGone(t, marker) // of the services, and of the command
}

// The process in the background starts no other one, whatever it is given and goes wrong: it says
// so to the one that has started it.
func TestHeld(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"-d"}, {"-d", "-d"}, {"-d", "-nonsense"}, {"-d", "-allow", "x"}, {"-d=true", "--", "-d"}} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		c := testkit.HelperCommand(testkit.Deadline(t), held, args...)
		c.ExtraFiles = []*os.File{w}
		require.Error(t, c.Run(), "%q", args)
		require.NoError(t, w.Close())
		said, err := io.ReadAll(r) // until nobody has the other end: no process is left
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.LessOrEqual(t, strings.Count(string(said), `"Error"`), 1, "%s", said)
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.WriteFile("compose.yaml", []byte("services:\n  web:\n    image: x\n    build: .\n    ipc: host\n"), 0o600))
	_, wrong := do(t, misused, "check")
	require.Contains(t, wrong, "sandbox-compose: compose.yaml:4: services.web.build: images are not built here")
	require.Contains(t, wrong, "sandbox-compose: compose.yaml:5: services.web.ipc: ")
	shown, _ := do(t, 0, "check", "-ignore", "build", "-ignore", "ipc", "-p", "name")
	require.Equal(t, "name: web\n", shown)
	for _, args := range [][]string{{}, {"nonsense"}, {"up", "-nonsense"}, {"up", "-d", "-held=false"}, {"exec", "web"}, {"up", "-allow", "x"}, {"up", "-volume-size", "x"}} {
		do(t, misused, args...)
	}
	_, wrong = do(t, misused, "restart")
	require.Contains(t, wrong, `there is no command "restart"`)
	shown, _ = do(t, 0, "help")
	require.Equal(t, usage, shown)
	_, wrong = do(t, failed, held, "-d", "-ignore", "build", "-ignore", "ipc")
	require.Contains(t, wrong, "held is for up -d itself")
	do(t, 0, "up", "-h")
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}} {
		shown, _ = do(t, 0, args...)
		require.Contains(t, shown, "usage: sandbox-compose COMMAND")
	}
	_, wrong = do(t, misused, "-p", "x", "stop")
	require.Equal(t, `sandbox-compose: there is no command "stop": sandbox-compose help lists them`+"\n", wrong)
	_, wrong = do(t, misused, "-d", "up")
	require.Contains(t, wrong, "-d")

	// Flags may stand before the command, as with docker compose.
	require.NoError(t, os.WriteFile("other.yaml", []byte("services: {other: {image: x, dns: 1.1.1.1}}\n"), 0o600))
	for _, args := range [][]string{
		{"-f", "other.yaml", "--ignore=dns", "-p", "name", "check"}, {"-f", "other.yaml", "-p", "name", "--", "check", "-ignore", "dns"}, {"-p", "other", "check", "-p", "name", "-ignore", "dns", "-f", "other.yaml"},
	} {
		shown, _ = do(t, 0, args...)
		require.Equal(t, "name: other\n", shown, "%q", args)
	}
	// The project is asked for by its name: the file's fields were the business of up.
	_, wrong = do(t, failed, "ps")
	require.Contains(t, wrong, "is not up: sandbox-compose up -d starts it")
}
