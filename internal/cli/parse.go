package cli

// From a command line to settings, with everything that is wrong in it.

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// parse turns the arguments of "sandbox run" into settings. The error joins everything that is
// wrong, or is flag.ErrHelp.
func parse(args []string) (*settings, error) {
	s := &settings{}
	rest, wrong, err := s.parseFlags(args, func(runFlag) error { return nil })
	if err != nil {
		return nil, err
	}
	switch s.command = rest; {
	case s.hold && len(rest) > 0:
		wrong = append(wrong, fmt.Errorf("-hold: with the command %q: leave one of them out", rest[0]))
	case s.hold && s.name == "":
		wrong = append(wrong, errors.New("-hold: means nothing without -name"))
	case s.hold, s.image != "": // an image may have a command
	case len(rest) > 0:
		s.add(sandbox.WithCommand(rest[0], rest[1:]...))
	case len(wrong) == 0:
		wrong = append(wrong, errors.New("no command is given"))
	}
	for _, err := range []error{s.addUser(), s.join()} {
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	return s, s.allWrong(wrong)
}

// parseFlags parses the flags at the beginning of the arguments and returns the rest. refuse
// returns why a flag can't be used, or nil. wrong is everything that is wrong with the flags; the
// error is flag.ErrHelp.
func (s *settings) parseFlags(args []string, refuse func(runFlag) error) (rest []string, wrong []error, err error) {
	set := flag.NewFlagSet("sandbox", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, group := range flagGroups {
		for _, f := range group.flags {
			define(set, f, func(value string) {
				err := refuse(f)
				if err == nil {
					err = f.set(s, value)
				}
				if err != nil {
					wrong = append(wrong, &flagError{f, err})
				}
				if f.name != "env" {
					s.given = append(s.given, "-"+f.name+"="+value)
				}
			})
		}
	}
	// Parse stops at the first error. The rest is parsed for its errors.
	for rest = args; ; rest = set.Args() {
		err := set.Parse(rest)
		if err == nil {
			return set.Args(), wrong, nil
		}
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil, err
		}
		wrong = append(wrong, err)
	}
}

// allWrong joins what is wrong and what the library finds wrong besides.
func (s *settings) allWrong(wrong []error) error {
	if len(wrong) == 0 {
		return nil
	}
	return errors.Join(append(wrong, s.alsoWrong(wrong)...)...)
}

// join puts the run on a network of its own, if a flag needs one.
func (s *settings) join() error {
	if s.private == nil && !s.publish {
		return nil
	}
	n, err := sandbox.NewNetwork(append(s.private, sandbox.NetworkObserver(s.denied.add))...)
	if err != nil {
		err = flagNames(err)
		n, _ = sandbox.NewNetwork() // so that the other flags can be checked
	}
	s.network = n
	s.add(sandbox.WithNetwork(n.As("run")))
	if s.net != "" {
		err = errors.Join(err, errors.New("-net: with -allow, -inject or -publish, which give the run a network of its own: leave -net out"))
	}
	return err
}

// flagError reports a flag whose value can't be parsed.
type flagError struct {
	flag runFlag
	err  error
}

func (e *flagError) Error() string { return fmt.Sprintf("-%s: %v", e.flag.name, e.err) }
func (e *flagError) Unwrap() error { return e.err }

// define adds the flag to the set. note never fails, so a wrong value doesn't stop the parsing.
func define(set *flag.FlagSet, f runFlag, note func(value string)) {
	noted := func(value string) error { note(value); return nil }
	if f.arg == "" {
		set.BoolFunc(f.name, f.help, noted)
	} else {
		set.Func(f.name, f.help, noted)
	}
}

// alsoWrong returns the library's errors about the flags whose values could be parsed, so that all
// errors are reported at once. It leaves out errors about the command and about missing options,
// which only follow from the errors in wrong.
func (s *settings) alsoWrong(wrong []error) (more []error) {
	_, err := sandbox.New(s.opts...).Explain()
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	unread := map[string]bool{}
	for _, err := range wrong {
		var e *flagError
		if errors.As(err, &e) {
			unread[e.flag.option] = true
		}
	}
	for _, err := range each(err) {
		var option *sandbox.OptionError
		var needs fault.Needs
		switch {
		case errors.As(err, &option) && option.Option == "WithCommand":
		case errors.As(err, &needs) && unread[needs.Option]:
		default:
			more = append(more, flagNames(err))
		}
	}
	return more
}
