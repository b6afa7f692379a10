//go:build linux

package services

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// stages are how long each part of a start took.
type stages struct {
	prepare time.Duration // until its data is there
	execute time.Duration // until PostgreSQL has written its first line
	own     time.Duration // until it has written that it is ready
	notice  time.Duration // until Start has returned
	query   time.Duration // until a client has connected and has its first answer
}

func (s stages) total() time.Duration { return s.prepare + s.execute + s.own + s.notice + s.query }

// BenchmarkPostgres is the time from Start until a PostgreSQL has answered its first query: with a
// copy of what initdb has made once, and with initdb before each. For comparison, os/exec starts
// one on a copy of such a directory, which is in memory and made before, and there is a run of
// true. They take turns; medians are reported. On a busy machine with cgroup v1 it takes a CPU
// cgroup for this process as well, as cells have: all processes without weigh as much as it each.
func BenchmarkPostgres(b *testing.B) {
	testkit.Need(b, "PostgreSQL")
	template := newPlain(b)
	parts := map[string][]stages{}
	measured := func(name string, start func() stages) subject {
		return subject{name: name, run: func() time.Duration {
			s := start()
			parts[name] = append(parts[name], s)
			return s.total()
		}}
	}
	subjects := []subject{
		measured("snapshot", func() stages { return startService(b) }),
		measured("plain", func() stages { return template.start(b) }),
		measured("initdb", func() stages {
			require.NoError(b, database.Close())
			return startService(b)
		}),
		{name: "true", run: func() time.Duration {
			begin := time.Now()
			_, err := sandbox.New(sandbox.WithCommand("true")).Run(b.Context())
			require.NoError(b, err)
			return time.Since(begin)
		}},
	}
	takeTurns(b, subjects)
	b.ReportMetric(median(subjects[0].took)/median(subjects[1].took), "snapshot/plain")
	for _, name := range []string{"snapshot", "plain"} {
		for stage, part := range map[string]func(stages) time.Duration{
			"prepare": func(s stages) time.Duration { return s.prepare },
			"execute": func(s stages) time.Duration { return s.execute },
			"own":     func(s stages) time.Duration { return s.own },
			"notice":  func(s stages) time.Duration { return s.notice },
			"query":   func(s stages) time.Duration { return s.query },
		} {
			var took []time.Duration
			for _, s := range parts[name] {
				took = append(took, part(s))
			}
			b.ReportMetric(median(took), name+"-"+stage+"-ms")
		}
	}
}

// subject is what a benchmark compares. run returns how long it took.
type subject struct {
	name string
	run  func() time.Duration
	took []time.Duration
}

// takeTurns runs all subjects, one after the other, and reports the median of each.
func takeTurns(b *testing.B, subjects []subject) {
	for _, s := range subjects {
		s.run()
	}
	for b.Loop() {
		for i := range subjects {
			subjects[i].took = append(subjects[i].took, subjects[i].run())
			time.Sleep(100 * time.Millisecond) // for what goes on behind it
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, s := range subjects {
		b.ReportMetric(median(s.took), s.name+"-ms")
	}
}

// median returns milliseconds.
func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

func startService(b *testing.B) (s stages) {
	var starting time.Time
	db := service.New("postgres", pgBox, append(slices.Clip(pgOptions), service.From(database), service.Observe(func(e service.Event) {
		if e.State == service.Starting {
			starting = e.Time
		}
	}))...)
	begin := time.Now()
	pg, err := db.Start(b.Context())
	returned := time.Now()
	require.NoError(b, err)
	s.query = ask(b, pg.Addr(5432))
	lines := pg.Logs()
	ready := slices.IndexFunc(lines, func(l service.Line) bool { return strings.Contains(l.Text, pgReady) })
	s.prepare, s.execute = starting.Sub(begin), lines[0].Time.Sub(starting)
	s.own, s.notice = lines[ready].Time.Sub(lines[0].Time), returned.Sub(lines[ready].Time)
	require.NoError(b, pg.Close())
	return s
}

// ask returns how long it takes to get an answer.
func ask(b *testing.B, addr string) time.Duration {
	begin := time.Now()
	db, err := pgx.Connect(b.Context(), "postgres://postgres@"+addr+"/postgres?sslmode=disable")
	require.NoError(b, err)
	var one int
	require.NoError(b, db.QueryRow(b.Context(), "SELECT 1").Scan(&one))
	took := time.Since(begin)
	require.NoError(b, db.Close(context.Background()))
	return took
}

// plain is a PostgreSQL of the machine itself.
type plain struct {
	dir  string // in memory, with the directory template
	attr *syscall.SysProcAttr
}

func newPlain(b *testing.B) plain {
	dir, err := os.MkdirTemp("/dev/shm", "postgres-")
	require.NoError(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	p := plain{dir: dir}
	if os.Geteuid() == 0 { // PostgreSQL refuses that
		u, err := user.Lookup("postgres")
		require.NoError(b, err)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		require.NoError(b, os.Chown(dir, uid, gid))
		p.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	out, err := p.command("sh", "-ec", makeDatabase, filepath.Join(dir, "template")).CombinedOutput()
	require.NoError(b, err, "%s", out)
	return p
}

func (p plain) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Env = p.dir, p.attr, []string{"PATH=/usr/bin:/bin"}
	return cmd
}

func (p plain) start(b *testing.B) (s stages) {
	data := filepath.Join(p.dir, "db")
	out, err := p.command("cp", "-a", filepath.Join(p.dir, "template"), data).CombinedOutput()
	require.NoError(b, err, "%s", out)
	defer os.RemoveAll(data)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	addr := l.Addr().(*net.TCPAddr)
	require.NoError(b, l.Close())
	args := append(slices.Clone(pgCommand[1:]), "-D", data, "-k", p.dir, "-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprint("port=", addr.Port))
	cmd := p.command(pgCommand[0], args...)
	stderr, err := cmd.StderrPipe()
	require.NoError(b, err)
	begin := time.Now()
	require.NoError(b, cmd.Start())
	lines := bufio.NewScanner(stderr)
	require.True(b, lines.Scan())
	s.execute = time.Since(begin)
	for !strings.Contains(lines.Text(), pgReady) {
		require.True(b, lines.Scan())
	}
	s.own = time.Since(begin) - s.execute
	s.query = ask(b, addr.String())
	require.NoError(b, cmd.Process.Signal(syscall.SIGINT))
	for lines.Scan() {
	}
	require.NoError(b, cmd.Wait())
	return s
}
