package cli

// The flags of "sandbox run", some of which "sandbox exec" has too. Every flag becomes an option of
// the library. parse.go parses command lines; values.go, paths.go, networks.go and wall.go the
// flags' values.

import (
	"fmt"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
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
	user    string // the value of -user
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
	{"user", "UID[:GID]", "ids inside (default 1000:1000; GID is UID if not given); with -image a user of its, by name or number", "WithUser", user},
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
	{"wall", "NAME", "what makes the outer container: " + strings.Join(spec.Walls(), ", ") + "; all but the first two must be installed, and all but runc of these take root", "CellRuntime", wall},
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
