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
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"

	"github.com/cellkit/sandbox"
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
  top                      show what the queue and its workers do, live
  deploy NAME [--] COMMAND...  have a service run, in place of what it ran before
  services                 list services' replicas: their health and addresses
  scale NAME REPLICAS      change their number
  stop NAME                end a service

The queue is that of -url, or of $SANDBOX_QUEUE_URL; -nkey, -creds and -ca, or $SANDBOX_QUEUE_NKEY,
_CREDS and _CA, say how its servers know you, and you them. COMMAND -h lists flags.
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
	nkey   string // files
	creds  string
	ca     string
	json   bool
	opened *queue.Queue
}

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	commands := map[string]func(*env, []string) error{"serve": serve, "work": work, "submit": submit, "wait": wait, "logs": logs, "cancel": cancel, "ls": list, "dead": dead,
		"requeue": requeue, "workers": workers, "top": top,
		"deploy": deploy, "services": services, "scale": scale, "stop": stop}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return misused
	}
	e := &env{ctx: ctx, in: in, out: out, err: stderr, flags: flag.NewFlagSet("sandbox-queue "+args[0], flag.ContinueOnError)}
	e.flags.SetOutput(stderr)
	e.flags.StringVar(&e.url, "url", os.Getenv("SANDBOX_QUEUE_URL"), "the queue's URL. Others see arguments: one with a token is better in the variable")
	e.flags.StringVar(&e.nkey, "nkey", os.Getenv("SANDBOX_QUEUE_NKEY"), "the file of the seed of an nkey, by which the servers know you")
	e.flags.StringVar(&e.creds, "creds", os.Getenv("SANDBOX_QUEUE_CREDS"), "the file of a JWT and its nkey, as nsc makes it")
	e.flags.StringVar(&e.ca, "ca", os.Getenv("SANDBOX_QUEUE_CA"), "a file of certificates: the authorities to trust for tls:// URLs, in place of the system's")
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
	case errors.As(err, &exit) && !errors.Is(err, queue.ErrDead) && !errors.Is(err, queue.ErrOutputs) && exit.ExitCode > 0:
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
	if e.nkey != "" {
		opts = append(opts, queue.NKey(e.nkey))
	}
	if e.creds != "" {
		opts = append(opts, queue.Credentials(e.creds))
	}
	if e.ca != "" {
		b, err := os.ReadFile(e.ca)
		if err != nil {
			return nil, err
		}
		t := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return nil, &sandbox.OptionError{Option: "-ca", Err: fmt.Errorf("%s has no certificate in PEM", e.ca)}
		}
		opts = append(opts, queue.TLS(t))
	}
	q, err := queue.Open(e.ctx, e.url, opts...)
	e.opened = q
	return q, err
}

// replicasFlag adds -replicas, and returns the option that it asks for.
func (e *env) replicasFlag() func() queue.Option {
	n := e.flags.Int("replicas", 0, "if this makes the queue: on how many servers each record is, 1, 3 or 5; default: 3 on a cluster, else 1")
	return func() queue.Option { return queue.Replicas(*n) }
}

// print prints a value as JSON, on a line.
func (e *env) print(v any) error { return json.NewEncoder(e.out).Encode(v) }

// openFor parses a subcommand's arguments and opens its queue.
func (e *env) openFor(args []string, least int, what string) (*queue.Queue, []string, error) {
	rest, err := e.parse(args, least, what)
	if err != nil {
		return nil, nil, err
	}
	q, err := e.open()
	return q, rest, err
}
