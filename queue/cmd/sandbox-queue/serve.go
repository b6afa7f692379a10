package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
	"github.com/cellkit/sandbox/queue/metrics"
)

func serve(e *env, args []string) (err error) {
	dir := e.flags.String("dir", "", "where its files are; default: sandbox/queue in $XDG_STATE_HOME or ~/.local/state")
	listen := e.flags.String("listen", "127.0.0.1:4222", "the address at which it listens, a loopback one")
	lease := e.flags.Duration("lease", 15*time.Second, "how long a worker that is not heard of keeps its task; a queue that is there keeps its own")
	shown := e.flags.String("metrics", "", "a loopback address for Prometheus, such as 127.0.0.1:9464; default: none")
	if _, err := e.parse(args, 0, 0, ""); err != nil {
		return err
	}
	if err := canListen(*listen); err != nil {
		return err
	}
	opts := []queue.Option{queue.Listen(*listen), queue.Lease(*lease), queue.Log(e.log())}
	if *dir != "" {
		opts = append(opts, queue.Dir(*dir))
	}
	if e.opened, err = queue.Open(e.ctx, "", opts...); err != nil {
		return err
	}
	at, stop, err := e.serveMetrics(*shown, metrics.New(e.opened))
	if err != nil {
		return err
	}
	defer stop()
	if e.json {
		err = e.print(struct {
			URL     string `json:"url"`
			Metrics string `json:"metrics,omitempty"`
		}{e.opened.URL(), at})
	} else {
		_, err = fmt.Fprintln(e.out, e.opened.URL())
	}
	if err != nil {
		return err
	}
	<-e.ctx.Done()
	return nil
}

// canListen says why the server could not listen at an address, which it would try for long.
func canListen(address string) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return misuse("-listen: %q: must be an IP address and a port, such as 127.0.0.1:4222", address)
	}
	if !a.Addr().IsLoopback() {
		return misuse("-listen: %s can be reached from other machines: take a loopback address, and for other machines a server of NATS with TLS, as docs/QUEUE.md has it", address)
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("-listen: %s is in use: another process, perhaps sandbox-queue serve, listens there; 127.0.0.1:0 is any free port", address)
	}
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	return l.Close()
}

func work(e *env, args []string) error {
	name := e.flags.String("name", "", "the worker's name, to which servers may hold it; default: made of the host's")
	slots := e.flags.Int("slots", 4, "how many tasks at a time")
	classes := e.flags.String("classes", "default", "which classes of tasks, with commas between")
	var memory int64
	e.sizeFlag(&memory, "memory", "what all tasks may have together, a `SIZE` such as 4g: a task is taken when it fits; default: no limit")
	cpus := e.flags.Float64("cpus", 0, "how many CPUs all tasks may have together; default: no limit")
	address := e.flags.String("services", "", "take services too, and publish their ports at this IP address of the machine")
	check := e.flags.Bool("check", false, "find out what this machine can do, as sandbox check does, for workers -json")
	drain := e.flags.Duration("drain", 0, "how long, at the first SIGTERM, SIGINT or SIGHUP, tasks that run go on, and no more are taken; what is left then, or at a second signal, is given back; 0: all is given back at once")
	shown := e.flags.String("metrics", "", "a loopback address for Prometheus, such as 127.0.0.1:9464; default: none")
	limits, replicas := e.maxLimitsFlags(), e.replicasFlag()
	if _, err := e.parse(args, 0, 0, ""); err != nil {
		return err
	}
	// Else it is each task that fails.
	if err := errors.Join(positive("-cpus", *cpus), positive("-drain", *drain), limits.check()); err != nil {
		return err
	}
	q, err := e.open(replicas(), queue.Log(e.log()))
	if err != nil {
		return err
	}
	m := metrics.New(q)
	_, stop, err := e.serveMetrics(*shown, m)
	if err != nil {
		return err
	}
	defer stop()
	opts := []queue.WorkerOption{queue.Slots(*slots), queue.Classes(strings.Split(*classes, ",")...), queue.WorkerLog(e.log()), queue.Observe(m), queue.MaxLimits(limits.Limits)}
	if *name != "" {
		opts = append(opts, queue.WorkerName(*name))
	}
	if *address != "" {
		opts = append(opts, queue.TakeServices(*address))
	}
	if *check {
		opts = append(opts, queue.Checked(sandbox.Check(e.ctx)))
	}
	p := pool.New(sandbox.New(), max(*slots, 1), pool.Memory(memory), pool.CPUs(*cpus))
	defer func() { _ = p.Close(context.WithoutCancel(e.ctx)) }() // its context's error
	w := queue.NewWorker(q, p, opts...)
	if *drain == 0 {
		return w.Run(e.ctx)
	}
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(e.ctx, func() { e.drain(w, *drain, ended) })()
	return w.Run(context.WithoutCancel(e.ctx))
}

// drain drains a worker, for up to d, or until the next signal. It returns when the worker has
// ended.
func (e *env) drain(w *queue.Worker, d time.Duration, ended <-chan struct{}) {
	w.Drain(d)
	var by interrupt
	if !errors.As(context.Cause(e.ctx), &by) {
		return
	}
	e.log().Info("another SIGTERM, SIGINT or SIGHUP ends at once what still runs, and gives it back")
	select {
	case <-by.again:
		w.Drain(0)
	case <-ended:
	}
}

type maxLimits struct{ queue.Limits }

func (l *maxLimits) check() error {
	return errors.Join(positive("-max-cpus", l.CPUs), positive("-max-pids", l.PIDs), positive("-max-cpu-time", l.CPUTime), positive("-max-timeout", l.Timeout))
}

// maxLimitsFlags adds flags for what one task may ask for.
func (e *env) maxLimitsFlags() *maxLimits {
	l := &maxLimits{}
	e.sizeFlag(&l.Memory, "max-memory", "memory that one task may ask for, a `SIZE` such as 64m; default: -memory, or 1g")
	e.flags.Float64Var(&l.CPUs, "max-cpus", 0, "CPUs that one task may ask for; default: -cpus, or all")
	e.flags.Int64Var(&l.PIDs, "max-pids", 0, "processes and threads that one task may ask for; default: 4096")
	e.flags.DurationVar(&l.CPUTime, "max-cpu-time", 0, "CPU time that one task may ask for; default: 24h")
	e.flags.DurationVar(&l.Timeout, "max-timeout", 0, "time that one task may ask for; default: 24h")
	e.sizeFlag(&l.Output, "max-output-limit", "how much standard output and error, a `SIZE`, one task may ask for; default: 1g")
	e.sizeFlag(&l.Files, "max-files", "how much room in /task, a `SIZE`, one task may ask for; default: 256m")
	return l
}

// log returns a logger that writes to the standard error, JSON with -json.
func (e *env) log() *slog.Logger {
	if e.json {
		return slog.New(slog.NewJSONHandler(e.err, nil))
	}
	return slog.New(slog.NewTextHandler(e.err, nil))
}
