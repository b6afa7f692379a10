// Command sandbox-compose starts the services of a Compose file as sandboxes, without a daemon:
//
//	sandbox-compose up                 # in the foreground, until a signal comes
//	sandbox-compose up -d              # held by a process of its own
//	sandbox-compose ps -watch
//	sandbox-compose logs -follow web
//	sandbox-compose exec db psql -U postgres
//	sandbox-compose down
//
// It is a command of its own, so that the command sandbox has no parser of Compose files in it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/compose"
	"github.com/cellkit/sandbox/internal/cli"
	"github.com/cellkit/sandbox/internal/console"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == console.GuardName {
		if err := console.RestoreAfter(); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox-compose:", err)
			os.Exit(misused)
		}
		return
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a closed pipe ends no services
	ctx, stop := interruptible()
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	end, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	if err := sandbox.Shutdown(end); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		fmt.Fprintln(os.Stderr, "sandbox-compose: cleaning up:", err)
	}
	cancel()
	os.Exit(status)
}

// interruptible returns a context that the first signal ends, so that services end gently. A second
// one ends this process, and all services with it.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	go func() {
		<-signals
		cancel()
		last := (<-signals).(syscall.Signal)
		console.BeforeExit()
		os.Exit(signaled + int(last))
	}()
	return ctx, cancel
}

const usage = `usage: sandbox-compose COMMAND [flags] [arguments]

  up [SERVICE...]          start services, and those that they depend on
  ps                       show what the services of a project are doing
  logs [SERVICE...]        print what services have written
  exec SERVICE COMMAND...  execute a command in a service
  down                     end a project gently
  check                    report what of a file is not supported

Without -f, the Compose file is that of the working directory. COMMAND -h lists flags.
`

// Exit statuses besides those of commands.
const (
	misused  = 2
	failed   = 125
	signaled = 128 // plus the signal's number
)

var errUsage = errors.New("wrong usage")

// words is a flag that may be repeated.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

// env is what a command has.
type env struct {
	ctx   context.Context
	in    io.Reader
	out   io.Writer
	err   io.Writer
	flags *flag.FlagSet
	name  string

	files, profiles, ignored words
	project                  string
}

func run(ctx context.Context, args []string, in io.Reader, out, stderr io.Writer) int {
	commands := map[string]func(*env, []string) (int, error){"up": up, held: up, "ps": ps, "logs": logs, "exec": execute, "down": down, "check": check}
	switch {
	case len(args) == 0:
		fmt.Fprint(stderr, usage)
		return misused
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		fmt.Fprint(out, usage)
		return 0
	case commands[args[0]] == nil:
		fmt.Fprintf(stderr, "sandbox-compose: there is no command %q: sandbox-compose help lists them\n", args[0])
		return misused
	}
	e := &env{ctx: ctx, in: in, out: out, err: stderr, name: args[0], flags: flag.NewFlagSet("sandbox-compose "+args[0], flag.ContinueOnError)}
	e.flags.SetOutput(stderr)
	e.flags.Var(&e.files, "f", "a Compose file, or a directory that has one; further ones are merged into the first")
	e.flags.StringVar(&e.project, "p", "", "the project's name")
	e.flags.Var(&e.profiles, "profile", "a profile to enable; may be repeated")
	e.flags.Var(&e.ignored, "ignore", "a field that is not supported and to be ignored, such as logging; may be repeated")
	status, err := commands[args[0]](e, args[1:])
	switch {
	case err == nil:
		return status
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return misused
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(stderr, "sandbox-compose: "+strings.TrimPrefix(strings.TrimRight(line, "\n"), "compose: "))
	}
	if errors.As(err, new(*compose.Error)) || errors.As(err, new(*sandbox.OptionError)) {
		return misused
	}
	return failed
}

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

// load loads the project that the flags name.
func (e *env) load(opts ...compose.Option) (*compose.Project, error) {
	first, further := e.paths()
	return compose.Load(first, append(opts, further, compose.Name(e.project), compose.Profiles(e.profiles...), compose.Ignore(e.ignored...))...)
}

// paths returns the first of the files that the flags name, or a directory, and the others.
func (e *env) paths() (string, compose.Option) {
	if len(e.files) == 0 {
		return ".", compose.Override()
	}
	return e.files[0], compose.Override(e.files[1:]...)
}

// projectName returns the name of the project that the flags name. That is all that those need who
// ask a project that is up, also if up was told to ignore fields, or the file has changed since.
func (e *env) projectName() (string, error) {
	if e.project != "" {
		return e.project, nil
	}
	first, further := e.paths()
	return compose.ProjectName(first, further)
}

func check(e *env, args []string) (int, error) {
	if _, err := e.parse(args, 0, ""); err != nil {
		return 0, err
	}
	p, err := e.load()
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(e.out, "%s: %s\n", p.Name(), strings.Join(p.Services(), " "))
	return 0, nil
}

// upFlags are the flags of up besides those of all commands.
type upFlags struct {
	detach, quiet   bool
	allow           words
	volumeDir, size string
}

func (e *env) upFlags() *upFlags {
	f := &upFlags{}
	e.flags.BoolVar(&f.detach, "d", false, "return when all services are ready, and leave them to a process in the background")
	e.flags.BoolVar(&f.quiet, "q", false, "don't print what services write")
	e.flags.Var(&f.allow, "allow", "what services reach outside, such as '*.example.org:443' or 10.2.0.0/16:5432,53/udp; may be repeated")
	e.flags.StringVar(&f.volumeDir, "volumes", "", "keep named volumes in this directory; default: in memory, until the project ends")
	e.flags.StringVar(&f.size, "volume-size", "256m", "room in each named volume in memory")
	return f
}

// options returns what the flags say, for compose.Load.
func (f *upFlags) options(only []string) ([]compose.Option, error) {
	opts := []compose.Option{compose.Only(only...)}
	for _, value := range f.allow {
		o, err := cli.ParseAllow(value)
		if err != nil {
			return nil, &sandbox.OptionError{Option: "-allow", Err: err}
		}
		opts = append(opts, compose.Allow(o))
	}
	size, err := units.RAMInBytes(f.size)
	if err != nil || size <= 0 {
		return nil, &sandbox.OptionError{Option: "-volume-size", Err: fmt.Errorf("%q is no size such as 256m", f.size)}
	}
	opts = append(opts, compose.VolumeMemory(size))
	if f.volumeDir != "" {
		opts = append(opts, compose.VolumeDir(f.volumeDir))
	}
	return opts, nil
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
