// Command farm compiles the files of a C project on several workers, which may be on several
// machines:
//
//	farm serve                       # prints the queue's URL
//	export SANDBOX_QUEUE_URL=nats://...
//	farm work                        # as often as you like
//	farm submit                      # the project in the directory project
//
// or all of it on this machine, with a worker that is killed while it compiles:
//
//	farm all
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "farm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	commands := map[string]func(context.Context, *flag.FlagSet, []string, io.Writer) error{"serve": serve, "work": work, "submit": submit, "all": all}
	if len(args) == 0 || commands[args[0]] == nil {
		return errors.New("usage: farm serve|work|submit|all [flags]")
	}
	return commands[args[0]](ctx, flag.NewFlagSet("farm "+args[0], flag.ExitOnError), args[1:], out)
}

// serve runs a queue in this process until it is asked to end.
func serve(ctx context.Context, flags *flag.FlagSet, args []string, out io.Writer) error {
	dir := flags.String("dir", "farm-queue", "where the queue's files are")
	listen := flags.String("listen", "127.0.0.1:4222", "a loopback address")
	lease := flags.Duration("lease", 3*time.Second, "how long a worker that is not heard of keeps its task")
	if err := flags.Parse(args); err != nil {
		return err
	}
	q, err := queue.Open(ctx, "", queue.Dir(*dir), queue.Listen(*listen), queue.Lease(*lease))
	if err != nil {
		return err
	}
	defer q.Close()
	fmt.Fprintln(out, q.URL())
	<-ctx.Done()
	return nil
}

// open opens the queue that the environment names.
func open(ctx context.Context) (*queue.Queue, error) {
	url := os.Getenv("SANDBOX_QUEUE_URL")
	if url == "" {
		return nil, errors.New("SANDBOX_QUEUE_URL is not set: farm serve prints what it is to be")
	}
	return queue.Open(ctx, url)
}

// work runs tasks until it is asked to end. The compiler sees what every run does: this machine's
// /usr, and the files of its task.
func work(ctx context.Context, flags *flag.FlagSet, args []string, _ io.Writer) error {
	name := flags.String("name", "", "the worker's name; default: made of the host's")
	slots := flags.Int("slots", 1, "how many tasks at a time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	q, err := open(ctx)
	if err != nil {
		return err
	}
	defer q.Close()
	p := pool.New(sandbox.New(sandbox.WithEnv("TMPDIR=/tmp")), max(*slots, 1))
	defer func() { _ = p.Close(context.WithoutCancel(ctx)) }() // its context's error
	opts := []queue.WorkerOption{queue.Slots(*slots)}
	if *name != "" {
		opts = append(opts, queue.WorkerName(*name))
	}
	return queue.NewWorker(q, p, opts...).Run(ctx)
}
