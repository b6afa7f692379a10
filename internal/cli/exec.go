package cli

// sandbox exec: a further command in a run that "sandbox run -name" has started.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/named"
)

// execFlags are the flags of "sandbox run" that "sandbox exec" has too: the others belong to the
// run.
var execFlags = []string{"timeout", "stop-signal", "wait-delay", "output-limit", "rlimit", "env", "t", "dir", "usage", "json"}

func ofExec(f runFlag) bool { return slices.Contains(execFlags, f.name) }

// execUsage returns the help of "sandbox exec".
func execUsage() string {
	return "usage: sandbox exec [flags] name [--] command [args...]\n" + flagUsage(ofExec) + usageEnd
}

// answer is how a command ended, or why it was not started.
type answer struct {
	Status int
	Reason string // why that is not the command's own, or ""
	Result *sandbox.Result
}

// runExec executes a command as the arguments say and returns the exit status.
func runExec(ctx context.Context, args []string) int {
	s, err := parseExec(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(execUsage())
		return 0
	case err != nil:
		return s.tell(nil, statusSetup, fmt.Errorf("%w\nsee sandbox exec -h", err))
	}
	s.hintTerminal()
	a, err := execute(ctx, s)
	switch {
	case err != nil:
		return s.tell(nil, statusSetup, err)
	case a.Reason != "":
		return s.tell(a.Result, a.Status, errors.New(a.Reason))
	}
	return s.tell(a.Result, a.Status, nil)
}

// parseExec turns the arguments of "sandbox exec" into settings, as parse does.
func parseExec(args []string) (*settings, error) {
	s := &settings{}
	rest, wrong, err := s.parseFlags(args, func(f runFlag) error {
		if ofExec(f) {
			return nil
		}
		return errors.New("it belongs to the run: give it to sandbox run")
	})
	if err != nil {
		return nil, err
	}
	if len(rest) == 0 {
		return s, s.allWrong(append(wrong, errors.New("no name of a run is given")))
	}
	s.name, s.command = rest[0], rest[1:]
	if err := named.Check(s.name); err != nil {
		wrong = append(wrong, err)
	}
	if len(s.command) > 0 && s.command[0] == "--" {
		s.command = s.command[1:]
	} else if len(s.command) > 0 && strings.HasPrefix(s.command[0], "-") {
		wrong = append(wrong, fmt.Errorf("%s comes after the name: flags are before it, and a command after --", s.command[0]))
	}
	if len(s.command) == 0 {
		wrong = append(wrong, errors.New("no command is given"))
	} else {
		s.add(sandbox.WithCommand(s.command[0], s.command[1:]...))
	}
	return s, s.allWrong(wrong)
}
