//go:build linux

package service_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// TestAttackRootlessOutput has a service write lines without an end, many empty lines, and a server
// that answers without an end: what is kept stays within its limit.
func TestAttackRootlessOutput(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	size := testkit.Scale("4M", "1M")
	i, err := service.New("x", sh("head -c "+size+" /dev/zero; yes '' | head -c "+size+"; echo; echo last; exec sleep 1000"), service.LogLimit(sandbox.MiB), service.Ready(service.Log("^last$"))).Start(ctx)
	require.NoError(t, err)
	runtime.GC()
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	require.Less(t, now.HeapInuse, uint64(32<<20))
	kept := 0
	for _, line := range i.Logs() {
		kept += len(line.Text) + 64
	}
	require.LessOrEqual(t, kept, sandbox.MiB)
	require.NoError(t, i.Close())
	flood := python(`
import socket
s = socket.create_server(("0.0.0.0", 80))
n = 0
while True:
    c, _ = s.accept()
    n += 1
    try:
        c.recv(9999)
        if n == 1:
            while True: c.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999)
        if n == 2:
            while True: c.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while True: c.sendall(b"x" * 9999)
    except OSError: pass
    print(n, flush=True)
`)
	i, err = service.New("x", flood, service.Port(80), service.Ready(service.Listens(80), service.HTTP(80, "/"))).Start(ctx)
	require.NoError(t, err)
	testkit.Eventually(t, "its third connection to be cut off", func() bool { return len(i.Logs()) == 3 })
	runtime.ReadMemStats(&now)
	require.Less(t, now.HeapInuse, uint64(64<<20))
	require.NoError(t, i.Close())
}

// TestAttackRootlessAnswer has a service answer what is no HTTP and would act on a terminal: the
// error quotes little of it, without control characters. Package http quotes all of it.
func TestAttackRootlessAnswer(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	web := python(`
import socket
s = socket.create_server(("0.0.0.0", 80))
while True:
    c, _ = s.accept()
    c.recv(9999)
    c.sendall(b"HTTP/1.1 200 OK\r\nhead\x1b[2Jer" + b"x" * 9999 + b"\r\n\r\n")
    c.close()
`)
	var control error
	check := service.Func(func(_ context.Context, i *service.Instance) error {
		response, err := http.Get("http://" + i.Addr(80))
		if err == nil {
			response.Body.Close()
		}
		control = err
		return nil
	})
	_, err := service.New("x", web, service.Port(80), service.StartTimeout(testkit.Scale(5*time.Second, time.Minute)), service.Ready(service.Listens(80), check, service.HTTP(80, "/"))).Start(ctx)
	require.ErrorIs(t, err, service.ErrNotReady)
	require.Greater(t, len(control.Error()), 9999)
	require.ErrorContains(t, err, ": HTTP at port 80, /: ")
	require.NotContains(t, err.Error(), "\x1b")
	require.Less(t, len(err.Error()), 1000)
}

// TestAttackRootlessRedirect has a service lead the readiness check to a server of the host, which
// a client that follows does reach.
func TestAttackRootlessRedirect(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	reached := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			line, _ := bufio.NewReader(conn).ReadString('\n')
			reached <- line
			conn.Close()
		}
	}()
	web := python(fmt.Sprintf(`
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(307)
        self.send_header("Location", "http://%s/stolen")
        self.end_headers()
http.server.HTTPServer(("0.0.0.0", 80), H).serve_forever()
`, l.Addr()))
	i, err := service.New("x", web, service.Port(80), service.Ready(service.Listens(80), service.HTTP(80, "/"))).Start(ctx)
	require.NoError(t, err)
	defer i.Close()
	require.Empty(t, reached)
	response, err := http.Get("http://" + i.Addr(80)) // the control
	if err == nil {
		response.Body.Close()
	}
	require.Equal(t, "GET /stolen HTTP/1.1\r\n", <-reached)
}

func init() { testkit.AddHelper("serves", serves) }

// serves is a host process with a group of services, which says when they are ready.
func serves(args []string) error {
	data := service.NewSnapshot("/data", sandbox.MiB, sandbox.New(sandbox.WithCommand("touch", "/data/x")))
	db := service.New("db", sandbox.New(sandbox.WithCommand("sh", "-c", "trap '' TERM; sleep "+args[0])), service.Port(7), service.Ready(service.Command("true")))
	web := service.New("web", sandbox.New(sandbox.WithCommand("sleep", args[0])), service.After("db"), service.Restart(9), service.Scale(2), service.From(data))
	g, err := service.StartAll(context.Background(), db, web)
	if err != nil {
		return err
	}
	fmt.Println(g.Service("db").Addr(7))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return g.Close()
}

// Nothing of services is left when the process is killed that started them.
func TestRootlessKilledHost(t *testing.T) {
	testkit.Need(t, "user namespaces")
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	// Orphans become this process's children.
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)) }()
	before := testkit.ChildPIDs()
	mark := testkit.ALongTime()
	host := testkit.HelperCommand(t.Context(), "serves", mark)
	_, err := host.StdinPipe()
	require.NoError(t, err)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.GreaterOrEqual(t, len(testkit.Running(mark)), 3)
	conn, err := net.DialTimeout("tcp", lines.Text(), 20*time.Second)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, host.Process.Kill())
	require.Error(t, host.Wait())
	testkit.Eventually(t, "the services are gone", func() bool { return len(testkit.Running(mark)) == 0 })
	testkit.Eventually(t, "all other processes are gone, such as those that hold volumes of ordinary users", func() bool {
		left := slices.DeleteFunc(testkit.ChildPIDs(), func(pid int) bool { return slices.Contains(before, pid) })
		for _, pid := range left {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		return len(left) == 0
	})
	_, err = net.Dial("tcp", lines.Text())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
