//go:build linux

package service_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

func sh(script string, opts ...sandbox.Option) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand("sh", "-c", script)).With(opts...)
}

func python(script string) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand("python3", "-u", "-c", script))
}

const hello = `
import socket
s = socket.create_server(("0.0.0.0", 7))
print("open", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b"hello")
    c.close()
`

// events collects what Observe is called with.
type events struct {
	mu  sync.Mutex
	all []service.Event
}

func (e *events) option() service.Option {
	return service.Observe(func(event service.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.all = append(e.all, event)
	})
}

func (e *events) states() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var s []string
	for _, event := range e.all {
		s = append(s, event.State.String())
	}
	return strings.Join(s, " ")
}

func texts(lines []service.Line) (s []string) {
	for _, l := range lines {
		s = append(s, l.Text)
	}
	return s
}

// A service that is ready can be used at once, and ends gently.
func TestRootlessService(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	var e events
	i, err := service.New("hello", python(hello), service.Port(7), e.option()).Start(ctx)
	require.NoError(t, err)
	require.Equal(t, "hello", testkit.Ask(t, i.Addr(7)))
	require.Equal(t, service.Running, i.State())
	p, err := i.Exec(ctx, sandbox.WithCommand("true"))
	require.NoError(t, err)
	_, err = p.Wait()
	require.NoError(t, err)
	out, err := sandbox.New(sandbox.WithCommand("python3", "-c", `import socket; print(socket.create_connection(("hello", 7)).recv(9))`), i.Reach()).CombinedOutput(ctx)
	require.NoError(t, err, "%s", out)
	require.Equal(t, "b'hello'\n", string(out))
	require.NoError(t, i.Close())
	require.NoError(t, i.Close())
	require.Equal(t, []string{"open"}, texts(i.Logs()))
	require.Equal(t, "starting running stopping ended", e.states())
	_, err = net.Dial("tcp", i.Addr(7))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = i.Exec(ctx, sandbox.WithCommand("true"))
	require.Error(t, err)
}

// Each check decides when the service is ready.
func TestRootlessReady(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	web := python(`
import http.server
n = 0
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global n
        n += 1
        print("request", n, self.path, flush=True)
        self.send_response(503 if n < 4 else 302)
        self.send_header("Location", "http://nowhere.test/")
        self.end_headers()
        self.wfile.write(b"x" * 100)
    def log_message(self, *a): pass
http.server.HTTPServer(("0.0.0.0", 80), H).serve_forever()
`)
	t.Run("HTTP", func(t *testing.T) {
		i, err := service.New("web", web, service.Port(80), service.Ready(service.Listens(80), service.HTTP(80, "/health"))).Start(ctx)
		require.NoError(t, err)
		require.NoError(t, i.Close())
		require.Equal(t, []string{"request 1 /health", "request 2 /health", "request 3 /health", "request 4 /health"}, texts(i.Logs()))
	})
	begin := time.Now()
	for name, check := range map[string]service.Check{
		"Log":     service.Log("^rea.y$"),
		"Command": service.Command("test", "-e", "/tmp/ready"),
		"Func": service.Func(func(ctx context.Context, i *service.Instance) error {
			if len(i.Logs()) < 2 {
				return errors.New("not yet")
			}
			return nil
		}),
	} {
		t.Run(name, func(t *testing.T) {
			i, err := service.New("x", sh("echo begin; sleep 0.2; touch /tmp/ready; echo ready; exec sleep 1000"), service.Ready(check)).Start(ctx)
			require.NoError(t, err)
			require.Greater(t, time.Since(begin), 200*time.Millisecond)
			require.NoError(t, i.Close())
		})
	}
	t.Run("Exits", func(t *testing.T) {
		i, err := service.New("x", sh("echo done"), service.Ready(service.Exits(), service.Log("done"))).Start(ctx)
		require.NoError(t, err)
		<-i.Ended()
		require.NoError(t, i.Close())
		require.Equal(t, service.Ended, i.State())
	})
}

// A service that does not become ready is ended, and the error says why, with its last words.
func TestRootlessNotReady(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	short := service.StartTimeout(testkit.Scale(3*time.Second, 20*time.Second))
	for name, c := range map[string]struct {
		s    *service.Service
		is   error
		want []string
	}{
		"exit":     {service.New("x", sh("echo one; printf 'two\\033[2J' >&2; exit 3"), service.Ready(service.Log("z"))), nil, []string{"service x: sandbox: exit status 3; its last lines:", "\tone", "\ttwo\uFFFD[2J"}},
		"ends":     {service.New("x", sh("true"), service.Ready(service.Log("z"))), service.ErrNotReady, []string{`exited with status 0 before a line that matches "z"`}},
		"log":      {service.New("x", sh("exec sleep 1000"), short, service.Ready(service.Log("z"))), service.ErrNotReady, []string{`a line that matches "z": none so far`}},
		"loopback": {service.New("x", python("import socket\ns = socket.create_server(('127.0.0.1', 7))\nwhile True: s.accept()"), service.StartTimeout(testkit.Scale(5*time.Second, time.Minute)), service.Port(7)), service.ErrNotReady, []string{"port 7: only its own loopback"}},
		"port":     {service.New("x", sh("exec sleep 1000"), short, service.Port(7)), service.ErrNotReady, []string{"port 7: nothing listens there"}},
		"http":     {service.New("x", sh("exec sleep 1000"), short, service.Port(7), service.Ready(service.HTTP(7, "/"))), service.ErrNotReady, []string{"HTTP at port 7, /: "}},
		"command":  {service.New("x", sh("exec sleep 1000"), short, service.Ready(service.Command("false"))), service.ErrNotReady, []string{`command "false": sandbox: exit status 1`}},
		"missing":  {service.New("x", sandbox.New(sandbox.WithCommand("no-such-program"))), os.ErrNotExist, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := c.s.Start(ctx)
			var failed *service.Error
			require.ErrorAs(t, err, &failed)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

// A context that ends while the service starts ends it.
func TestRootlessStartCancelled(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx, cancel := context.WithCancelCause(testkit.Deadline(t))
	why := errors.New("why")
	s := service.New("x", sh("exec sleep 1000"), service.Ready(service.Log("z")), service.Observe(func(e service.Event) {
		if e.State == service.Starting {
			time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		}
	}))
	_, err := s.Start(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, why)
}

// A service that fails is restarted, at the same address and with its volume, and given up in the
// end.
func TestRootlessRestart(t *testing.T) {
	testkit.Need(t, "python3")
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	ctx := testkit.Deadline(t)
	volume, err := sandbox.NewScratch(sandbox.MiB)
	require.NoError(t, err)
	defer volume.Close()
	var e events
	counts := python("open('/data/starts', 'a').write('x')\nn = open('/data/starts').read()" + strings.ReplaceAll(hello, `b"hello"`, "n.encode()")).With(sandbox.WithScratch("/data", volume))
	i, err := service.New("x", counts, service.Port(7), service.Restart(2), e.option()).Start(ctx)
	require.NoError(t, err)
	for n := 1; n <= 3; n++ {
		testkit.Eventually(t, "the service to run again", func() bool { return i.State() == service.Running && i.Process() != nil })
		require.Equal(t, strings.Repeat("x", n), testkit.Ask(t, i.Addr(7)))
		require.NoError(t, i.Process().Kill())
		testkit.Eventually(t, "the service to have failed", func() bool { return strings.Count(e.states()+" ", "waiting")+strings.Count(e.states(), "failed") == n })
	}
	<-i.Ended()
	require.Equal(t, service.Failed, i.State())
	var exit *sandbox.ExitError
	require.ErrorAs(t, i.Close(), &exit)
	require.Equal(t, syscall.SIGKILL, exit.Signal)
	require.Equal(t, "starting running waiting starting running waiting starting running failed", e.states())
	require.Equal(t, []string{"open", "open", "open"}, texts(i.Logs()))
}

// Each restart in a row waits twice as long as the one before. Under load the first may wait longer
// than it must.
func TestRootlessBackOff(t *testing.T) {
	testkit.Need(t, "user namespaces")
	testkit.Eventually(t, "the first pause to be shorter than the last", func() bool {
		var e events
		_, err := service.New("x", sh("exit 1"), service.Ready(service.Log("never")), service.Restart(3), e.option()).Start(testkit.Deadline(t))
		require.Error(t, err)
		var pauses []time.Duration
		for n, event := range e.all {
			if event.State == service.Waiting {
				pauses = append(pauses, e.all[n+1].Time.Sub(event.Time))
			}
		}
		require.Len(t, pauses, 3)
		for n, pause := range pauses {
			require.GreaterOrEqual(t, pause, 100*time.Millisecond<<n)
		}
		return pauses[2] >= pauses[0]+200*time.Millisecond
	})
}

// A directory of this machine is a service's root, and another one keeps what it writes.
func TestRootlessDirectory(t *testing.T) {
	testkit.Need(t, "a static busybox")
	ctx := testkit.Deadline(t)
	root, kept := testkit.BusyboxRoot(t), testkit.OpenDir(t)
	require.NoError(t, os.Chmod(kept, 0o777))
	s := service.New("x", sh("echo x >>/kept/starts; cat /kept/starts; echo end", sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithBind(kept, "/kept")), service.Ready(service.Exits()))
	for _, want := range [][]string{{"x", "end"}, {"x", "x", "end"}} {
		i, err := s.Start(ctx)
		require.NoError(t, err)
		require.Equal(t, want, texts(i.Logs()))
		require.NoError(t, i.Close())
	}
}

// A service that is ready and no longer healthy has failed.
func TestRootlessHealth(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	i, err := service.New("x", sh("touch /tmp/ok; sleep 0.3; rm /tmp/ok; exec sleep 1000"),
		service.Ready(service.Command("test", "-e", "/tmp/ok")), service.Health(10*time.Millisecond, 2, service.Command("test", "-e", "/tmp/ok"))).Start(ctx)
	require.NoError(t, err)
	<-i.Ended()
	require.ErrorIs(t, i.Err(), service.ErrUnhealthy)
	require.ErrorContains(t, i.Err(), `service x: unhealthy: command "test": sandbox: exit status 1`)
	require.ErrorIs(t, i.Close(), service.ErrUnhealthy)
}

// What a service writes is kept within the limit, and followed as it comes.
func TestRootlessLogs(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	i, err := service.New("x", sh("mkfifo /tmp/go; echo out; echo err >&2; read line </tmp/go; seq 1 100000; head -c 200000 /dev/zero; echo; echo last; exec sleep 1000"), service.LogLimit(1<<20),
		service.Ready(service.Log("out"), service.Log("err"))).Start(ctx)
	require.NoError(t, err)
	next, stop := iter.Pull(i.Follow(ctx))
	defer stop()
	first, _ := next()
	second, _ := next()
	require.ElementsMatch(t, []service.Line{{Text: "out"}, {Text: "err", Stderr: true}}, []service.Line{{Text: first.Text, Stderr: first.Stderr}, {Text: second.Text, Stderr: second.Stderr}})
	p, err := i.Exec(ctx, sandbox.WithCommand("sh", "-c", "echo >/tmp/go"))
	require.NoError(t, err)
	_, err = p.Wait()
	require.NoError(t, err)
	testkit.Eventually(t, "all of its output", func() bool { l := i.Logs(); return l[len(l)-1].Text == "last" })
	size := 0
	for _, l := range i.Logs() {
		size += len(l.Text) + 64
		require.LessOrEqual(t, len(l.Text), 64<<10)
	}
	require.LessOrEqual(t, size, 1<<20)
	require.Greater(t, size, 1<<19)
	seen := 2
	for line, ok := next(); ok && line.Text != "last"; line, ok = next() {
		seen += 1 + line.Missed
	}
	require.Equal(t, 2+100000+4, seen, "each line is either seen or missed")
	require.NoError(t, i.Close())
	_, ok := next()
	require.False(t, ok, "it ends with the service")
}

// Services of a group start after those that they need, find them by name, and end before them.
func TestRootlessGroup(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	var e events
	db := service.New("db", python(hello), service.Port(7), e.option())
	job := service.New("job", sh("exec python3 -c 'import socket; print(socket.create_connection((\"db\", 7)).recv(9))'"), service.After("db"), service.Ready(service.Exits()), e.option())
	web := service.New("web", python(hello), service.Port(7), service.After("db", "job"), e.option())
	g, err := service.StartAll(ctx, web, job, db)
	require.NoError(t, err)
	require.Equal(t, "hello", testkit.Ask(t, g.Service("web").Addr(7)))
	require.NotEqual(t, g.Service("web").Addr(7), g.Service("db").Addr(7))
	require.Equal(t, []string{"b'hello'"}, texts(g.Service("job").Logs()))
	reach := "import socket\nfor n in 'db', 'web', 'job':\n  try: print(n, socket.create_connection((n, 7)).recv(9))\n  except OSError as e: print(n, type(e).__name__)"
	out, err := sandbox.New(sandbox.WithCommand("python3", "-c", reach), g.Service("db").Reach(), g.Service("web").Reach()).CombinedOutput(ctx)
	require.NoError(t, err, "%s", out)
	require.Equal(t, "db b'hello'\nweb b'hello'\njob gaierror\n", string(out))
	out, err = sandbox.New(sandbox.WithCommand("python3", "-c", reach), g.Service("db").Reach()).CombinedOutput(ctx)
	require.NoError(t, err, "%s", out)
	require.Equal(t, "db b'hello'\nweb gaierror\njob gaierror\n", string(out))
	require.NoError(t, g.Close())
	var order []string
	for _, event := range e.all {
		order = append(order, event.Service+" "+event.State.String())
	}
	require.Equal(t, []string{"db starting", "db running", "job starting", "job running", "job ended", "web starting", "web running", "web stopping", "web ended", "db stopping", "db ended"}, order)
}

// A group of which a member fails ends, and names it.
func TestRootlessGroupFails(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	good := service.New("good", sh("exec sleep 1000"))
	_, err := service.StartAll(ctx, good, service.New("bad", sh("echo why; exit 1"), service.After("good"), service.Ready(service.Log("z"))), service.New("never", sh("exit 2"), service.After("bad")))
	require.ErrorContains(t, err, "service bad: sandbox: exit status 1; its last lines:\n\twhy")
	g, err := service.StartAll(ctx, good, service.New("bad", sh("echo ready; sleep 0.1; echo late; exit 1"), service.Ready(service.Log("ready"))))
	require.NoError(t, err)
	<-g.Ended()
	require.ErrorContains(t, g.Err(), "service bad: sandbox: exit status 1; its last lines:\n\tready\n\tlate")
	require.Equal(t, service.Ended, g.Service("good").State())
	require.Equal(t, g.Err(), g.Close())
	stopped, cancel := context.WithCancel(ctx)
	g, err = service.StartAll(stopped, good)
	require.NoError(t, err)
	cancel()
	<-g.Ended()
	require.NoError(t, g.Close())
}

// Whoever sees that a service has failed, and closes its group, learns that this is why it ended.
func TestRootlessGroupSaysWhy(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	for _, scale := range []int{1, 2} {
		var g *service.Group
		healthy, started, why := atomic.Bool{}, make(chan struct{}), make(chan error, scale)
		healthy.Store(true)
		check := service.Func(func(context.Context, *service.Instance) error {
			if healthy.Load() {
				return nil
			}
			return errors.New("it is ill")
		})
		ill := service.New("ill", sh("exec sleep 1000"), service.Scale(scale), service.Ready(check), service.Health(time.Millisecond, 1, check), service.Observe(func(e service.Event) {
			if e.State == service.Failed {
				<-started
				why <- g.Err()
			}
		}))
		var err error
		g, err = service.StartAll(ctx, ill, service.New("good", sh("exec sleep 1000")))
		require.NoError(t, err)
		close(started)
		healthy.Store(false)
		require.ErrorIs(t, <-why, service.ErrUnhealthy, "it is known before others see it")
		<-g.Service("ill").Ended()
		require.ErrorIs(t, g.Close(), service.ErrUnhealthy)
		require.ErrorContains(t, g.Err(), "it is ill")
	}
}

// A snapshot is made once, and each instance has a copy of its own, which stays through restarts.
func TestRootlessSnapshot(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	ctx := testkit.Deadline(t)
	data := service.NewSnapshot("/data", sandbox.MiB, sh("mkdir -m 700 /data/private; head -c 8 /dev/urandom | od -An -tx1 >/data/private/id; ln -s private/id /data/link; umask 377; echo x >/data/fixed"))
	defer data.Close()
	s := service.New("x", sh("cat /data/link; stat -c %a,%u /data/private /data/fixed; cat /data/mine; echo mine >/data/mine; sleep 0.1; exit 1"), service.From(data), service.Restart(1), service.Ready(service.Log("1000")))
	var ids []string
	for range 2 {
		i, err := s.Start(ctx)
		require.NoError(t, err)
		<-i.Ended()
		lines := texts(i.Logs())
		require.Equal(t, lines[0], lines[4])
		require.Equal(t, []string{"700,1000", "600,1000", "cat: /data/mine: No such file or directory", lines[0], "700,1000", "600,1000", "mine"}, lines[1:])
		ids = append(ids, lines[0])
		require.Error(t, i.Close())
	}
	require.Equal(t, ids[0], ids[1])
}

// fileSystems returns how many file systems this process holds by descriptors, as root's scratches
// are.
func fileSystems() (n int) {
	for _, d := range testkit.TakeInventory()["descriptors"] {
		if strings.HasSuffix(d, " -> /") {
			n++
		}
	}
	return n
}

// A snapshot and its copy for the next instance, which is made, or being made, or waited for, are
// gone with Close.
func TestSnapshotClosed(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs")
	ctx := testkit.Deadline(t)
	before := fileSystems()
	data := service.NewSnapshot("/data", sandbox.MiB, sh("echo x >/data/x"))
	s := service.New("x", sh("cat /data/x; exec sleep 1000"), service.From(data), service.Ready(service.Log("x")))
	for range 2 {
		i, err := s.Start(ctx)
		require.NoError(t, err)
		require.Greater(t, fileSystems(), before+1, "the snapshot and its copy")
		require.NoError(t, data.Close())
		require.NoError(t, i.Close())
		testkit.Eventually(t, "both to be gone", func() bool { return fileSystems() == before })
	}
}

// An instance that can't be prepared has ended for those who have it from an event, too.
func TestRootlessSnapshotFails(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	ctx := testkit.Deadline(t)
	broken := service.From(service.NewSnapshot("/data", sandbox.MiB, sh("echo no room; exit 1")))
	for n, scale := range []int{1, 2} {
		var prepared *service.Instance
		_, err := service.New("x", sh("true"), broken, service.Scale(scale), service.Observe(func(e service.Event) {
			require.Equal(t, service.Preparing, e.State)
			require.Equal(t, "snapshot of /data", e.Progress.What)
			require.Equal(t, n, e.Replica)
			require.Equal(t, service.Preparing, e.Instance.State())
			prepared = e.Instance
		})).Start(ctx)
		require.ErrorContains(t, err, "service x: service snapshot of /data: sandbox: exit status 1; its last lines:\n\tno room")
		<-prepared.Ended()
		require.Equal(t, service.Failed, prepared.State())
		require.Error(t, prepared.Err())
		for range prepared.Follow(ctx) {
		}
		require.NoError(t, ctx.Err())
	}
}

// What can't be set up twice when a service is started is not tried a third time.
func TestRootlessRestartHopeless(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	starts := 0
	count := service.Observe(func(e service.Event) {
		if e.State == service.Starting {
			starts++
		}
	})
	_, err = service.New("x", sh("exec sleep 1000").With(sandbox.WithPublish(l.Addr().String(), 80)), service.Restart(1000), count).Start(testkit.Deadline(t))
	require.ErrorAs(t, err, new(*sandbox.SetupError))
	require.ErrorContains(t, err, "WithPublish")
	require.Equal(t, 2, starts)
}

// TestWrongOptions reports what is wrong without starting anything.
func TestWrongOptions(t *testing.T) {
	ok := sandbox.New(sandbox.WithCommand("true"))
	for want, s := range map[string]*service.Service{
		`service.New: "X" is no name`:               service.New("X", ok),
		"service.New: the sandbox is nil":           service.New("x", nil),
		"service.Port: 0: ports go":                 service.New("x", ok, service.Port(0)),
		"service.Port: 1 is given twice":            service.New("x", ok, service.Port(1), service.Port(1)),
		"service.StartTimeout: 0s":                  service.New("x", ok, service.StartTimeout(0)),
		"service.Restart: -1":                       service.New("x", ok, service.Restart(-1)),
		"service.LogLimit: 0":                       service.New("x", ok, service.LogLimit(0)),
		"service.Health: a pause of 0s":             service.New("x", ok, service.Health(0, 1, service.Command("true"))),
		"service.Health: it has no check":           service.New("x", ok, service.Health(1, 1)),
		"service.Func: the function is nil":         service.New("x", ok, service.Ready(service.Func(nil))),
		`service.HTTP: "/%zz" is no path`:           service.New("x", ok, service.Port(80), service.Ready(service.HTTP(80, "/%zz"))),
		`command "": sandbox: WithCommand: `:        service.New("x", sh("exec sleep 1000"), service.Restart(3), service.Ready(service.Command(""))),
		"service.Health: a line that matches":       service.New("x", ok, service.Health(1, 1, service.Log("x"))),
		"service.Log: error parsing":                service.New("x", ok, service.Ready(service.Log("("))),
		"service.Listens: 0: ports":                 service.New("x", ok, service.Ready(service.Listens(0))),
		"service.Ready: a Check is empty":           service.New("x", ok, service.Ready(service.Check{})),
		"service.HTTP: port 80 is not published":    service.New("x", ok, service.Ready(service.HTTP(80, "/"))),
		"service.From: the snapshot is nil":         service.New("x", ok, service.From(nil)),
		`service.HTTP: "x" is no path`:              service.New("x", ok, service.Port(80), service.Ready(service.HTTP(80, "x"))),
		"WithStdout: a service keeps":               service.New("x", ok.With(sandbox.WithStdout(io.Discard))),
		"WithHold: a service is its command":        service.New("x", ok.With(sandbox.WithHold())),
		"WithNetwork: a service with service.Port":  service.New("x", ok.With(sandbox.WithNetwork(sandbox.NetworkHost)), service.Port(1)),
		"WithNetwork: a network for each run":       service.New("x", ok.With(sandbox.WithNetwork(sandbox.Private()))),
		"WithMemory: -1":                            service.New("x", ok.With(sandbox.WithMemory(-1)), service.Restart(3)),
		`service.After: x is to start after "other`: service.New("x", ok, service.After("other")),
		"service.After: x waits":                    service.New("x", ok, service.After("x")),
		"service.Scale: 0 is not positive":          service.New("x", ok, service.Scale(0)),
		"WithPublish: 127.0.0.1:53/udp leads to":    service.New("x", ok.With(sandbox.WithPublish("127.0.0.1:53/udp", 53)), service.Scale(2)),
		"NewScratch: 0 is not a positive":           service.New("x", ok, service.Volume("/data", 0), service.Scale(2)),
		"NewDiskScratch: 1 bytes are too few":       service.New("x", ok, service.DiskVolume("/data", "/tmp", 1)),
	} {
		_, err := service.StartAll(t.Context(), s)
		require.ErrorContains(t, err, want)
		require.ErrorAs(t, err, new(*sandbox.OptionError), want)
	}
	_, err := service.StartAll(t.Context(), service.New("x", ok), service.New("x", ok), nil)
	require.ErrorContains(t, err, `two services have the name "x"`)
	require.ErrorContains(t, err, "a service is nil")
	require.Panics(t, func() { service.New("x", ok, service.Port(1)).At("h").Addr(2) })
	at := service.New("x", ok, service.Port(1)).At("h")
	require.Equal(t, "h:1", at.Addr(1))
	require.NoError(t, at.Close())
	require.Empty(t, at.Logs())
}
