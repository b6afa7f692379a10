package sandbox

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Option changes one thing of a sandbox. Where an option takes a single value
// the last one given counts; With says of each whether it adds instead.
//
// A limit of 0 is as if its option were not given, also where an earlier one set a
// limit, so that what a program was configured with can be passed on as it is.
type Option func(*config)

// config is what the options have set. It holds no resource and is validated
// as a whole, once nothing changes it any more.
type config struct {
	command []string
	env     []string
	dir     string
	dirOf   string // the image whose working directory that is
	noWhy   error  // of an image: why there is no command
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	extra   []*os.File

	timeout     *time.Duration
	waitDelay   *time.Duration
	outputLimit *int64
	prepared    int
	cell        *Cell
	ownCell     bool                                              // cell was given, if only a nil one
	around      func(context.Context, *Sandbox) (*Process, error) // in place of Start: package hook

	cgroup    cgroupConfig
	namespace namespaceConfig
	root      rootConfig
	security  securityConfig
	fn        funcConfig
}

type securityConfig struct {
	capabilities []string
	seccomp      *specs.LinuxSeccomp
	noSeccomp    bool
	setID        bool
}

func defaults() config {
	return config{
		namespace: namespaceConfig{hostname: "sandbox", uid: 1000, gid: 1000},
		root:      rootConfig{rootfs: HostRootfs()},
	}
}

// clone copies what a later option may append to.
func (c config) clone() config {
	c.env = slices.Clip(c.env)
	c.extra = slices.Clip(c.extra)
	c.root.mounts = slices.Clip(c.root.mounts)
	c.security.capabilities = slices.Clip(c.security.capabilities)
	c.cgroup.rlimits = maps.Clone(c.cgroup.rlimits)
	return c
}

// samePlans tells whether two configurations prepare runs with the same programs. They may differ in the command and all
// that goes with it, files among it, in timeouts and cgroup limits, and in the cell.
func (c *config) samePlans(o *config) bool {
	sameRoot := c.root.rootfs.same(o.root.rootfs) && equalPointed(c.root.writable, o.root.writable) && c.root.upper == o.root.upper &&
		c.root.ifCan == o.root.ifCan && slices.Equal(c.root.dirs, o.root.dirs) && c.root.samePrepared(&o.root)
	return sameRoot && c.namespace.same(&o.namespace) && c.security.same(&o.security)
}

// sameCommand tells whether two configurations execute their commands with the same program. They may differ in all that
// is not compiled into that one, the streams among it.
func (c *config) sameCommand(o *config) bool {
	return c.root.sameWithCommand(&o.root) && slices.Equal(c.command, o.command) && slices.Equal(c.env, o.env) && c.dir == o.dir &&
		len(c.extra) == len(o.extra) && maps.Equal(c.cgroup.rlimits, o.cgroup.rlimits) && c.security.same(&o.security)
}

func (s *securityConfig) same(o *securityConfig) bool {
	return slices.Equal(s.capabilities, o.capabilities) && s.seccomp == o.seccomp && s.noSeccomp == o.noSeccomp && s.setID == o.setID
}

// samePrepared tells whether the runs prepared for one can serve the other, if they have the same
// plans.
func (c *config) samePrepared(o *config) bool {
	return c.prepared == o.prepared && c.cgroup.same(&o.cgroup) && c.cell == o.cell && c.ownCell == o.ownCell
}

// limit is what an option sets for n: nothing for 0.
func limit[T int | int64 | uint64 | float64 | time.Duration](n T) *T {
	if n == 0 {
		return nil
	}
	return &n
}

func equalPointed[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// WithCommand sets the program and its arguments. A name without a slash is
// looked up in the PATH of the run's environment, inside the run's root; one
// with a slash is taken relative to WithDir. Required.
func WithCommand(name string, args ...string) Option {
	return func(c *config) { c.command, c.noWhy = append([]string{name}, args...), nil }
}

// WithEnv adds variables in the form "KEY=value" to the environment; a later
// value of a key replaces an earlier one. Nothing of this process's own
// environment is passed on. Default: PATH, HOME=/home/sandbox, USER=sandbox,
// LANG=C.UTF-8.
func WithEnv(kv ...string) Option {
	return func(c *config) { c.env = append(c.env, kv...) }
}

// WithDir sets the working directory, an absolute path inside the run's root.
// Default: the user's home directory, /home/sandbox.
func WithDir(dir string) Option { return func(c *config) { c.dir, c.dirOf = dir, "" } }

// WithStdin sets the standard input. An *os.File is handed to the run as it
// is; anything else is copied through a pipe, until it or the run ends. Wait
// does not wait for a Read that blocks after the run has ended. The run may open
// it again, as /dev/stdin, as far as WithStdout says. Default: /dev/null.
func WithStdin(r io.Reader) Option { return func(c *config) { c.stdin = r } }

// WithStdout sets the standard output. An *os.File is handed to the run as it
// is, unless WithOutputLimit needs to count; to anything else what the run
// writes is copied through a pipe. Where stdout and stderr are the same
// comparable value, both write to the same pipe. WithWaitDelay limits how long a
// Write may block after the run has ended. Default: /dev/null.
//
// The run may open a pipe again, as /dev/stdout, for writing only; so also one
// of os.Pipe that this process's user owns, whose permissions are widened for
// that. It may open a file or terminal again if others than the owner may, since
// its user is another one, and no socket. Where it must, and the file is
// private, hand over a writer that is no *os.File: struct{ io.Writer }{f}.
func WithStdout(w io.Writer) Option { return func(c *config) { c.stdout = w } }

// WithStderr sets the standard error, in the same way as WithStdout.
func WithStderr(w io.Writer) Option { return func(c *config) { c.stderr = w } }

// WithExtraFiles adds open files that the run gets as descriptors 3, 4 and so
// on. What they give access to, the run has access to: a directory is a way to all of the file system that it is in. Through /proc/self/fd it may open them
// again, as the standard streams: where all runs have the caller's id (an ordinary user without
// subordinate ids) also for writing what was opened for reading.
func WithExtraFiles(files ...*os.File) Option {
	return func(c *config) { c.extra = append(c.extra, files...) }
}

// WithTimeout limits the run's duration, counted from the execution of the
// command. A run that takes longer is killed: ErrTimeout. It does not limit how
// long a writer of this process takes for the output that is left then:
// WithWaitDelay does. Default, and 0: none.
func WithTimeout(d time.Duration) Option { return func(c *config) { c.timeout = limit(d) } }

// WithWaitDelay limits how long Wait waits, once nothing of the run lives any
// more, for the writers of WithStdout and WithStderr to take what is left of
// its output, which is no more than a pipe holds. It applies however the run
// ended: by itself, by a limit, or with its context. When the time is over, the
// pipes are closed, the rest of the output is lost, and Wait returns the run's
// *ExitError, or, if it exited with status 0, an error for which
// errors.Is(err, ErrWaitDelay) holds.
//
// A Write that has begun can't be interrupted: it goes on in a goroutine of its
// own until it returns, and no other one follows it. The caller must not use
// what it writes to before that.
//
// Default: 10 s, so that a writer that is stuck, such as a connection whose other
// end reads nothing, holds neither the caller nor a Pool's slot for ever. 0 waits
// without a limit, as os/exec does by default.
func WithWaitDelay(d time.Duration) Option { return func(c *config) { c.waitDelay = &d } }

const defaultWaitDelay = 10 * time.Second

// delay is how long to wait for writers, 0 for as long as they take.
func (c *config) delay() time.Duration {
	if c.waitDelay == nil {
		return defaultWaitDelay
	}
	return *c.waitDelay
}

// WithOutputLimit limits what the run may write to its standard output and
// standard error together, in bytes. A run that writes more is killed:
// ErrOutputLimit; the first bytes up to the limit are delivered. Default, and 0: none.
func WithOutputLimit(bytes int64) Option { return func(c *config) { c.outputLimit = limit(bytes) } }

// WithPrepared keeps n runs prepared, 0 to 1000: all of a run is there but its command, and
// starting one takes little longer than a process of os/exec. Each serves once, and is then
// replaced in the background; a start that finds none prepares its own.
//
// The second start begins to prepare, or Prepare does. Sandboxes derived with With share the runs
// as long as they differ only in the command, its arguments, environment, directory and streams, in
// WithExtraFiles, WithTimeout, WithWaitDelay, WithOutputLimit and WithRlimit, in what is in the
// files of WithFile, and in whole files that lie on a file system in memory, such as /tmp,
// /home/sandbox and those of WithTmpfs. Others have n of their own. Files that are bound are looked up again at every start; what has
// been replaced since is not used.
//
// Runs are prepared one after the other, for all sandboxes of the process, each after a pause as
// long as the last one took, 5 ms at least: that takes at most half of one CPU. Only Prepare, for
// which somebody waits, makes no pauses. A run that waits takes nothing but memory
// (docs/BENCHMARKS.md has figures) and a dozen descriptors of this process. All of them are ended
// by Shutdown or the cell's Close, when no sandbox that could use them is left, and when none was
// used for a minute. Default: 0.
func WithPrepared(n int) Option { return func(c *config) { c.prepared = n } }

const maxPrepared = 1000

// WithCell runs in the given cell instead of this process's default one.
func WithCell(cell *Cell) Option { return func(c *config) { c.cell, c.ownCell = cell, true } }

// validate reports everything that is wrong without looking at the machine
// beyond its number of CPUs.
func (c *config) validate() []error {
	errs := c.checkCommand()
	errs = append(errs, c.cgroup.check()...)
	errs = append(errs, c.namespace.check()...)
	errs = append(errs, c.root.check()...)
	errs = append(errs, c.security.check()...)
	errs = append(errs, c.checkHostIDs()...)
	return append(errs, c.fn.check()...)
}

func (c *config) checkCommand() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, optionError(option, format, args...))
	}
	if c.noWhy != nil {
		errs = append(errs, c.noWhy)
	} else if len(c.command) == 0 || c.command[0] == "" {
		bad("WithCommand", "no command is set")
	}
	for _, s := range c.command {
		if strings.IndexByte(s, 0) >= 0 {
			bad("WithCommand", "%q contains a zero byte", s)
		}
	}
	for _, kv := range c.env {
		if strings.IndexByte(kv, 0) >= 0 {
			bad("WithEnv", "%q contains a zero byte", kv)
		} else if strings.IndexByte(kv, '=') < 1 {
			bad("WithEnv", "%q does not have the form KEY=value", kv)
		}
	}
	if c.dir != "" {
		if err := checkPath(c.dir); err != nil {
			bad("WithDir", "%w", err)
		}
	}
	if c.timeout != nil && *c.timeout <= 0 {
		bad("WithTimeout", "%v is not a positive duration", *c.timeout)
	}
	if c.waitDelay != nil && *c.waitDelay < 0 {
		bad("WithWaitDelay", "%v is negative: 0 waits without a limit", *c.waitDelay)
	}
	if c.outputLimit != nil && *c.outputLimit <= 0 {
		bad("WithOutputLimit", "%d is not a positive number of bytes", *c.outputLimit)
	}
	if c.prepared < 0 || c.prepared > maxPrepared {
		bad("WithPrepared", "%d is not between 0 and %d", c.prepared, maxPrepared)
	}
	if c.prepared > 0 && c.root.hasUpper {
		bad("WithPrepared", "with WithScratchRoot, which one run at a time can have: leave one of the two out")
	}
	if len(c.extra) > maxExtraFiles {
		bad("WithExtraFiles", "%d files, at most %d are possible", len(c.extra), maxExtraFiles)
	}
	for i, f := range c.extra {
		if f == nil {
			bad("WithExtraFiles", "file %d is nil", i)
		}
	}
	for _, s := range c.streams() {
		if s.file == nil {
			bad(s.option, "the file is nil: leave the option out for /dev/null")
		}
	}
	if c.ownCell && !c.cell.made() {
		bad("WithCell", "the cell was not made by NewCell: look at the error of that")
	}
	return errs
}

// stream is a standard stream that is a file.
type stream struct {
	option string
	file   *os.File
}

func (c *config) streams() (list []stream) {
	for _, s := range []struct {
		option string
		value  any
	}{{"WithStdin", c.stdin}, {"WithStdout", c.stdout}, {"WithStderr", c.stderr}} {
		if f, ok := s.value.(*os.File); ok {
			list = append(list, stream{s.option, f})
		}
	}
	return list
}

// checkFiles looks whether the files that the run is to have are still open.
func (c *config) checkFiles() (errs []error) {
	list := c.streams()
	for _, f := range c.extra {
		list = append(list, stream{"WithExtraFiles", f})
	}
	for _, s := range list {
		if s.file == nil {
			continue // refused by validate
		}
		if _, err := s.file.Stat(); err != nil {
			errs = append(errs, optionError(s.option, "the file can't be used: %w", err))
		}
	}
	return errs
}

// maxExtraFiles keeps the descriptors of a run within one message.
const maxExtraFiles = 100

// checkPath accepts absolute paths in their shortest form.
func checkPath(p string) error {
	switch {
	case strings.IndexByte(p, 0) >= 0:
		return fmt.Errorf("%q contains a zero byte", p)
	case !path.IsAbs(p):
		return fmt.Errorf("%q is not an absolute path", p)
	case len(p) > 4095: // PATH_MAX
		return fmt.Errorf("a path of %d bytes is longer than 4095", len(p))
	}
	return nil
}

const (
	homeDir     = "/home/sandbox"
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// environ is the run's environment: the defaults, overridden by WithEnv.
func (c *config) environ() []string {
	env := []string{"PATH=" + defaultPath, "HOME=" + homeDir, "USER=" + userName, "LANG=C.UTF-8"}
	at := map[string]int{}
	for i, kv := range env {
		at[kv[:strings.IndexByte(kv, '=')]] = i
	}
	for _, kv := range c.env {
		key := kv[:strings.IndexByte(kv, '=')]
		if i, ok := at[key]; ok {
			env[i] = kv
		} else {
			at[key] = len(env)
			env = append(env, kv)
		}
	}
	return env
}

// lookupList is the places where the command may be, in order.
func lookupList(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, kv := range env {
		if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
			for _, dir := range strings.Split(dirs, ":") {
				if !path.IsAbs(dir) {
					continue // as os/exec: the current directory is never searched
				}
				list = append(list, path.Join(dir, name))
			}
		}
	}
	return list
}
