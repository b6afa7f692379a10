// Package function calls Go functions of this program in processes of their own, each isolated as a
// run of package sandbox is.
//
//	var thumbnail = function.New("thumbnail",
//		func(ctx context.Context, in Request) (Response, error) {
//			...
//		})
//
//	out, err := thumbnail.Call(ctx, in)
package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wire"
)

// Func is a Go function of this program that is called in a process of its own, isolated as a run
// is. New makes one. It is immutable and safe for concurrent use.
type Func[In, Out any] struct {
	*function
	in, out wire.Shape
}

// function is the part of a Func that does not depend on its types.
type function struct {
	name string
	base func() *sandbox.Sandbox          // returns the sandbox with the options
	own  func() (*sandbox.Sandbox, error) // returns the sandbox of calls without more options
	// types is why no value of In or Out could be passed.
	types error
}

// New makes a function that can be called in isolation. It must be called while packages are
// initialised, for a package-level variable:
//
//	var thumbnail = function.New("thumbnail",
//		func(ctx context.Context, in Request) (Response, error) {
//			...
//		})
//
// A call executes this program once more, in a run, and there New serves the function instead of
// returning: nothing of the package that comes after it is initialised there, and no init function
// of the package that calls it runs, nor does main, TestMain or a test. Imported packages are
// initialised first, as always. New must not depend on a condition that does not hold there: a
// process whose function is not registered ends as soon as main begins. Names are unique in a
// program: New panics if a name is taken, naming both places, and if it is called after main has
// begun.
//
// The function sees none of the host's files except for the libraries that this program is linked
// with, /dev, /proc, the made-up part of HostRootfs's /etc and empty directories to write to; no
// network; no variable of this process's environment. The options say what else it needs, and what
// it may use: they are those of a sandbox, except for WithCommand, and MessageLimit. If WithMemory
// is set, Go's own limit (GOMEMLIMIT) is nine tenths of it. A panic, os.Exit or a crash ends the
// function's process, not this one.
//
// Values are copied, as CBOR (RFC 8949): exported fields, to 32 levels, with 131,072 elements in an
// array or map; in an any, an integer becomes a uint64, or an int64 if it is negative, and a map a
// map[any]any. The fields of In and Out, or of the structs they point to, that are an *os.File are
// passed as descriptors; in the function's process they are closed when it has returned. Those that
// are an io.Reader are streams: they are copied while the function, or the caller, reads; see Call.
// Deeper fields are not passed. If an attacker takes over the process, an answer is whatever the
// attacker makes it: a value of its type, a stream without end, a file. A file of an answer is a
// regular one, a directory, or a device such as /dev/null: anything else (pipes, sockets,
// terminals, files of /proc) may keep its reader waiting for ever and is an error. It can be of any
// size, with holes, and change while it is read: read it with a bound, and do not map it.
func New[In, Out any](name string, fn func(context.Context, In) (Out, error), opts ...Option) *Func[In, Out] {
	alone := sync.OnceValue(func() *sandbox.Sandbox {
		return sandbox.New(func(c *spec.Spec) { c.Root.Rootfs = spec.Rootfs{Parts: spec.OwnProgram} })
	})
	f := &Func[In, Out]{with(name, alone, typesOf[In, Out](), opts), wire.ShapeOf(reflect.TypeFor[In]()), wire.ShapeOf(reflect.TypeFor[Out]())}
	register(name)
	if w, ok := asWorker(); ok && w.name == name {
		w.serve(max(f.in.Files(), f.out.Streams()), func(c *servedCall) (wire.Message, error) { return answer(c, f, fn) })
	}
	return f
}

// With returns a copy of the function to which the options are added. The receiver is unchanged.
func (f *Func[In, Out]) With(opts ...Option) *Func[In, Out] {
	return &Func[In, Out]{with(f.name, f.base, f.types, opts), f.in, f.out}
}

// typesOf returns why no value of In or Out could be passed.
func typesOf[In, Out any]() error {
	var errs []error
	for _, of := range []struct {
		what string
		t    reflect.Type
	}{{"argument", reflect.TypeFor[In]()}, {"result", reflect.TypeFor[Out]()}} {
		if err := wire.Passable(of.t); err != nil {
			errs = append(errs, fault.Option("function.New", "the %s: %w", of.what, err))
		}
	}
	return errors.Join(errs...)
}

// with returns the function with options added to those of base. Nothing is done with the options
// before a call: programs have functions that they never call.
func with(name string, base func() *sandbox.Sandbox, types error, opts []Option) *function {
	opts = slices.Clone(opts)
	f := &function{name: name, types: types}
	f.base = sync.OnceValue(func() *sandbox.Sandbox { return base().With(apply(opts)) })
	f.own = sync.OnceValues(func() (*sandbox.Sandbox, error) { return f.command(f.base()) })
	return f
}

// apply returns the options as one of a sandbox.
func apply(opts []Option) sandbox.Option {
	return func(c *spec.Spec) {
		for _, o := range opts {
			if o != nil {
				o.Apply(c)
			}
		}
	}
}

// Call calls the function in a process of its own, which ends with the call. The options are added
// to those of the function.
//
// The error is an *Error if the function returned one, and a *PanicError if it panicked. Otherwise
// the error is that of a run: an *sandbox.ExitError, with the end of the standard error in it, if
// the process ended by itself or reached a limit (errors.Is finds sandbox.ErrTimeout,
// ErrOutOfMemory and so on), or ErrNoAnswer; a *sandbox.SetupError or another one if it could not
// be started.
//
// The function's context has the deadline of ctx, and ends with it. A function that has not
// returned 100 ms later is killed. In both cases errors.Is(err, ctx.Err()) holds. WithTimeout
// limits the call, from when the function is called; it is killed at once.
//
// If a field of Out is an io.Reader, Call returns as soon as the function does, and the process
// lives on until all such fields have been read to the end or closed (they are io.Closers), or ctx
// ends. Close ends a Read that waits. A Read returns what went wrong, in the function's stream or
// its process. A reader in In is read by this process until the function has returned and its
// streams are copied. If it fails the call fails with its error. Call does not wait for a Read that
// blocks then; it waits for a writer of WithStdout or WithStderr that blocks, for as long as
// WithWaitDelay says.
func (f *Func[In, Out]) Call(ctx context.Context, in In, opts ...Option) (Out, error) {
	var zero Out
	if ctx.Err() != nil {
		return zero, fault.NotStarted(ctx)
	}
	s, err := f.sandbox(opts)
	if err != nil {
		return zero, err
	}
	w, err := f.start(ctx, s)
	if err != nil {
		return zero, err
	}
	return invoke(ctx, f, w, in, func(bool) { w.end() })
}

// sandbox returns the sandbox of calls with the options.
func (f *function) sandbox(opts []Option) (*sandbox.Sandbox, error) {
	if len(opts) == 0 {
		return f.own()
	}
	return f.command(f.base().With(apply(opts)))
}

// command returns the sandbox with the command that serves the function.
func (f *function) command(s *sandbox.Sandbox) (*sandbox.Sandbox, error) {
	if f.types != nil {
		return nil, f.types
	}
	var commanded bool
	s = s.With(func(c *spec.Spec) {
		commanded = c.Command.Argv != nil
		at := 3 + len(c.Streams.Extra)
		c.Streams.Function = &spec.FunctionFiles{}
		c.Command.Argv = []string{fmt.Sprintf("/proc/self/fd/%d", at+1), workerName, f.name, strconv.Itoa(at), strconv.FormatInt(c.Function.Message(), 10)}
		if m := c.Limits.Memory; m > 0 {
			c.Command.Env = append([]string{fmt.Sprintf("GOMEMLIMIT=%d", m/10*9)}, c.Command.Env...)
		}
		c.Command.Env = append(c.Command.Env, workerVar+"=1", program.LoaderVar+"="+program.LibraryDir)
	})
	if commanded {
		return nil, fault.Option("WithCommand", "the function %q is the command", f.name)
	}
	return s, nil
}

// described returns what the options of a sandbox have set.
func described(s *sandbox.Sandbox) (c spec.Spec) {
	s.With(func(of *spec.Spec) { c = *of })
	return c
}

// answer serves one call, in the function's process.
func answer[In, Out any](c *servedCall, f *Func[In, Out], fn func(context.Context, In) (Out, error)) (wire.Message, error) {
	in, e, err := wire.Unpack[In](f.in, c.request, func(r *os.File) io.Reader { return r })
	if err != nil {
		return wire.Message{}, err
	}
	ctx, cancel := c.context(e.Until)
	defer cancel()
	out, err := fn(ctx, in)
	if err != nil {
		return wire.Message{}, err
	}
	body, files, streams, err := wire.PackAnswer(f.out, out)
	c.streams = streams
	return wire.Message{Kind: wire.Answer, Body: body, Files: files}, err
}
