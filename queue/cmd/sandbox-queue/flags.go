package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/cellkit/sandbox/internal/cli"
)

// errUsage is found by errors.Is in errors of wrong arguments.
var errUsage = errors.New("wrong usage")

// misuse returns the error of a wrong argument: its text names that, the reason and the remedy.
func misuse(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (e *usageError) Is(target error) bool { return target == errUsage }
func (e *usageError) Unwrap() error        { return e.error }

// anyNumber is of arguments that are words of a command or of a text.
const anyNumber = -1

// parse parses flags and returns the arguments, of which there must be least to most. what is how
// the usage names them. Flags may come after arguments too, but not after the first word of a
// COMMAND, which what has last: the flags from there on are the command's.
func (e *env) parse(args []string, least, most int, what string) ([]string, error) {
	e.flags.SetOutput(io.Discard) // errors are printed once
	e.flags.Usage = func() {}
	own := -1 // how many arguments are before the command
	if before, _, ok := strings.Cut(what, "[--] COMMAND"); ok {
		own = len(strings.Fields(before))
	}
	var rest []string
	for more := true; more; {
		if err := e.flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(e.out, "%s\n\n", e.usage(what))
			e.flags.SetOutput(e.out)
			e.flags.PrintDefaults()
			return nil, err
		} else if err != nil {
			return nil, e.wrongFlag(err)
		}
		left := e.flags.Args()
		more = len(left) > 0 && (len(rest) < own || own < 0 && !e.ended(args[:len(args)-len(left)]))
		if more {
			left, args = left[:1], left[1:]
		}
		rest = append(rest, left...)
	}
	switch {
	case len(rest) < least:
		return nil, misuse("an argument is missing: %s", e.usage(what))
	case most == 0 && len(rest) > 0:
		return nil, misuse("%q: %s takes flags alone: leave it out", rest[0], e.flags.Name())
	case most != anyNumber && len(rest) > most:
		return nil, misuse("%q is one argument too many: %s", rest[most], e.usage(what))
	}
	return rest, nil
}

// ended reports whether flags that were parsed have a -- as their end, not as the value of one.
func (e *env) ended(parsed []string) bool {
	for i := 0; i < len(parsed); i++ {
		if parsed[i] == "--" {
			return true
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(parsed[i], "-"), "=")
		if b, ok := e.flags.Lookup(name).Value.(interface{ IsBoolFlag() bool }); !hasValue && !(ok && b.IsBoolFlag()) {
			i++ // its value is the next one
		}
	}
	return false
}

func (e *env) usage(what string) string {
	return strings.TrimSpace("usage: " + e.flags.Name() + " [flags] " + what)
}

// invalid matches the errors of values in package flag.
var invalid = regexp.MustCompile(`^invalid (?:boolean )?value (".*") for (?:flag )?(-[^:]+): (.*)$`)

// wrongFlag returns an error of package flag with what would be right.
func (e *env) wrongFlag(err error) error {
	m := invalid.FindStringSubmatch(err.Error())
	if m == nil { // there is no such flag, or it has no value
		return misuse("%w: %s -h lists the flags", err, e.flags.Name())
	}
	kinds := map[string]string{"time.Duration": "a duration, such as 500ms, 90s or 1h30m", "int": "a whole number", "int64": "a whole number", "uint64": "a whole number that is not negative",
		"float64": "a number, such as 0.5", "bool": "true or false, or left out"}
	what := m[3]
	if v, ok := e.flags.Lookup(m[2][1:]).Value.(flag.Getter); ok {
		what = "must be " + kinds[fmt.Sprintf("%T", v.Get())]
	}
	return misuse("%s: %s: %s", m[2], m[1], what)
}

// sizeFlag adds a flag for a number of bytes, with the units that the command sandbox takes.
func (e *env) sizeFlag(bytes *int64, name, usage string) {
	e.flags.Func(name, usage, func(s string) error {
		n, err := cli.ParseSize(s)
		if err != nil {
			return errors.New("must be a size, such as 500k, 64m or 2g")
		}
		*bytes = n
		return nil
	})
}

// envFlag adds -env.
func (e *env) envFlag(vars *[]string) {
	e.flags.Func("env", "a variable, `KEY=value`; may be repeated", func(s string) error {
		if i := strings.Index(s, "="); i <= 0 {
			return errors.New("must be KEY=value")
		}
		*vars = append(*vars, s)
		return nil
	})
}

// positive is the error of a flag whose value is not 0 or more.
func positive[T int | int64 | float64 | time.Duration](name string, v T) error {
	if !(v >= 0) { // or NaN
		return misuse("%s: %v: must not be negative", name, v)
	}
	return nil
}

// inFlags has a text of the library name what the command line has in place of its options. The
// first that matches counts.
var inFlags = func() *strings.Replacer {
	pairs := []string{"sandbox: Task.Retry: a back-off of ", "-backoff: ", "a file of Inputs", "a file of the directory of -in", "the files of Inputs and Outputs", "those of -in and -out", "Submit returns one", "submit prints one",
		"the URL of its Listen", "the URL that it has printed"}
	for _, p := range [][2]string{{"queue.Lease", "-lease"}, {"queue.Dir", "-dir"}, {"queue.Listen", "-listen"}, {"queue.NKey", "-nkey"}, {"queue.Credentials", "-creds"}, {"queue.Replicas", "-replicas"},
		{"queue.Slots", "-slots"}, {"queue.Classes", "-classes"}, {"queue.WorkerName", "-name"}, {"queue.MaxLimits", "-max-memory or -max-cpus"}, {"queue.TakeServices", "-services"},
		{"Task.Retry", "-attempts"}, {"Task.Command", "COMMAND"}, {"Task.Class", "-class"}, {"Task.Key", "-key"}, {"Task.Tenant", "-tenant"}, {"Task.Delay", "-delay"}, {"Task.Stdin", "-stdin"},
		{"Task.Dir", "-dir"}, {"Task.Outputs", "-out"},
		{"Service.Name", "NAME"}, {"Service.Replicas", "-replicas"}, {"Service.Batch", "-batch"}, {"Service.Health", "-health"}, {"Scale", "REPLICAS"},
		{"Wait", "ID"}, {"Logs", "ID"}, {"Status", "ID"}, {"Requeue", "ID"}} {
		pairs = append(pairs, "sandbox: "+p[0]+": ", p[1]+": ")
	}
	return strings.NewReplacer(append(pairs, "pool.Memory, pool.CPUs", "-memory, -cpus")...)
}()
