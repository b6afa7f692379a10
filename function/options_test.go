package function

import (
	"context"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/pool"
)

var same = New("same", func(_ context.Context, n int) (int, error) { return n, nil }, sandbox.WithTimeout(time.Second), MessageLimit(1000))

// TestOptionsOfTheirOwn checks that no option can be given where it means nothing: that does not
// compile.
func TestOptionsOfTheirOwn(t *testing.T) {
	options := map[string]reflect.Type{"sandbox": reflect.TypeFor[sandbox.Option](), "function": reflect.TypeFor[Option](),
		"workers": reflect.TypeFor[WorkersOption](), "pool": reflect.TypeFor[pool.Option]()}
	for from, what := range options {
		for to, takes := range options {
			require.Equal(t, from == to || from == "sandbox" && to == "function", what.AssignableTo(takes), "%s to %s", from, to)
		}
	}
}

// set returns what calls with the options have set.
func set(t *testing.T, f *Func[int, int], opts ...Option) spec.Spec {
	t.Helper()
	s, err := f.sandbox(opts)
	require.NoError(t, err)
	return described(s)
}

// TestOptionsAreAdded checks that the options of a call, and of With, come after those of the
// function, which keeps its own.
func TestOptionsAreAdded(t *testing.T) {
	for range 2 {
		more := []Option{nil, sandbox.Option(nil), Options(sandbox.WithMemory(sandbox.MiB), nil), MessageLimit(7)}
		c := set(t, same.With(more...))
		require.Equal(t, c.Supervision, set(t, same, more...).Supervision)
		require.Equal(t, time.Second, c.Supervision.Timeout)
		require.EqualValues(t, sandbox.MiB, c.Limits.Memory)
		require.EqualValues(t, 7, c.Function.Message())
		require.Equal(t, []string{"/proc/self/fd/4", "sandbox-function", "same", "3", "7"}, c.Command.Argv)
		own := set(t, same)
		require.Zero(t, own.Limits.Memory)
		require.EqualValues(t, 1000, own.Function.Message())
		require.EqualValues(t, 16<<20, set(t, same, MessageLimit(0)).Function.Message())
	}
}

// TestCommandIsWrong refuses WithCommand, but not the function's own command, nor that of an
// earlier call.
func TestCommandIsWrong(t *testing.T) {
	for _, f := range []*Func[int, int]{same.With(sandbox.WithCommand("true")), same.With(Options(sandbox.WithCommand("true"))).With(MessageLimit(1))} {
		_, err := f.sandbox(nil)
		require.EqualError(t, err, `sandbox: WithCommand: the function "same" is the command`)
		_, err = f.Workers(1).Call(t.Context(), 1)
		require.ErrorContains(t, err, "WithCommand")
	}
	set(t, same.With(sandbox.WithMemory(sandbox.MiB)), MessageLimit(1))
}

func nothing[In, Out any](context.Context, In) (out Out, err error) { return out, nil }

var (
	ofReader = New("of a reader", nothing[io.Reader, *os.File])
	ofError  = New("of an error", nothing[any, error])
	ofChan   = New("of a channel", nothing[chan int, struct{ C chan int }])
	ofField  = New("of a field", nothing[struct{ F func() }, int])
)

// TestTypesAreWrong has types of which nothing could be passed, which is told before a process is
// started.
func TestTypesAreWrong(t *testing.T) {
	_, err := ofReader.With(sandbox.WithMemory(sandbox.MiB)).sandbox(nil)
	require.EqualError(t, err, "sandbox: function.New: the argument: it is an io.Reader itself: let it be a struct with a field of that type\n"+
		"sandbox: function.New: the result: it is an *os.File itself: let it be a struct with a field of that type")
	_, err = ofError.Call(t.Context(), 1)
	require.ErrorContains(t, err, "the result: error is an interface with methods")
	_, err = ofChan.Workers(1).Call(t.Context(), nil)
	require.ErrorContains(t, err, "the argument: a chan int can't be copied")
	if runtime.GOOS == "linux" {
		_, err = ofField.Call(t.Context(), struct{ F func() }{})
		require.ErrorContains(t, err, "sandbox: function of a field: its argument: encoding a struct")
	}
}

// TestMostExtraFiles has as many as leave room for what a function's process has of its own.
func TestMostExtraFiles(t *testing.T) {
	f := same.With(sandbox.WithExtraFiles(slices.Repeat([]*os.File{os.Stdin}, 98)...), sandbox.WithDir("/no/such/dir"))
	var setup *sandbox.SetupError
	if _, err := f.Call(t.Context(), 1); runtime.GOOS == "linux" {
		require.ErrorAs(t, err, &setup)
		require.Equal(t, "WithDir", setup.Stage, "what fails last is still told")
		_, err = f.Call(t.Context(), 1, sandbox.WithExtraFiles(os.Stdin))
		require.ErrorContains(t, err, "sandbox: WithExtraFiles: 99 files, at most 98 are possible")
	}
}

// TestOptionsKeepNoReference changes the options that Options was given.
func TestOptionsKeepNoReference(t *testing.T) {
	opts := []sandbox.Option{sandbox.WithMemory(sandbox.MiB)}
	f := same.With(Options(opts...))
	opts[0] = sandbox.WithMemory(2 * sandbox.MiB)
	require.EqualValues(t, sandbox.MiB, set(t, f).Limits.Memory)
}
