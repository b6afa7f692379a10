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
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/cellkit/sandbox/queue"
)

func main() {
	ctx, stop := interruptible()
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

const maxStdin = 1 << 20 // more than a task may have, which Submit says

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
	within time.Duration // for opening the queue; 0: no limit
	json   bool
	opened *queue.Queue
}

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	commands := map[string]func(*env, []string) error{"serve": serve, "work": work, "submit": submit, "wait": wait, "logs": logs, "cancel": cancel, "ls": list, "dead": dead,
		"requeue": requeue, "workers": workers, "top": top,
		"deploy": deploy, "services": services, "scale": scale, "stop": stop}
	switch {
	case len(args) == 0:
		fmt.Fprint(stderr, usage)
		return misused
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		fmt.Fprint(out, usage)
		return 0
	case commands[args[0]] == nil:
		fmt.Fprintf(stderr, "sandbox-queue: there is no command %q: sandbox-queue help lists them\n", args[0])
		return misused
	}
	e := &env{ctx: ctx, in: in, out: out, err: stderr, flags: flag.NewFlagSet("sandbox-queue "+args[0], flag.ContinueOnError)}
	e.flags.BoolVar(&e.json, "json", false, "print JSON, one object a line")
	if args[0] != "serve" {
		e.connectionFlags(args[0] == "work")
	}
	err := commands[args[0]](e, args[1:])
	if e.opened != nil {
		e.opened.Close()
	}
	return e.status(err)
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

// print prints a value as JSON, on a line.
func (e *env) print(v any) error { return json.NewEncoder(e.out).Encode(v) }
