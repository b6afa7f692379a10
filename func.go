package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wire"
)

// Func is a Go function of this program that is called in a process of its own, isolated as a run is. NewFunc makes one.
type Func[In, Out any] struct {
	*function
	in, out wire.Shape
}

// function is what of a Func does not depend on its types.
type function struct {
	name string
	opts []Option

	once  sync.Once
	base  *Sandbox
	plain *Sandbox // of calls without options
}

// NewFunc makes a function that can be called in isolation. It has to be called while packages are initialised, for a package-level
// variable:
//
//	var thumbnail = sandbox.NewFunc("thumbnail", func(ctx context.Context, in Request) (Response, error) { ... })
//
// A call executes this program once more, in a run, and there NewFunc serves the function instead
// of returning: nothing of the package after it is initialised there, no init function of the
// package that calls it runs, nor does main, TestMain or a test. Imported packages are initialised
// first, as ever. NewFunc must be called under no condition that does not hold there: a process
// whose function is not registered ends as soon as main begins. Names are unique in a program:
// NewFunc panics, naming both places, if one is taken, and if it is called when main has begun.
//
// The function sees none of the host's files but the libraries that this program is linked with,
// /dev, /proc, the made-up part of HostRootfs's /etc and empty directories to write to; no network;
// no variable of this process's environment. What else it needs, and what it may use, the options
// say: they are those of a sandbox, but for WithCommand. Where WithMemory is set, Go's own limit
// (GOMEMLIMIT) is nine tenths of it. A panic, os.Exit or a crash ends the function's process, not
// this one.
//
// Values are copied, as CBOR (RFC 8949): exported fields, to 32 levels, with 131,072 elements in an
// array or map. The fields of In and Out, or of the structs they point to, that are an *os.File are
// passed as descriptors; in the function's process they are closed when it has returned. Those that
// are an io.Reader are streams: they are copied while the function, or the caller, reads; see Call.
// Deeper ones do not travel. An answer is whatever who took over the process makes it: a value of
// its type, a stream without end, a file. A file of an answer is a regular one, a directory, or a
// device such as /dev/null: what else comes (pipes, sockets, terminals, files of /proc) may keep
// its reader waiting for ever and is an error. It can be of any size, with holes, and change while
// it is read: read it with a bound, and do not map it.
func NewFunc[In, Out any](name string, fn func(context.Context, In) (Out, error), opts ...Option) *Func[In, Out] {
	f := &Func[In, Out]{&function{name: name, opts: opts}, wire.ShapeOf(reflect.TypeFor[In]()), wire.ShapeOf(reflect.TypeFor[Out]())}
	register(name)
	if w, ok := asWorker(); ok && w.name == name {
		w.serve(max(f.in.Files(), f.out.Streams()), func(c *servedCall) (wire.Message, error) { return answer(c, f, fn) })
	}
	return f
}

// functions is where each function was made.
var functions = struct {
	sync.Mutex
	at map[string]string
}{at: map[string]string{}}

func register(name string) {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	place, early := "", false
	for {
		f, more := frames.Next()
		if place == "" {
			place = fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		early = early || strings.HasPrefix(f.Function, "runtime.doInit")
		if !more {
			break
		}
	}
	functions.Lock()
	defer functions.Unlock()
	switch other, taken := functions.at[name]; {
	case name == "" || strings.IndexByte(name, 0) >= 0:
		panic(fmt.Sprintf("sandbox: NewFunc: %q is no name (%s)", name, place))
	case taken:
		panic(fmt.Sprintf("sandbox: NewFunc: the name %q is used twice: at %s and at %s", name, other, place))
	case !early:
		panic(fmt.Sprintf("sandbox: NewFunc: %q at %s is made after packages were initialised: make it a package-level variable", name, place))
	}
	functions.at[name] = place
}

// FuncError is an error that the function returned. Of the error itself nothing but the text crosses the boundary.
type FuncError struct {
	Func string // its name
	Text string // the first 64 KiB
}

func (e *FuncError) Error() string { return e.Text }

// PanicError is a panic of the function, or its runtime.Goexit.
type PanicError struct {
	Func  string
	Value string // as fmt prints it, the first 64 KiB
	Stack string // of the goroutine that panicked, the first 64 KiB
}

func (e *PanicError) Error() string { return "sandbox: function " + e.Func + ": panic: " + e.Value }

// ErrNoAnswer says that the function's process ended without an answer, and with status 0, as by os.Exit(0).
var ErrNoAnswer = errors.New("the function's process ended without an answer")

// ErrMessageLimit says that what a call takes or returns is larger than WithMessageLimit allows,
// encoded or decoded.
var ErrMessageLimit = wire.ErrTooLarge

// Call calls the function in a process of its own, which ends with the call. The options are added
// to those of NewFunc.
//
// The error is a *FuncError if the function returned one, and a *PanicError if it panicked.
// Otherwise it is that of a run: an *ExitError, with the end of the standard error in it, where the
// process ended by itself or reached a limit (errors.Is tells ErrTimeout, ErrOutOfMemory and so
// on), or ErrNoAnswer; a *SetupError or another one if it could not be started.
//
// The function's context has the deadline of ctx, and ends with it. A function that has not
// returned 100 ms later is killed. In both cases errors.Is(err, ctx.Err()) holds. WithTimeout
// limits the call, from when the function is called; it is killed at once.
//
// If a field of Out is an io.Reader, Call returns as soon as the function does, and the process
// lives on until all such fields have been read to the end or closed (they are io.Closers), or ctx
// ends. Close ends a Read that waits. A Read returns what went wrong, in the function's stream or
// its process. A reader in In is read by this process until the function has returned and its
// streams are copied. If it fails the call fails with its error. A Read that blocks then is not
// waited for; a writer of WithStdout or WithStderr that blocks is, as long as WithWaitDelay says.
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

// sandbox is what calls with the options run in.
func (f *function) sandbox(opts []Option) (*Sandbox, error) {
	f.once.Do(func() {
		f.base = New(func(c *spec.Spec) { c.Root.Rootfs = spec.Rootfs{Parts: spec.OwnProgram} }).With(f.opts...)
		f.plain = f.derive(f.base)
	})
	s := f.plain
	if len(opts) > 0 {
		s = f.derive(f.base.With(opts...))
	}
	if s.is.Spec.Function.Commanded {
		return nil, fault.Option("WithCommand", "the function %q is the command", f.name)
	}
	return s, nil
}

// derive sets the command of a function.
func (f *function) derive(s *Sandbox) *Sandbox {
	return s.With(func(c *spec.Spec) {
		c.Function.Commanded = c.Command.Argv != nil
		c.Function.Name = f.name
		at := 3 + len(c.Streams.Extra)
		c.Streams.Function = &spec.FunctionFiles{}
		c.Command.Argv = []string{fmt.Sprintf("/proc/self/fd/%d", at+1), workerName, f.name, strconv.Itoa(at), strconv.FormatInt(c.Function.Message(), 10)}
		if m := c.Limits.Memory; m > 0 {
			c.Command.Env = append([]string{fmt.Sprintf("GOMEMLIMIT=%d", m/10*9)}, c.Command.Env...)
		}
		c.Command.Env = append(c.Command.Env, workerEnv)
		c.Command.Env = append(c.Command.Env, loaderPath+"="+program.LibraryDir)
	})
}

// answer is one call, in the function's process.
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
