//go:build linux

package services

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// BenchmarkDocker compares with Docker, by its API, which has the same image, with the data in it,
// and publishes the same port: the time from the request to the first answer of a query, the time
// to end it so that nothing is left, and the memory that is taken besides PostgreSQL's own
// processes, at first and for each of five. It takes an engine of its own, and removes all that it
// has given to it:
//
//	internal/vmtest/docker.sh engine \
//		go -C examples test -run '^$' -bench Docker -benchtime 10x ./services
func BenchmarkDocker(b *testing.B) {
	for _, feature := range []string{"root", "PostgreSQL", "Docker's daemon"} {
		testkit.Need(b, feature)
	}
	archive := filepath.Join(b.TempDir(), "postgres.tar")
	writeDatabase(b, archive, tag)
	store, err := image.OpenStore(filepath.Join(b.TempDir(), "store"))
	require.NoError(b, err)
	engine := newEngine(b, archive)
	own := service.Open("postgres", image.Sandbox(archive, image.WithStore(store)), append(slices.Clip(pgOptions),
		service.With(sandbox.WithStopSignal(syscall.SIGINT, 10*time.Second)))...)
	first := func() (addr string, stop func()) {
		pg, err := own.Start(b.Context())
		require.NoError(b, err)
		return pg.Addr(5432), func() { require.NoError(b, pg.Close()) }
	}
	second := func() (addr string, stop func()) {
		id := engine.start()
		return engine.addr(id), func() { engine.remove(id) }
	}
	var subjects []subject
	memory := map[string]float64{} // in MiB
	for _, s := range []struct {
		name    string
		start   func() (string, func())
		besides func() float64
	}{
		{"sandbox", first, func() float64 { return besides(os.Getpid()) }},
		{"docker", second, func() float64 { return besides(engine.pid, engine.shims()...) }},
	} {
		_, stop := s.start() // what is made once
		stop()
		before := s.besides()
		var stops []func()
		const n = 5
		for range n {
			addr, stop := s.start()
			ask(b, addr)
			stops = append(stops, stop)
		}
		memory[s.name+"-MiB-at-first"], memory[s.name+"-MiB-each"] = before, (s.besides()-before)/n
		for _, stop := range stops {
			stop()
		}
		var stopped []time.Duration
		subjects = append(subjects, subject{name: s.name + "-start", run: func() time.Duration {
			begin := time.Now()
			addr, stop := s.start()
			ask(b, addr)
			took := time.Since(begin)
			begin = time.Now()
			stop()
			stopped = append(stopped, time.Since(begin))
			return took
		}}, subject{name: s.name + "-stop", run: func() time.Duration { return stopped[len(stopped)-1] }})
	}
	takeTurns(b, subjects)
	for what, mib := range memory {
		b.ReportMetric(mib, what)
	}
}

// besides returns how many MiB processes and their descendants take that are not PostgreSQL's own.
// What several share counts in part for each: proc_pid_smaps_rollup in proc(5).
func besides(pid int, more ...int) (mib float64) {
	debug.FreeOSMemory()
	for next := append(more, pid); len(next) > 0; next = next[1:] {
		next = append(next, testkit.ChildrenOf(next[0])...)
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", next[0]))
		sizes, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", next[0]))
		if _, rest, found := strings.Cut(string(sizes), "\nPss:"); found && string(name) != "postgres\n" {
			var kib float64
			_, _ = fmt.Sscan(rest, &kib)
			mib += kib / 1024
		}
	}
	return mib
}

// engine is Docker's, by its API.
type engine struct {
	b      *testing.B
	client *http.Client
	pid    int
	ids    []string // of the containers that there are
}

const tag = "sandbox-postgres:bench"

func newEngine(b *testing.B, archive string) *engine {
	path, found := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	if !found {
		path = "/var/run/docker.sock"
	}
	e := &engine{b: b}
	e.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil && e.pid == 0 {
			e.pid, err = peer(conn.(*net.UnixConn))
		}
		return conn, err
	}}}
	file, err := os.Open(archive)
	require.NoError(b, err)
	defer file.Close()
	said, err := io.ReadAll(e.call(http.MethodPost, "/images/load", "application/x-tar", file))
	require.NoError(b, err)
	require.Contains(b, string(said), tag)
	b.Cleanup(func() {
		for _, id := range slices.Clone(e.ids) {
			e.remove(id)
		}
		e.call(http.MethodDelete, "/images/"+tag, "", nil).Close()
		e.client.CloseIdleConnections()
	})
	return e
}

// peer returns the process at the other end.
func peer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(fd uintptr) {
		if c, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	return pid, err
}

func (e *engine) call(method, path, kind string, body io.Reader) io.ReadCloser {
	r, err := http.NewRequest(method, "http://docker/v1.41"+path, body)
	require.NoError(e.b, err)
	r.Header.Set("Content-Type", kind)
	response, err := e.client.Do(r)
	require.NoError(e.b, err)
	if response.StatusCode >= 300 {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		require.FailNow(e.b, "docker", "%s %s: %s: %s", method, path, response.Status, said)
	}
	return response.Body
}

// do makes a call with JSON, both ways if answer is not nil.
func (e *engine) do(method, path string, body, answer any) {
	var sent bytes.Buffer
	if body != nil {
		require.NoError(e.b, json.NewEncoder(&sent).Encode(body))
	}
	got := e.call(method, path, "application/json", &sent)
	defer got.Close()
	if answer != nil {
		require.NoError(e.b, json.NewDecoder(got).Decode(answer))
	}
}

// start returns when PostgreSQL has written that it is ready.
func (e *engine) start() (id string) {
	var made struct{ ID string }
	type binding struct{ HostIp, HostPort string }
	e.do(http.MethodPost, "/containers/create", map[string]any{"Image": tag, "ExposedPorts": map[string]any{"5432/tcp": struct{}{}},
		"HostConfig": map[string]any{"PortBindings": map[string][]binding{"5432/tcp": {{HostIp: "127.0.0.1"}}}}}, &made)
	e.ids = append(e.ids, made.ID)
	e.do(http.MethodPost, "/containers/"+made.ID+"/start", nil, nil)
	log := e.call(http.MethodGet, "/containers/"+made.ID+"/logs?follow=1&stdout=1&stderr=1", "", nil)
	defer log.Close()
	var said []byte
	for part := make([]byte, 4<<10); !bytes.Contains(said, []byte(pgReady)); {
		n, err := log.Read(part)
		said = append(said, part[:n]...)
		require.NoError(e.b, err, "%s", said)
	}
	return made.ID
}

func (e *engine) addr(id string) string {
	var is struct {
		NetworkSettings struct {
			Ports map[string][]struct{ HostIp, HostPort string }
		}
	}
	e.do(http.MethodGet, "/containers/"+id+"/json", nil, &is)
	at := is.NetworkSettings.Ports["5432/tcp"]
	require.NotEmpty(e.b, at)
	return net.JoinHostPort(at[0].HostIp, at[0].HostPort)
}

func (e *engine) remove(id string) {
	e.do(http.MethodPost, "/containers/"+id+"/stop", nil, nil)
	e.do(http.MethodDelete, "/containers/"+id, nil, nil)
	e.ids = slices.DeleteFunc(e.ids, func(other string) bool { return other == id })
}

// shims returns the processes that hold containers, which are no children of the engine's.
func (e *engine) shims() (pids []int) {
	for _, pid := range testkit.Processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(line), "containerd-shim") && slices.ContainsFunc(e.ids, func(id string) bool { return strings.Contains(string(line), id) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}
