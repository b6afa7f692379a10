// Package sandbox runs a command as an isolated worker process: in Linux namespaces of its own,
// under cgroup limits, on a root file system of its own. Nothing has to be installed, configured or
// called in main.
//
//	out, err := sandbox.New(
//		sandbox.WithCommand("python3", "-c", "print(6*7)"),
//		sandbox.WithMemory(64*sandbox.MiB),
//		sandbox.WithTimeout(2*time.Second),
//	).Output(ctx)
//
// # What a run may do
//
// By default a run has no network but its own loopback, no capability, no way to gain any, Docker's
// seccomp filter, at most 512 processes, the user sandbox (1000:1000), a read-only root that shows
// the host's programs and libraries and nothing else of it, and small writable file systems at
// /tmp, /dev/shm and its home directory. Options widen or narrow that.
//
// # How it works
//
// The first run of a process boots a cell: a container that holds nothing but a small copy of this
// program, the fork server. libcontainer makes it, or in a program without cgo this package. Every
// run is a clone of the fork server, in fresh namespaces nested in the cell's. A run costs the same
// however large this process is, and whatever happens to this process, nothing of a run outlives
// it.
//
// # What it needs
//
// Linux 5.10 or later, and root or a machine that lets ordinary users make user namespaces. Check
// reports what this machine can do. On other systems every call fails with an error that
// wraps errors.ErrUnsupported.
package sandbox

import (
	"context"
	"errors"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// Sandbox describes how to run a command. It is immutable and safe for concurrent use; each Run or
// Start makes a new run from it. The zero Sandbox is what New returns without options.
type Sandbox struct{ is *described }

func (s *Sandbox) it() *described {
	if s.is == nil {
		return New().is
	}
	return s.is
}

// New describes a sandbox. It never fails and does nothing else: Run, Start and Explain report
// wrong options, all of them in one error, as OptionError describes.
func New(opts ...Option) *Sandbox {
	c := spec.Defaults()
	apply(&c, opts)
	return &Sandbox{describe(c)}
}

// With returns a copy of the sandbox to which the options are applied. The receiver is unchanged.
func (s *Sandbox) With(opts ...Option) *Sandbox {
	c := s.it().Spec.Clone()
	apply(&c, opts)
	return &Sandbox{s.it().With(c)}
}

func apply(c *spec.Spec, opts []Option) {
	for _, opt := range opts {
		opt.Apply(c)
	}
}

// Run starts a run and waits for its end.
//
// The error is nil if the command exited with status 0; an *ExitError, with the Result, if it ended
// otherwise or was ended by a limit; and something else, with no Result, if it could not be
// started: the joined errors of wrong options, in each of which errors.As finds an *OptionError, or
// a *SetupError. If the command is missing or not executable, errors.Is(err, fs.ErrNotExist) or
// fs.ErrPermission holds for that. Cancelling ctx kills the run; then errors.Is(err, ctx.Err()) and
// errors.Is(err, context.Cause(ctx)) hold. What only the Process of Start can use, as
// WithStdinPipe, is a wrong option.
func (s *Sandbox) Run(ctx context.Context) (*Result, error) {
	if err := s.it().CheckAlone("Run"); err != nil {
		return nil, err
	}
	p, err := s.Start(ctx)
	if err != nil {
		return nil, err
	}
	return p.Wait()
}

// Start starts a run and returns as soon as the command has been executed. The caller must call
// Wait. The errors are those of Run.
func (s *Sandbox) Start(ctx context.Context) (*Process, error) {
	if start, ok := s.it().Spec.Supervision.Start.(func(context.Context, *Sandbox) (*Process, error)); ok {
		return start(ctx, s.With(func(c *spec.Spec) { c.Supervision.Start = nil }))
	}
	r, err := s.it().Start(ctx)
	if err != nil {
		return nil, err
	}
	return &Process{r: r}, nil
}

// Prepare waits until all runs that WithPrepared asks for are prepared. The sandbox needs no
// command for this. The errors are those of Run.
func (s *Sandbox) Prepare(ctx context.Context) error { return s.it().Prepare(ctx) }

// Output does what Run does and returns the command's standard output, all of which is in memory:
// WithOutputLimit bounds it. If WithStderr is not set, an *ExitError holds the beginning and the
// end of the standard error. The Result of a command that exited with status 0 is to be had by Run
// with WithStdout.
func (s *Sandbox) Output(ctx context.Context) ([]byte, error) {
	if err := s.it().CheckAlone("Output"); err != nil {
		return nil, err
	}
	if s.it().Spec.Streams.Stdout != nil {
		return nil, fault.Option("WithStdout", "is set already: leave it out for Output, which returns what it would get")
	}
	var stdout stdio.Buffer
	opts := []Option{WithStdout(&stdout)}
	var stderr *stdio.PrefixSuffix
	if s.it().Spec.Streams.Stderr == nil {
		stderr = &stdio.PrefixSuffix{N: 32 << 10}
		opts = append(opts, WithStderr(stderr))
	}
	_, err := s.With(opts...).Run(ctx)
	var exit *ExitError
	if stderr != nil && errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput does what Run does and returns the command's standard output and standard error as
// one, in the order in which they were written.
func (s *Sandbox) CombinedOutput(ctx context.Context) ([]byte, error) {
	if err := s.it().CheckAlone("CombinedOutput"); err != nil {
		return nil, err
	}
	var errs []error
	for _, o := range []struct {
		option string
		isSet  bool
	}{{"WithStdout", s.it().Spec.Streams.Stdout != nil}, {"WithStderr", s.it().Spec.Streams.Stderr != nil}} {
		if o.isSet {
			errs = append(errs, fault.Option(o.option, "is set already: leave it out for CombinedOutput, which returns what it would get"))
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	var both stdio.Buffer
	_, err := s.With(WithStdout(&both), WithStderr(&both)).Run(ctx)
	return both.Bytes(), err
}

// Explain returns what a run of this sandbox does from its clone to its command, as compiled for
// this machine, in one readable line per system call. It starts nothing and needs no privilege.
func (s *Sandbox) Explain() (string, error) { return s.it().Explain() }

// Shutdown ends the default cells with every run in them and waits until nothing of them is left:
// no process, mount, cgroup or file. A later Run boots a new one. If ctx ends first, what is left
// is killed at once.
//
// Not calling it leaves nothing running either: the end of this process, of whatever kind, ends its
// cells. What then remains are empty directories (cgroups, state), which the next process to use
// this package removes.
func Shutdown(ctx context.Context) error { return shutdown(ctx) }
