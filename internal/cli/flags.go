package cli

// The flags of "sandbox run", some of which "sandbox exec" has too, and how they are parsed. Every
// flag becomes an option of the library. values.go parses their values.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// settings holds what the command line asks for.
type settings struct {
	opts    []sandbox.Option
	explain bool
	usage   bool
	json    bool
	refused *refusals // of -explain-refusals
	tty     bool      // a terminal of its own, connected to this program's
	layers  []string  // of the root, the lowest first
	image   string
	command []string
	net     string                  // the value of -net
	private []sandbox.NetworkOption // of -allow, -inject and -bandwidth
	network *sandbox.PrivateNetwork // made of these, or nil
	denied  denied                  // what it refused
	publish bool
	wall    string // who makes the cell, "" for the library itself
	cell    []sandbox.CellOption
	name    string   // of the run, for "sandbox exec"
	hold    bool     // no command of its own
	env     []string // of -env
	given   []string // the other flags, as they can be parsed again

	// Used in the reason of a run's end; everything else is in opts.
	memory, output   int64
	timeout, cpuTime time.Duration
}

func (s *settings) add(o sandbox.Option) { s.opts = append(s.opts, o) }

// runFlag is a flag of "sandbox run".
type runFlag struct {
	name   string
	arg    string // what stands for its value in the help, "" if it takes none
	help   string
	option string // the library's option that it stands for, which the library's errors name
	set    func(s *settings, value string) error
}

var limitFlags = []runFlag{
	{"memory", "SIZE", "memory of all processes together, such as 64m", "WithMemory", size(func(s *settings, n int64) {
		s.memory = n
		s.add(sandbox.WithMemory(n))
	})},
	{"swap", "SIZE", "swap on top of -memory (default 0)", "WithSwap", size(func(s *settings, n int64) { s.add(sandbox.WithSwap(n)) })},
	{"cpus", "N", "CPUs, such as 0.5 for half of one", "WithCPUs", cpus},
	{"cpu-weight", "N", "share of busy CPUs in proportion to others, 1 to 10000 (default 100)", "WithCPUWeight", cpuWeight},
	{"cpuset", "LIST", "CPUs to run on, such as 0-2,5", "WithCPUSet", text(sandbox.WithCPUSet)},
	{"pids", "N", "processes and threads (default 512)", "WithPIDs", pids},
	{"cpu-time", "TIME", "CPU time of all processes together, such as 500ms or 10s", "WithCPUTime", duration(func(s *settings, d time.Duration) {
		s.cpuTime = d
		s.add(sandbox.WithCPUTime(d))
	})},
	{"timeout", "TIME", "duration of the run, such as 2s or 1m30s", "WithTimeout", duration(func(s *settings, d time.Duration) {
		s.timeout = d
		s.add(sandbox.WithTimeout(d))
	})},
	{"stop-signal", "NAME:TIME", "at a timeout, or SIGTERM, SIGINT or SIGHUP to this program, send a signal and kill after TIME, such as TERM:10s", "WithStopSignal", stopSignal},
	{"wait-delay", "TIME", "how long to wait, after the end, for who takes the output (default 10s; 0s: no limit)", "WithWaitDelay",
		duration(func(s *settings, d time.Duration) { s.add(sandbox.WithWaitDelay(d)) })},
	{"output-limit", "SIZE", "bytes that may be written to stdout and stderr together", "WithOutputLimit", size(func(s *settings, n int64) {
		s.output = n
		s.add(sandbox.WithOutputLimit(n))
	})},
	{"rlimit", "NAME=SOFT[:HARD]", "resource limit of getrlimit(2), such as nofile=64; \"unlimited\" is a value*", "WithRlimit", rlimit},
	{"cgroup-parent", "PATH", "cgroup below which the run's is made", "WithCgroupParent", cgroupParent},
}

var fileFlags = []runFlag{
	{"bind", "SRC[:DST]", "show SRC at DST, writable; without DST, at its own path*", "WithBind", bind(sandbox.WithBind)},
	{"ro-bind", "SRC[:DST]", "the same, read-only*", "WithReadOnlyBind", bind(sandbox.WithReadOnlyBind)},
	{"tmpfs", "DST:SIZE", "an empty file system in memory at DST*", "WithTmpfs", tmpfs},
	{"file", "DST=SRC", "a copy of the file SRC at DST*", "WithFile", file},
	{"rootfs", "DIR", "use DIR as the root, not the host's programs and libraries; several are layers, the lowest first*", "WithRootfs", rootfs},
	{"image", "REF", "use a container image as the root, and its environment, user and entry point", "", image},
	{"writable-root", "SIZE", "keep changes of the root in memory, up to SIZE", "WithWritableRoot", size(func(s *settings, n int64) { s.add(sandbox.WithWritableRoot(n)) })},
}

var commandFlags = []runFlag{
	{"env", "NAME[=VALUE]", "add to the environment; without VALUE, the caller's*", "WithEnv", env},
	{"t", "", "give it a terminal of its own, connected to the one at hand", "WithTerminal", toggle(func(s *settings) { s.tty = true })},
	{"dir", "DIR", "working directory (default /home/sandbox)", "WithDir", text(sandbox.WithDir)},
	{"user", "UID[:GID]", "ids inside (default 1000:1000; GID is UID if not given)", "WithUser", user},
	{"groups", "GID,...", "supplementary groups inside (default none)", "WithGroups", groups},
	{"hostname", "NAME", "name of the machine (default sandbox)", "WithHostname", text(sandbox.WithHostname)},
	{"net", "none|new|host", "network: a loopback interface (default), the same in a namespace that no run was in before, or the host's", "WithNetwork", network},
	{"allow", "HOST:PORT[,PORT]", "let it connect to a host by its name, such as *.pypi.org:443, or to addresses, such as 10.2.0.0/16:8000-8100 or [fd00::1]:53/udp,ping; port * is all of TCP*", "AllowHost", allow},
	{"inject", "HOST=HEADER:VAR", "let it use http://HOST with a header set, which it does not see, to the variable VAR of this program; it goes out by TLS*", "InjectHeader", inject},
	{"bandwidth", "SIZE", "bytes per second each way between it and what -allow and -publish lead to", "Bandwidth", size(func(s *settings, n int64) { s.private = append(s.private, sandbox.Bandwidth(n)) })},
	{"publish", "[ADDR:]PORT:PORT[/udp]", "pass what comes to an address of this machine (default 127.0.0.1) on to a port of the run*", "WithPublish", publish},
	{"time-offset", "TIME", "move the monotonic and the boot clock, such as by 24h or -10s", "WithTimeOffset", duration(func(s *settings, d time.Duration) { s.add(sandbox.WithTimeOffset(d)) })},
	{"no-user-ns", "", "no user namespace: one wall less, and the host's ids; root only", "WithoutUserNamespace", toggle(noUserNamespace)},
	{"cap", "NAME", "keep a capability, such as NET_BIND_SERVICE*", "WithCapabilities", capability},
	{"seccomp", "FILE", "seccomp profile, the linux.seccomp object of an OCI configuration in JSON", "WithSeccomp", seccomp},
	{"set-id", "", "let it set set-uid and set-gid bits of files; else EPERM", "WithSetID", toggle(func(s *settings) { s.add(sandbox.WithSetID()) })},
	{"no-seccomp", "", "no seccomp filter", "WithoutSeccomp", toggle(func(s *settings) { s.add(sandbox.WithoutSeccomp()) })},
}

var otherFlags = []runFlag{
	{"wall", "NAME", "have a container runtime make the outer container: " + strings.Join(spec.Runtimes(), ", ") + "; root only", "CellRuntime", wall},
	{"name", "NAME", "a name, by which sandbox exec runs further commands in it", "", runName},
	{"hold", "", "run no command: it lives until a signal or a limit ends it, for sandbox exec", "WithHold", toggle(func(s *settings) {
		s.hold = true
		s.add(sandbox.WithHold())
	})},
	{"explain", "", "run nothing, list the system calls that a run makes", "", toggle(func(s *settings) { s.explain = true })},
	{"usage", "", "tell on stderr what the run used", "", toggle(func(s *settings) { s.usage = true })},
	{"explain-refusals", "", "print on stderr which system calls the seccomp filter refused, which paths were missing or denied, and what would allow them", "WithRefusals", toggle(explainRefusals)},
	{"json", "", "tell on stderr, as one line of JSON, how the run ended and, with -usage, what it used", "", toggle(func(s *settings) { s.json = true })},
}

// flagGroups lists all flags in the order of the help.
var flagGroups = []struct {
	title string
	flags []runFlag
}{
	{"limits", limitFlags},
	{"files", fileFlags},
	{"command", commandFlags},
	{"other", otherFlags},
}

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
	if err := s.join(); err != nil {
		wrong = append(wrong, err)
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

// Image is a container image that has been opened.
type Image interface {
	// Options returns the image's root and the other options that the image sets for its runs.
	Options() []sandbox.Option
	// Command runs the image's entry point with the given arguments, or with the image's own if
	// there are none.
	Command(args ...string) sandbox.Option
	Close() error
}

// OpenImage opens the image that -image names. It is nil in the command that does not know images.
var OpenImage func(ctx context.Context, ref string) (Image, error)

func image(s *settings, ref string) error {
	if OpenImage == nil {
		return errors.New("this command knows no images: use the one of go install github.com/cellkit/sandbox/image/cmd/sandbox@latest")
	}
	s.image = ref
	return nil
}

// open opens the image and makes the cell that the flags ask for.
func (s *settings) open(ctx context.Context) (done func(), err error) {
	closeImage, err := s.openImage(ctx)
	if err != nil || s.wall == "" {
		return closeImage, err
	}
	c, err := sandbox.NewCell(append(s.cell, sandbox.CellRuntime(s.wall))...)
	if err != nil {
		closeImage()
		return nil, flagNames(err)
	}
	s.add(sandbox.WithCell(c))
	return func() {
		if err := c.Close(); err != nil {
			complain(fmt.Errorf("cleaning up: %w", err))
		}
		closeImage()
	}, nil
}

// openImage puts the options of an image before those of the flags.
func (s *settings) openImage(ctx context.Context) (done func(), err error) {
	if s.image == "" {
		return func() {}, nil
	}
	img, err := OpenImage(ctx, s.image)
	if err != nil {
		return nil, fmt.Errorf("-image: %w", err)
	}
	s.opts = append(img.Options(), s.opts...)
	if !s.hold {
		s.add(img.Command(s.command...))
	}
	return func() { _ = img.Close() }, nil
}

// each returns the wrong options of a joined error one by one, and any other error unchanged.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || !errors.As(err, new(*sandbox.OptionError)) {
		return []error{err}
	}
	return joined.Unwrap()
}

// flagNames returns the library's error with flags instead of options.
func flagNames(err error) error {
	var all []error
	for _, err := range each(err) {
		if wrong, ok := err.(*sandbox.OptionError); ok {
			all = append(all, renamed{flagName(wrong.Option) + ": " + inFlags(wrong.Err.Error()), err})
		} else { // from an image, or a run that can't start
			all = append(all, renamed{inFlags(err.Error()), err})
		}
	}
	return errors.Join(all...)
}

// flagName returns the flag that stands for an option.
func flagName(option string) string {
	switch option {
	case "WithCommand":
		return "command" // which isn't a flag
	case "AllowCIDR":
		option = "AllowHost" // one flag is for both
	case "CellWithoutUserNamespace":
		option = "WithoutUserNamespace"
	case "CellCgroupParent":
		option = "WithCgroupParent"
	}
	for _, group := range flagGroups {
		for _, f := range group.flags {
			if f.option == option {
				return "-" + f.name
			}
		}
	}
	return option
}

// optionName matches the name of an option in the library's texts. It must begin a word, so that
// names in paths don't match.
var optionName = regexp.MustCompile(`(?m)(^(?:sandbox: )?|[ (])(With[A-Za-z]+|Cell(?:Runtime|WithoutUserNamespace|CgroupParent))`)

// inFlags returns a text of the library with flags instead of options: the reason of an error, or a
// remedy. The result is only printed.
func inFlags(text string) string {
	return optionName.ReplaceAllStringFunc(text, func(found string) string {
		m := optionName.FindStringSubmatch(found)
		return strings.TrimPrefix(m[1], "sandbox: ") + flagName(m[2])
	})
}

// renamed is an error with another text.
type renamed struct {
	text string
	error
}

func (r renamed) Error() string { return r.text }
func (r renamed) Unwrap() error { return r.error }

// runUsage returns the help of "sandbox run".
func runUsage() string {
	return "usage: sandbox run [flags] [--] command [args...]\n" + flagUsage(func(runFlag) bool { return true }) + usageEnd
}

const usageEnd = "\nSIZE is in bytes, or with k, m or g in KiB, MiB or GiB. The exit status is the command's own; 124: out of time,\n" +
	"125: could not be set up, 126: not executable, 127: not found, 128+N: ended by signal N, 137: out of memory,\n" +
	"153: too much output.\n"

// flagUsage returns the help of those flags that are to be shown.
func flagUsage(shown func(runFlag) bool) string {
	var b strings.Builder
	for _, group := range flagGroups {
		title := "\n" + group.title + "\n"
		for _, f := range group.flags {
			if !shown(f) {
				continue
			}
			help := f.help
			if h, ok := strings.CutSuffix(f.help, "*"); ok {
				help = h + "; repeatable"
			}
			fmt.Fprintf(&b, "%s  %-26s %s\n", title, strings.TrimSpace("-"+f.name+" "+f.arg), help)
			title = ""
		}
	}
	return b.String()
}
