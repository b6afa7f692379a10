// Command sandbox-queue works with queues of github.com/cellkit/sandbox/queue:
//
//	sandbox-queue serve -listen 127.0.0.1:4222         # prints the URL for the others
//	export SANDBOX_QUEUE_URL=nats://...
//	sandbox-queue work -slots 4
//	sandbox-queue submit -in job -out results -to got -wait -- make test
//	sandbox-queue ls
//
// It is a command of its own, so that the command sandbox does not have a server in it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

const usage = `usage: sandbox-queue COMMAND [flags] [arguments]

  serve                    run a queue in this process, and print its URL
  work                     run tasks until a signal comes
  submit [--] COMMAND...   submit a task, and print its id
  wait ID                  wait for a task, and print its output
  logs ID                  print what a task writes while it runs
  cancel ID [REASON]       end a task
  ls                       list tasks
  dead                     list tasks that were given up
  requeue ID               put one of these back
  workers                  list workers

The queue is that of -url, or of $SANDBOX_QUEUE_URL. COMMAND -h lists flags.
`

// Exit statuses besides those of commands.
const (
	failed   = 125
	misused  = 2
	maxStdin = 1 << 20 // more than a task may have, which Submit says
)

// env is what a command has.
type env struct {
	ctx    context.Context
	in     io.Reader
	out    io.Writer
	err    io.Writer
	flags  *flag.FlagSet
	url    string
	json   bool
	opened *queue.Queue
}

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	commands := map[string]func(*env, []string) error{"serve": serve, "work": work, "submit": submit, "wait": wait, "logs": logs, "cancel": cancel, "ls": list, "dead": dead,
		"requeue": requeue, "workers": workers}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return misused
	}
	e := &env{ctx: ctx, in: in, out: out, err: stderr, flags: flag.NewFlagSet("sandbox-queue "+args[0], flag.ContinueOnError)}
	e.flags.SetOutput(stderr)
	e.flags.StringVar(&e.url, "url", os.Getenv("SANDBOX_QUEUE_URL"), "the queue's URL. Others see arguments: one with a token is better in the variable")
	e.flags.BoolVar(&e.json, "json", false, "print JSON, one object a line")
	err := commands[args[0]](e, args[1:])
	if e.opened != nil {
		e.opened.Close()
	}
	var exit *sandbox.ExitError
	var misuse *sandbox.OptionError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return misused
	case errors.As(err, &exit) && !errors.Is(err, queue.ErrDead) && exit.ExitCode > 0:
		return exit.ExitCode
	}
	fmt.Fprintln(stderr, "sandbox-queue:", plain(err.Error()))
	if errors.As(err, &misuse) {
		return misused
	}
	return failed
}

// plain returns a text that others wrote without what a terminal may obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

var errUsage = errors.New("wrong usage")

// parse parses flags and returns the arguments, at least so many.
func (e *env) parse(args []string, least int, what string) ([]string, error) {
	if err := e.flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, errUsage
	}
	if e.flags.NArg() < least {
		fmt.Fprintf(e.err, "usage: %s [flags] %s\n", e.flags.Name(), what)
		return nil, errUsage
	}
	return e.flags.Args(), nil
}

func (e *env) open(opts ...queue.Option) (*queue.Queue, error) {
	if e.url == "" {
		return nil, errors.New("which queue? set -url, or SANDBOX_QUEUE_URL; sandbox-queue serve runs one")
	}
	q, err := queue.Open(e.ctx, e.url, opts...)
	e.opened = q
	return q, err
}

// openFor parses a subcommand's arguments and opens its queue.
func (e *env) openFor(args []string, least int, what string) (*queue.Queue, []string, error) {
	rest, err := e.parse(args, least, what)
	if err != nil {
		return nil, nil, err
	}
	q, err := e.open()
	return q, rest, err
}

func serve(e *env, args []string) (err error) {
	dir := e.flags.String("dir", "", "where its files are; default: sandbox/queue in $XDG_STATE_HOME or ~/.local/state")
	listen := e.flags.String("listen", "127.0.0.1:4222", "the address at which it listens, a loopback one")
	lease := e.flags.Duration("lease", 15*time.Second, "how long a worker that is not heard of keeps its task")
	if _, err := e.parse(args, 0, ""); err != nil {
		return err
	}
	opts := []queue.Option{queue.Listen(*listen), queue.Lease(*lease)}
	if *dir != "" {
		opts = append(opts, queue.Dir(*dir))
	}
	if e.opened, err = queue.Open(e.ctx, "", opts...); err != nil {
		return err
	}
	fmt.Fprintln(e.out, e.opened.URL())
	<-e.ctx.Done()
	return nil
}

func work(e *env, args []string) error {
	slots := e.flags.Int("slots", 4, "how many tasks at a time")
	classes := e.flags.String("classes", "default", "which classes of tasks, with commas between")
	q, _, err := e.openFor(args, 0, "")
	if err != nil {
		return err
	}
	p := pool.New(sandbox.New(), max(*slots, 1))
	defer func() { _ = p.Close(context.WithoutCancel(e.ctx)) }() // its context's error
	return queue.NewWorker(q, p, queue.Slots(*slots), queue.Classes(strings.Split(*classes, ",")...)).Run(e.ctx)
}

// words is a flag that may be repeated.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func submit(e *env, args []string) error {
	var t queue.Task
	var vars, outputs words
	e.flags.StringVar(&t.Class, "class", "", "what the worker must offer")
	e.flags.StringVar(&t.Key, "key", "", "tasks with the same key are one")
	e.flags.StringVar(&t.Dir, "dir", "", "the working directory")
	e.flags.Int64Var(&t.Limits.Memory, "memory", 0, "limit of memory, in bytes")
	e.flags.DurationVar(&t.Limits.Timeout, "timeout", 0, "limit of time")
	e.flags.DurationVar(&t.Delay, "delay", 0, "wait so long at least")
	e.flags.IntVar(&t.Retry.Attempts, "attempts", 0, "try so often; default: 3")
	e.flags.BoolVar(&t.Retry.Failures, "retry-failures", false, "also when the command fails")
	priority := e.flags.String("priority", "normal", "high, normal or low")
	in := e.flags.String("in", "", "a directory, whose files are the inputs")
	stdin := e.flags.Bool("stdin", false, "read the standard input")
	e.flags.Var(&vars, "env", "a variable, KEY=value; may be repeated")
	e.flags.Var(&outputs, "out", "a file or directory of the result; may be repeated")
	waits := e.flags.Bool("wait", false, "wait for it, as wait does")
	to := e.flags.String("to", "", "with -wait: a new directory for the result's files")
	rest, err := e.parse(args, 1, "[--] COMMAND...")
	if err != nil {
		return err
	}
	t.Command, t.Env, t.Outputs = rest, vars, outputs
	known := map[string]queue.Priority{"high": queue.High, "normal": queue.Normal, "low": queue.Low}
	p, ok := known[*priority]
	if !ok {
		return &sandbox.OptionError{Option: "-priority", Err: fmt.Errorf("%q: must be high, normal or low", *priority)}
	}
	t.Priority = p
	if *in != "" {
		t.Inputs = os.DirFS(*in)
	}
	if *stdin {
		if t.Stdin, err = io.ReadAll(io.LimitReader(e.in, maxStdin)); err != nil {
			return err
		}
	}
	q, err := e.open()
	if err != nil {
		return err
	}
	id, err := q.Submit(e.ctx, t)
	if err != nil {
		return err
	}
	if *waits {
		return e.show(q, id, *to)
	}
	if e.json {
		return json.NewEncoder(e.out).Encode(map[string]string{"id": id})
	}
	_, err = fmt.Fprintln(e.out, id)
	return err
}

func wait(e *env, args []string) error {
	to := e.flags.String("to", "", "a new directory for the result's files")
	q, rest, err := e.openFor(args, 1, "ID")
	if err != nil {
		return err
	}
	return e.show(q, rest[0], *to)
}

// shown is a result as -json prints it.
type shown struct {
	ID       string        `json:"id"`
	Attempt  int           `json:"attempt"`
	Worker   string        `json:"worker"`
	ExitCode int           `json:"exit_code"`
	Reason   string        `json:"reason"`
	Wall     time.Duration `json:"wall_ns"`
	Memory   uint64        `json:"memory_peak"`
	Stdout   string        `json:"stdout"`
	Stderr   string        `json:"stderr"`
	Cut      int64         `json:"cut,omitempty"`
	Missing  []string      `json:"missing,omitempty"`
}

// show waits for a task and prints its output.
func (e *env) show(q *queue.Queue, id, to string) error {
	r, err := q.Wait(e.ctx, id)
	if r == nil {
		return err
	}
	if e.json {
		if err := json.NewEncoder(e.out).Encode(shown{ID: id, Attempt: r.Attempt, Worker: r.Worker, ExitCode: r.ExitCode, Reason: r.Reason.String(), Wall: r.Usage.Wall, Memory: r.Usage.MemoryPeak,
			Stdout: string(r.Stdout), Stderr: string(r.Stderr), Cut: r.Cut, Missing: r.Missing}); err != nil {
			return err
		}
	} else {
		if _, err := e.out.Write(r.Stdout); err != nil {
			return err
		}
		if _, err := e.err.Write(r.Stderr); err != nil {
			return err
		}
	}
	if to != "" {
		if err := copyOut(to, r); err != nil {
			return err
		}
	}
	return err
}

// copyOut copies the files of a result into a directory that is made for them. They are hostile:
// links among them do not lead out, and no file is there that one could go through.
func copyOut(to string, r *queue.Result) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return os.CopyFS(filepath.Clean(to), r.Outputs)
}

func logs(e *env, args []string) error {
	after := e.flags.Uint64("after", 0, "go on after this position")
	q, rest, err := e.openFor(args, 1, "ID")
	if err != nil {
		return err
	}
	for c, err := range q.Logs(e.ctx, rest[0], *after) {
		if err != nil {
			return err
		}
		if e.json {
			err = json.NewEncoder(e.out).Encode(map[string]any{"position": c.Position, "attempt": c.Attempt, "stderr": c.Stderr, "offset": c.Offset, "data": string(c.Data)})
		} else if c.Stderr {
			_, err = e.err.Write(c.Data)
		} else {
			_, err = e.out.Write(c.Data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func cancel(e *env, args []string) error {
	q, rest, err := e.openFor(args, 1, "ID [REASON]")
	if err != nil {
		return err
	}
	won, err := q.Cancel(e.ctx, rest[0], strings.Join(rest[1:], " "))
	if err == nil && !won {
		err = fmt.Errorf("%s had ended", rest[0])
	}
	return err
}

func requeue(e *env, args []string) error {
	q, rest, err := e.openFor(args, 1, "ID...")
	if err != nil {
		return err
	}
	for _, id := range rest {
		if err := q.Requeue(e.ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func list(e *env, args []string) error {
	return tasks(e, args, func(q *queue.Queue) iter.Seq2[queue.Status, error] { return q.List(e.ctx) })
}

func dead(e *env, args []string) error {
	return tasks(e, args, func(q *queue.Queue) iter.Seq2[queue.Status, error] { return q.Dead(e.ctx) })
}

func tasks(e *env, args []string, of func(*queue.Queue) iter.Seq2[queue.Status, error]) error {
	q, _, err := e.openFor(args, 0, "")
	if err != nil {
		return err
	}
	return table(e, of(q), "ID\tSTATE\tATTEMPT\tWORKER\tSINCE\tWHY", func(s queue.Status) string {
		return fmt.Sprintf("%s\t%v\t%d\t%s\t%s\t%q", s.ID, s.State, s.Attempt, plain(s.Worker), s.At.Format(time.DateTime), s.Text)
	})
}

func workers(e *env, args []string) error {
	q, _, err := e.openFor(args, 0, "")
	if err != nil {
		return err
	}
	return table(e, q.Workers(e.ctx), "NAME\tHOST\tCLASSES\tRUNNING\tSLOTS\tSEEN", func(s queue.WorkerStatus) string {
		return fmt.Sprintf("%s\t%q\t%q\t%d\t%d\t%s", s.Name, s.Host, s.Classes, s.Running, s.Slots, s.At.Format(time.DateTime))
	})
}

// table prints a table, or JSON.
func table[T any](e *env, rows iter.Seq2[T, error], head string, line func(T) string) error {
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	if !e.json {
		fmt.Fprintln(w, head)
	}
	for row, err := range rows {
		if err != nil {
			return err
		}
		if e.json {
			if err := json.NewEncoder(e.out).Encode(row); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(w, line(row))
	}
	return w.Flush()
}
