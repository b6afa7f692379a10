// Package cli is the command sandbox. It is used by two commands: cmd/sandbox, and the one in the
// module image, which also knows images.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/console"
)

const usage = `usage:
  sandbox run [flags] [--] command [args...]         run a command in a sandbox
  sandbox exec [flags] name [--] command [args...]   run a command in a live run of that name: sandbox run -name
  sandbox ps [-json]                                 list the names of live runs
  sandbox check [-json]                              tell what this machine can do
  sandbox version [-json]                            print the version
  sandbox help                                       print this; "sandbox run -h" explains the flags
`

// Main runs the command line and exits.
func Main() { os.Exit(dispatch(os.Args[1:])) }

// dispatch runs the subcommand and returns the exit status.
func dispatch(args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return statusSetup
	}
	if args[0] == "help" && len(args) == 2 && (args[1] == "run" || args[1] == "exec") {
		args = []string{args[1], "-h"}
	}
	name, rest := args[0], args[1:]
	asJSON := (name == "check" || name == "version" || name == "ps") && len(rest) == 1 && (rest[0] == "-json" || rest[0] == "--json")
	if asJSON {
		rest = nil
	}
	var do func() int
	switch name {
	case "run":
		return withCleanup(func(ctx context.Context) int { return run(ctx, rest) })
	case "exec":
		return withCleanup(func(ctx context.Context) int { return runExec(ctx, rest) })
	case "ps":
		do = func() int { return ps(asJSON) }
	case "check":
		do = func() int { return withCleanup(func(ctx context.Context) int { return check(ctx, asJSON) }) }
	case "version", "-version", "--version":
		do = func() int { printVersion(asJSON); return 0 }
	case console.GuardName:
		do = func() int {
			if err := console.RestoreAfter(); err != nil {
				complain(err)
				return statusSetup
			}
			return 0
		}
	case "help", "-h", "-help", "--help":
		do = func() int { fmt.Print(usage); return 0 }
	default:
		complain(fmt.Errorf("unknown subcommand %q: to run a command, use sandbox run %s", name, strings.Join(args, " ")))
		return statusSetup
	}
	if len(rest) > 0 {
		complain(fmt.Errorf("%s takes no arguments, but has %q: leave them out", name, rest))
		return statusSetup
	}
	return do()
}

// ps prints the names of live runs of this user, and the processes that hold them.
func ps(asJSON bool) int {
	if err := list(asJSON); err != nil {
		complain(err)
		return 1
	}
	return 0
}

// check prints what this machine can do.
func check(ctx context.Context, asJSON bool) int {
	report := sandbox.Check(ctx)
	if asJSON {
		writeJSON(os.Stdout, reportOf(report))
	} else {
		fmt.Print(report.String())
	}
	if !report.OK() {
		return 1
	}
	return 0
}

// shutdownTimeout is far more than an idle cell takes to end.
const shutdownTimeout = 30 * time.Second

// withCleanup calls f with a context that SIGINT, SIGTERM or SIGHUP cancels, and leaves nothing of
// the runs behind.
func withCleanup(f func(context.Context) int) int {
	// Writing to a closed pipe must fail, and not end this program before it has cleaned up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := interruptible()
	defer stop()
	status := f(ctx)
	end, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := sandbox.Shutdown(end); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		complain(fmt.Errorf("cleaning up: %w", err))
	}
	return status
}

// interrupt is a signal that asks this program to end.
type interrupt struct{ syscall.Signal }

func (i interrupt) Error() string {
	return fmt.Sprintf("canceled by signal %d (%v)", i.Signal, i.Signal)
}

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP cancels, with the signal
// as its cause. A second one ends this program at once: no process outlives it, but the next start
// has to remove the empty directories.
func interruptible() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // a shell's background job ignores SIGINT
			signal.Notify(signals, s)
		}
	}
	go func() {
		cancel(interrupt{(<-signals).(syscall.Signal)})
		last := (<-signals).(syscall.Signal)
		console.BeforeExit()
		os.Exit(statusSignal + int(last))
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// complain prints an error, or each of several joined ones, on lines that begin with the name of
// this program.
func complain(err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(os.Stderr, "sandbox: "+strings.TrimPrefix(strings.TrimSpace(line), "sandbox: "))
	}
}
