package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
	"github.com/cellkit/sandbox/queue/metrics"
)

func serve(e *env, args []string) (err error) {
	dir := e.flags.String("dir", "", "where its files are; default: sandbox/queue in $XDG_STATE_HOME or ~/.local/state")
	listen := e.flags.String("listen", "127.0.0.1:4222", "the address at which it listens, a loopback one")
	lease := e.flags.Duration("lease", 15*time.Second, "how long a worker that is not heard of keeps its task")
	shown := e.flags.String("metrics", "", "a loopback address for Prometheus, such as 127.0.0.1:9464; default: none")
	if _, err := e.parse(args, 0, ""); err != nil {
		return err
	}
	opts := []queue.Option{queue.Listen(*listen), queue.Lease(*lease), queue.Log(e.log())}
	if *dir != "" {
		opts = append(opts, queue.Dir(*dir))
	}
	if e.opened, err = queue.Open(e.ctx, "", opts...); err != nil {
		return err
	}
	stop, err := e.serveMetrics(*shown, metrics.New(e.opened))
	if err != nil {
		return err
	}
	defer stop()
	if e.json {
		err = e.print(map[string]string{"url": e.opened.URL()})
	} else {
		_, err = fmt.Fprintln(e.out, e.opened.URL())
	}
	if err != nil {
		return err
	}
	<-e.ctx.Done()
	return nil
}

func work(e *env, args []string) error {
	slots := e.flags.Int("slots", 4, "how many tasks at a time")
	classes := e.flags.String("classes", "default", "which classes of tasks, with commas between")
	memory := e.flags.Int64("memory", 0, "what all tasks may have together, in bytes: a task is taken when it fits; default: no limit")
	cpus := e.flags.Float64("cpus", 0, "how many CPUs all tasks may have together; default: no limit")
	address := e.flags.String("services", "", "take services too, and publish their ports at this IP address of the machine")
	check := e.flags.Bool("check", false, "find out what this machine can do, as sandbox check does, for workers -json")
	shown := e.flags.String("metrics", "", "a loopback address for Prometheus, such as 127.0.0.1:9464; default: none")
	q, _, err := e.openFor(args, 0, "")
	if err != nil {
		return err
	}
	m := metrics.New(q)
	stop, err := e.serveMetrics(*shown, m)
	if err != nil {
		return err
	}
	defer stop()
	opts := []queue.WorkerOption{queue.Slots(*slots), queue.Classes(strings.Split(*classes, ",")...), queue.WorkerLog(e.log()), queue.Observe(m)}
	if *address != "" {
		opts = append(opts, queue.TakeServices(*address))
	}
	if *check {
		opts = append(opts, queue.Checked(sandbox.Check(e.ctx)))
	}
	p := pool.New(sandbox.New(), max(*slots, 1), pool.Memory(*memory), pool.CPUs(*cpus))
	defer func() { _ = p.Close(context.WithoutCancel(e.ctx)) }() // its context's error
	return queue.NewWorker(q, p, opts...).Run(e.ctx)
}

// log returns a logger that writes to the standard error, JSON with -json.
func (e *env) log() *slog.Logger {
	if e.json {
		return slog.New(slog.NewJSONHandler(e.err, nil))
	}
	return slog.New(slog.NewTextHandler(e.err, nil))
}
