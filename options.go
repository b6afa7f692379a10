package sandbox

import (
	"io"
	"os"
	"syscall"
	"time"

	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// Option changes one thing of a sandbox. If an option that takes a single value is given more than
// once, the last one counts. Options that add up instead say so.
//
// A limit of 0 is as if its option were not given, even if an earlier one set a limit, so that a
// program can pass on its configuration as it is.
type Option func(*spec.Spec)

// Apply is for the packages of this module, which have options of their own: every type with this
// method is a function.Option.
func (o Option) Apply(c *spec.Spec) {
	if o != nil {
		o(c)
	}
}

// WithCommand sets the program and its arguments. A name without a slash is looked up in the PATH
// of the run's environment, inside the run's root; one with a slash is taken relative to WithDir.
// Required.
func WithCommand(name string, args ...string) Option {
	return func(c *spec.Spec) {
		c.Command.Argv, c.Command.Missing, c.Command.Hold = append([]string{name}, args...), nil, false
	}
}

// WithHold makes a run without a command of its own, in place of WithCommand: a session, in which
// Process.Exec executes commands. It lives until Close or Kill, or until its context ends or a
// limit ends it. What is left of its commands is reaped. It has no streams: each Exec has its own.
func WithHold() Option {
	return func(c *spec.Spec) { c.Command.Argv, c.Command.Missing, c.Command.Hold = nil, nil, true }
}

// WithEnv adds variables in the form "KEY=value" to the environment; a later value of a key
// replaces an earlier one. Nothing of this process's own environment is passed on. Default: PATH,
// HOME=/home/sandbox, USER=sandbox, LANG=C.UTF-8.
func WithEnv(kv ...string) Option {
	return func(c *spec.Spec) { c.Command.Env = append(c.Command.Env, kv...) }
}

// WithDir sets the working directory, an absolute path inside the run's root. Default: the user's
// home directory, /home/sandbox.
func WithDir(dir string) Option {
	return func(c *spec.Spec) { c.Command.Dir, c.Command.DirOf = dir, "" }
}

// WithStdin sets the standard input. An *os.File is handed to the run as it is; anything else is
// copied through a pipe, until it or the run ends. Wait does not wait for a Read that blocks after
// the run has ended. WithStdout says when the run may open it again, as /dev/stdin. Default:
// /dev/null.
func WithStdin(r io.Reader) Option { return func(c *spec.Spec) { c.Streams.Stdin = r } }

// WithStdout sets the standard output. An *os.File is handed to the run as it is, unless
// WithOutputLimit needs to count; for anything else, what the run writes is copied through a pipe.
// If stdout and stderr are the same comparable value, both write to the same pipe. WithWaitDelay
// limits how long a Write may block after the run has ended. Default: /dev/null.
//
// The run may open a pipe again, as /dev/stdout, for writing only; this includes a pipe of os.Pipe
// that this process's user owns, whose permissions are widened for that. It may open a file or
// terminal again only if users other than the owner may, since its user is another one, and it
// can't open a socket again. If it must open a private file again, pass a writer that is not an
// *os.File: struct{ io.Writer }{f}.
func WithStdout(w io.Writer) Option { return func(c *spec.Spec) { c.Streams.Stdout = w } }

// WithStderr sets the standard error, in the same way as WithStdout.
func WithStderr(w io.Writer) Option { return func(c *spec.Spec) { c.Streams.Stderr = w } }

// WithStdinPipe makes the standard input a pipe, whose other end Process.StdinPipe returns. It
// takes the place of WithStdin.
func WithStdinPipe() Option { return WithStdin(stdio.Pipe{Stream: 0}) }

// WithStdoutPipe makes the standard output a pipe, whose other end Process.StdoutPipe returns, for
// programs that read while the command runs. Unlike for WithStdout, nothing is copied, and nobody
// waits for the reader but the command: what is left when Wait closes the pipe is lost, so Wait
// must be called after the last Read, as in os/exec. With WithOutputLimit what is read is counted.
// It takes the place of WithStdout.
func WithStdoutPipe() Option { return WithStdout(stdio.Pipe{Stream: 1}) }

// WithStderrPipe makes the standard error a pipe, in the same way as WithStdoutPipe.
func WithStderrPipe() Option { return WithStderr(stdio.Pipe{Stream: 2}) }

// WithTerminal gives the command a terminal of the given size, one of the run's own devpts. It is
// the standard streams, and controls the command's session: job control, ^C and ^Z work, and TERM
// is xterm unless WithEnv says otherwise. Process.Terminal returns the other end. It can't be
// combined with WithStdin, WithStdout, WithStderr and WithOutputLimit. Default: none; a terminal of
// this process that is handed over as a stream does not control the command's session.
func WithTerminal(rows, cols uint16) Option {
	return func(c *spec.Spec) { c.Command.Terminal = spec.Terminal{On: true, Rows: rows, Cols: cols} }
}

// WithExtraFiles adds open files that the run gets as descriptors 3, 4 and so on. The run has
// access to everything that they give access to: a directory is a way to all of the file system
// that it is in. Through /proc/self/fd the run may open them again, like the standard streams; if
// all runs have the caller's id (an ordinary user without subordinate ids), also for writing what
// was opened for reading.
func WithExtraFiles(files ...*os.File) Option {
	return func(c *spec.Spec) { c.Streams.Extra = append(c.Streams.Extra, files...) }
}

// WithTimeout limits the run's duration, counted from the execution of the command. A run that
// takes longer is killed: ErrTimeout. It does not limit how long a writer of this process takes for
// the output that is left then: WithWaitDelay does. Default, and 0: none.
func WithTimeout(d time.Duration) Option { return func(c *spec.Spec) { c.Supervision.Timeout = d } }

// WithWaitDelay limits how long Wait waits, once nothing of the run lives any more, for the writers
// of WithStdout and WithStderr to take what is left of its output, which is no more than a pipe
// holds. It applies however the run ended: by itself, by a limit, or with its context. When the
// time is over, the pipes are closed, the rest of the output is lost, and Wait returns the run's
// *ExitError, or, if it exited with status 0, an error for which errors.Is(err, ErrWaitDelay)
// holds.
//
// A Write that has begun can't be interrupted: it goes on in a goroutine of its own until it
// returns, and no other one follows it. The caller must not use what it writes to before that.
//
// Default: 10 s, so that a writer that is stuck, such as a connection whose other end reads
// nothing, holds neither the caller nor a slot of a pool.Pool for ever. 0 waits without a limit, as
// os/exec does by default.
func WithWaitDelay(d time.Duration) Option { return func(c *spec.Spec) { c.Supervision.WaitDelay = d } }

// WithStopSignal ends a run gently: when its context or WithTimeout ends, or by Process.Close, the
// command gets the signal, and all of the run is killed after the grace, or when the command has
// ended. A signal is a syscall.Signal. Result has the command's own status then, and the Reason for
// which it was asked to end, and Wait returns an *ExitError even if the status is 0. Kill, limits
// of other kinds and the end of the cell still kill at once. A paused run is resumed for it.
//
// For Exec the grace ends with killing what the command has started, as Exec says. A run of
// WithHold has no command that could get it: there it is what its commands have without one of
// their own. Default, and with a grace of 0: all is killed at once. As in os/exec, the signal goes
// to the command alone, and one that it ignores has no effect but the delay. A command that is just
// being executed when its context ends gets the signal when it has been, and Start returns no
// error.
func WithStopSignal(sig os.Signal, grace time.Duration) Option {
	number := -1
	if s, ok := sig.(syscall.Signal); ok {
		number = int(s)
	}
	return func(c *spec.Spec) { c.Supervision.StopSignal, c.Supervision.StopGrace = number, grace }
}

// WithOutputLimit limits what the run may write to its standard output and standard error together,
// in bytes. A run that writes more is killed: ErrOutputLimit; the first bytes up to the limit are
// delivered. Default, and 0: none.
func WithOutputLimit(bytes int64) Option {
	return func(c *spec.Spec) { c.Supervision.OutputLimit = bytes }
}

// WithPrepared keeps n runs prepared, 0 to 1000. A prepared run is set up except for its command,
// and starting one takes little longer than starting a process with os/exec. Each is used once, and
// is then replaced in the background; a start that finds none prepares its own.
//
// Preparing begins with the second start, or with Prepare. Sandboxes derived with With share the
// runs as long as they differ only in the command, its arguments, environment, directory and
// streams, in WithExtraFiles, WithTimeout, WithWaitDelay, WithOutputLimit and WithRlimit, in what
// is in the files of WithFile, and in whole files that lie on a file system in memory, such as
// /tmp, /home/sandbox and those of WithTmpfs. Other sandboxes have n runs of their own. Bound files
// are looked up again at every start; a prepared run is not used if one of its files has been
// replaced since.
//
// Runs are prepared one after the other, for all sandboxes of the process, each after a pause as
// long as the last one took, 5 ms at least: that takes at most half of one CPU. Only Prepare, for
// which a caller waits, makes no pauses. A run that waits takes nothing but memory
// (docs/BENCHMARKS.md has figures) and a dozen descriptors of this process. All of them are ended
// by Shutdown or the cell's Close, when no sandbox that could use them is left, and when none was
// used for a minute. Default: 0.
func WithPrepared(n int) Option { return func(c *spec.Spec) { c.Place.Prepared = n } }

// WithCell starts runs in the given cell instead of a default one.
func WithCell(cell *Cell) Option {
	return func(c *spec.Spec) {
		c.Place.Cell, c.Place.HasCell = nil, true
		if cell.made() {
			c.Place.Cell = cell.is
		}
	}
}
