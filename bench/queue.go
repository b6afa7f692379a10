//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cellkit/sandbox"
	pools "github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
)

// slots is how many tasks each queue's worker runs at a time.
const slots = 16

// empty is the sandbox of all tasks: what is measured is what is around the run.
var empty = sandbox.New(sandbox.WithCommand("/usr/bin/true")).With(limits...)

// beOfQueues does what this program is for queues in processes of its own.
func beOfQueues() bool {
	if len(os.Args) < 3 {
		return false
	}
	switch os.Args[1] {
	case "node":
		must(beNode(os.Args[2:]))
	case "idle":
		must(beIdle(os.Args[2]))
	case "worker":
		q, err := queue.Open(context.Background(), os.Args[2])
		must(err)
		must(queue.NewWorker(q, pools.New(empty, 1), queue.Slots(1)).Run(context.Background()))
	default:
		return false
	}
	return true
}

// queues measures queues, those of others with -tags peers, and prints the figures. Everything that
// it starts has ended when it returns.
func queues(rounds int) (err error) {
	dir, err := os.MkdirTemp("", "sandbox-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, parts: map[string]*parts{}}
	defer b.close()
	alone := b.alone()
	list := b.tasks(rounds, alone, b.reads, b.unsynced, b.synced)
	// Only now, as these work on after a task has ended, and slow the next one.
	list = append(list, b.tasks(rounds, alone, append([]func() (subject, error){b.threeUnsynced, b.threeSynced}, b.peers()...)...)[1:]...)
	for i, f := range throughput(list, slots, rounds).rows {
		fmt.Printf("| %d at a time, %s | %.0f a second |\n", slots, list[i].name, f.rate)
	}
	if err := starts(dir, max(rounds/10, 3)); err != nil {
		return err
	}
	if err := idleMemory(dir); err != nil {
		return err
	}
	return recovery(dir, max(rounds/20, 3))
}

// tasks measures single tasks of the subjects in turn with runs alone, prints the figures, and
// returns the subjects that there are.
func (b *bench) tasks(rounds int, alone subject, subjects ...func() (subject, error)) []subject {
	list := []subject{alone}
	for _, add := range subjects {
		s, err := add()
		if err == nil {
			err = s.run()
		}
		if err != nil {
			progress("left out: %s: %v", s.name, err)
			continue
		}
		list = append(list, s)
	}
	times := inTurn(list, rounds, time.Millisecond)
	base := quantile(times[0], 0.5)
	for i, s := range list {
		median := quantile(times[i], 0.5)
		fmt.Printf("| one task, %s | %s | p99 %s | %s more |\n", s.name, ms(median), ms(quantile(times[i], 0.99)), ms(median-base))
		if p := b.parts[s.name]; p != nil {
			fmt.Printf("| of which, %s | %s until its run begins | %s its run | %s until Wait returns |\n", s.name, ms(quantile(p.before, 0.5)), ms(quantile(p.run, 0.5)), ms(quantile(p.after, 0.5)))
		}
	}
	return list
}

// bench has what is to be ended after measurements.
type bench struct {
	dir   string
	ends  []func()
	mu    sync.Mutex
	parts map[string]*parts // by the subject's name
}

// parts are those of the times of tasks: from Submit to the command's start, to its end, and to the
// return of Wait.
type parts struct{ before, run, after []time.Duration }

func (b *bench) part(name string, begun time.Time, r *queue.Result) {
	returned := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parts[name]
	if p == nil {
		p = &parts{}
		b.parts[name] = p
	}
	p.before, p.run, p.after = append(p.before, r.Started.Sub(begun)), append(p.run, r.Ended.Sub(r.Started)), append(p.after, returned.Sub(r.Ended))
}

func (b *bench) close() {
	for i := len(b.ends) - 1; i >= 0; i-- {
		b.ends[i]()
	}
}

// path returns a new directory.
func (b *bench) path(name string) string {
	dir := filepath.Join(b.dir, name)
	must(os.MkdirAll(dir, 0o755))
	return dir
}

func (b *bench) pool() *pools.Pool {
	p := pools.New(empty, slots)
	b.ends = append(b.ends, func() { _ = p.Close(context.Background()) })
	return p
}

// alone is what the others are compared with.
func (b *bench) alone() subject {
	p := b.pool()
	return subject{name: "Pool.Run alone", run: func() error { _, err := p.Run(context.Background()); return err }}
}

// reads is what a worker does of it: it reads what the command writes, which is nothing.
func (b *bench) reads() (subject, error) {
	p := b.pool()
	return subject{name: "Pool.Run with readers of its output", run: func() error {
		var out, err bytes.Buffer
		_, failed := p.Run(context.Background(), sandbox.WithStdout(&out), sandbox.WithStderr(&err))
		return failed
	}}, nil
}

func (b *bench) unsynced() (subject, error) {
	return b.on("in this process, synced every second", "", queue.Dir(b.path("unsynced")), queue.SyncEvery(time.Second))
}

func (b *bench) synced() (subject, error) {
	return b.on("in this process, synced always", "", queue.Dir(b.path("synced")))
}

// on has a queue, and a worker of it in this process.
func (b *bench) on(name, url string, opts ...queue.Option) (subject, error) {
	s := subject{name: name}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := queue.Open(ctx, url, opts...)
	if err != nil {
		return s, err
	}
	p := b.pool()
	work, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- queue.NewWorker(q, p, queue.Slots(slots)).Run(work) }()
	b.ends = append(b.ends, func() {
		stop()
		must(<-ended)
		q.Close()
	})
	s.run = func() error {
		begun := time.Now()
		id, err := q.Submit(context.Background(), queue.Task{Command: []string{"/usr/bin/true"}})
		if err != nil {
			return err
		}
		res, err := q.Wait(context.Background(), id)
		if err == nil {
			b.part(name, begun, res)
		}
		return err
	}
	return s, nil
}

func (b *bench) threeUnsynced() (subject, error) {
	return b.threeNodes("three servers on this machine, replicated, as NATS installs them", "unsynced")
}

func (b *bench) threeSynced() (subject, error) {
	return b.threeNodes("three servers on this machine, replicated, synced always", "synced")
}

// threeNodes has a cluster, each server of which is a process.
func (b *bench) threeNodes(name, sync string) (subject, error) {
	ports, err := freePorts(6)
	if err != nil {
		return subject{}, err
	}
	var urls []string
	for i := range 3 {
		args := []string{"node", sync, b.path(fmt.Sprintf("%s%d", sync, i)), fmt.Sprint(ports[i]), fmt.Sprint(ports[3+i])}
		for j := range 3 {
			if j != i {
				args = append(args, fmt.Sprint(ports[3+j]))
			}
		}
		if err := b.start(args...); err != nil {
			return subject{}, err
		}
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	return b.on(name, strings.Join(urls, ","), queue.Replicas(3))
}

// start starts this program as another process, which is killed at the end.
func (b *bench) start(args ...string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return b.startCommand(exec.Command(exe, args...))
}

func (b *bench) startCommand(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	b.ends = append(b.ends, func() {
		_ = cmd.Process.Kill() // or it has ended
		_ = cmd.Wait()
	})
	return nil
}

// beNode is a server of a cluster: "synced" if it syncs always, its directory, its ports for
// clients and for the others, and the others'.
func beNode(args []string) error {
	o := &server.Options{ServerName: "node-" + args[2], Host: "127.0.0.1", JetStream: true, StoreDir: args[1], SyncAlways: args[0] == "synced", JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30, NoSigs: true, NoLog: true,
		Cluster: server.ClusterOpts{Name: "bench", Host: "127.0.0.1"}}
	if _, err := fmt.Sscan(args[2]+" "+args[3], &o.Port, &o.Cluster.Port); err != nil {
		return err
	}
	for _, port := range args[4:] {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + port})
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// freePorts returns ports of the loopback that nobody has.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // once all are known to differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// starts measures how long Open takes in this process: of a new queue, and of one with tasks.
func starts(dir string, rounds int) error {
	ctx := context.Background()
	full := queue.Dir(filepath.Join(dir, "full"))
	q, err := queue.Open(ctx, "", full, queue.SyncEvery(time.Second))
	if err != nil {
		return err
	}
	_, err = q.SubmitAll(ctx, make1000())
	q.Close()
	if err != nil {
		return err
	}
	n := 0
	open := func(of func() queue.Option) func() error {
		return func() error {
			q, err := queue.Open(ctx, "", of())
			if err == nil {
				q.Close()
			}
			return err
		}
	}
	list := []subject{{name: "a new queue", run: open(func() queue.Option { n++; return queue.Dir(filepath.Join(dir, "new", strconv.Itoa(n))) })},
		{name: "one with 1,000 tasks", run: open(func() queue.Option { return full })}}
	for i, times := range inTurn(list, rounds, 0) {
		fmt.Printf("| Open and Close, %s | %s |\n", list[i].name, ms(quantile(times, 0.5)))
	}
	return nil
}

func make1000() []queue.Task {
	tasks := make([]queue.Task, 1000)
	for i := range tasks {
		tasks[i].Command = []string{"/usr/bin/true"}
	}
	return tasks
}

// beIdle is a process with an idle queue, or without one if the directory is "none". It prints
// its resident memory in KiB: what is its own, without the program's file.
func beIdle(dir string) error {
	if dir != "none" {
		q, err := queue.Open(context.Background(), "", queue.Dir(dir))
		if err != nil {
			return err
		}
		defer q.Close()
		time.Sleep(2 * time.Second)
	}
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" || f[0] == "RssAnon:" {
			fmt.Print(f[1], " ")
		}
	}
	fmt.Println()
	return nil
}

func idleMemory(dir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	var before float64
	for _, c := range []struct{ name, dir string }{{"without a queue", "none"}, {"with an idle queue in it", filepath.Join(dir, "idle")}} {
		out, err := exec.Command(exe, "idle", c.dir).Output()
		if err != nil {
			return err
		}
		var rss, anon float64
		if _, err := fmt.Sscan(string(out), &rss, &anon); err != nil {
			return err
		}
		fmt.Printf("| resident memory of a process %s | %.1f MiB, of which %.1f MiB are no file's |\n", c.name, rss/1024, anon/1024)
		if before > 0 {
			fmt.Printf("| resident memory that the idle queue adds | %.1f MiB |\n", (rss-before)/1024)
		}
		before = rss
	}
	return nil
}

// recovery measures how long the task of a worker that was killed takes to start on another one.
func recovery(dir string, rounds int) error {
	const lease = 3 * time.Second
	ctx := context.Background()
	q, err := queue.Open(ctx, "", queue.Dir(filepath.Join(dir, "recovery")), queue.Listen("127.0.0.1:0"), queue.Lease(lease))
	if err != nil {
		return err
	}
	defer q.Close()
	b := &bench{dir: dir}
	defer b.close()
	var took []time.Duration
	for range rounds {
		d, err := recover1(ctx, b, q)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	fmt.Printf("| a killed worker's task starts again, lease %v | %s after the kill | slowest %s |\n", lease, ms(quantile(took, 0.5)), ms(quantile(took, 1)))
	return nil
}

func recover1(ctx context.Context, b *bench, q *queue.Queue) (time.Duration, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	first := exec.Command(exe, "worker", q.URL())
	if err := b.startCommand(first); err != nil {
		return 0, err
	}
	id, err := q.Submit(ctx, queue.Task{Command: []string{"/usr/bin/sleep", "1000"}})
	if err == nil {
		err = awaitAttempt(ctx, q, id, 1)
	}
	if err == nil {
		err = b.start("worker", q.URL())
	}
	if err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // the second worker starts
	killed := time.Now()
	if err := first.Process.Kill(); err != nil {
		return 0, err
	}
	if err := awaitAttempt(ctx, q, id, 2); err != nil {
		return 0, err
	}
	took := time.Since(killed)
	_, err = q.Cancel(ctx, id, "measured")
	b.close() // the second one, so that the next round has new ones
	b.ends = nil
	return took, err
}

// awaitAttempt waits until an attempt of a task runs.
func awaitAttempt(ctx context.Context, q *queue.Queue, id string, attempt int) error {
	for {
		s, err := q.Status(ctx, id)
		if err != nil || s.State == queue.Running && s.Attempt >= attempt {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
