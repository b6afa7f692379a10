package cli

// sandbox run: from the command line to the run and its exit status.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
)

// run runs a command as the arguments say and returns the exit status.
func run(ctx context.Context, args []string) int {
	s, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(runUsage())
		return 0
	case err != nil:
		return s.tell(nil, statusSetup, fmt.Errorf("%w\nsee sandbox run -h", err))
	}
	done, err := s.open(ctx)
	if err != nil {
		return s.tell(nil, statusSetup, err)
	}
	defer done()
	if s.explain {
		return explain(s)
	}
	s.hintTerminal()
	session, err := newSession(s)
	if err != nil {
		return s.tell(nil, statusSetup, err)
	}
	do := onStreams
	if s.tty {
		do = onTerminal
	}
	result, err := do(ctx, s, session.serve)
	status, reason := outcome(s, result, err, context.Cause(ctx))
	session.end(status, reason)
	if s.network != nil {
		_ = s.network.Close() // all is told then
	}
	return s.tell(result, status, reason)
}

// onStreams runs the command with this program's streams.
func onStreams(ctx context.Context, s *settings, started func(*sandbox.Process)) (*sandbox.Result, error) {
	opts := s.opts
	if !s.hold { // which has no command that could have them
		more, copied, err := streams([3]*os.File{os.Stdin, os.Stdout, os.Stderr})
		if err != nil {
			return nil, err
		}
		defer copied()
		opts = append(opts, more...)
	}
	p, err := sandbox.New(opts...).Start(ctx)
	if err != nil {
		return nil, err
	}
	started(p)
	return p.Wait()
}

// shells are those that job control and lines to edit are expected of.
var shells = []string{"sh", "ash", "bash", "dash", "fish", "ksh", "zsh"}

// hintTerminal prints on stderr that a shell which somebody is about to type to has no terminal of
// its own: the one that it gets as its streams controls this program's session.
func (s *settings) hintTerminal() {
	if s.tty || s.json || len(s.command) == 0 || !slices.Contains(shells, path.Base(s.command[0])) {
		return
	}
	for _, arg := range s.command[1:] {
		if !strings.HasPrefix(arg, "-") { // a script, or the commands of -c
			return
		}
	}
	if isTerminal(os.Stdin) && isTerminal(os.Stdout) && isTerminal(os.Stderr) {
		complain(errors.New("this terminal does not control the shell: no job control, and ^C ends it; -t gives it one of its own"))
	}
}

// tell prints on stderr why the status is not the command's own, if so, and what the run used, if
// asked for. It returns the status.
func (s *settings) tell(result *sandbox.Result, status int, reason error) int {
	if s.json {
		out := outcomeOf(result, status, reason, s.usage)
		out.Refusals = s.refused.json()
		out.Denied = s.denied.list()
		writeJSON(os.Stderr, out)
		return status
	}
	for _, r := range s.refused.list() {
		complain(errors.New(r.text()))
	}
	for _, d := range s.denied.list() {
		complain(errors.New(d.text()))
	}
	if reason != nil {
		complain(reason)
	}
	if s.usage && result != nil {
		complain(errors.New(formatUsage(result.Usage)))
	}
	return status
}

// explain prints what a run would do.
func explain(s *settings) int {
	text, err := sandbox.New(s.opts...).Explain()
	if err != nil {
		return s.tell(nil, statusSetup, flagNames(err))
	}
	fmt.Print(text)
	return 0
}

// formatUsage describes in a few lines what a run used.
func formatUsage(u sandbox.Usage) string {
	short := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	refused := ""
	if u.PIDsRefused > 0 {
		refused = fmt.Sprintf(", refused %d", u.PIDsRefused)
	}
	text := fmt.Sprintf("wall %v, user %v, system %v, throttled %v\nmemory peak %s, OOM kills %d, processes peak %d%s\nblock devices: read %s, written %s",
		short(u.Wall), short(u.UserCPU), short(u.SystemCPU), short(u.Throttled),
		formatSize(u.MemoryPeak), u.OOMKills, u.PIDsPeak, refused,
		formatSize(u.ReadBytes), formatSize(u.WriteBytes))
	var none, some []string
	for _, name := range u.Uncounted {
		if slices.Contains([]string{"UserCPU", "SystemCPU", "MemoryPeak"}, name) {
			some = append(some, name) // Usage.Uncounted
		} else {
			none = append(none, name)
		}
	}
	if len(none) > 0 {
		text += "\nnot counted here: " + strings.Join(none, ", ")
	}
	if len(some) > 0 {
		text += "\nof the command and what it waited for alone: " + strings.Join(some, ", ")
	}
	return text
}
