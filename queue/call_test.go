//go:build linux

package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
)

type question struct {
	Do   string
	N    int
	Data []byte
}

type answer struct {
	Data []byte
	In   map[string]int
}

var asked = function.New("asked", func(ctx context.Context, q question) (answer, error) {
	switch q.Do {
	case "echo":
		fmt.Println("printed")
		return answer{Data: q.Data, In: map[string]int{"n": q.N}}, nil
	case "fail":
		return answer{}, errors.New("it failed")
	case "panic":
		panic("it panicked")
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "leave":
		os.Exit(0)
	case "grow":
		return answer{Data: make([]byte, q.N)}, nil
	case "nap":
		time.Sleep(time.Duration(q.N) * time.Millisecond)
		return answer{In: map[string]int{"n": q.N}}, nil
	case "wait":
		<-ctx.Done()
		time.Sleep(time.Minute)
	}
	return answer{}, nil
}, sandbox.WithMemory(256*sandbox.MiB), sandbox.WithTimeout(time.Minute), function.MessageLimit(2<<20))

var streamed = function.New("streamed", func(context.Context, struct{ R io.Reader }) (int, error) { return 0, nil })

// renamed has the types of asked.
var renamed = function.New("renamed", func(context.Context, question) (answer, error) { return answer{}, nil })

func init() { Register(asked) }

// A call elsewhere is a call here: values, and errors of every kind.
func TestCall(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := longDeadline(t)
	large := []byte(strings.Repeat("0123456789abcdef", 20_000))
	out, err := Call(ctx, q, asked, question{Do: "echo", N: 7, Data: large})
	require.NoError(t, err)
	require.Equal(t, answer{Data: large, In: map[string]int{"n": 7}}, out)

	_, err = Call(ctx, q, asked, question{Do: "fail"})
	var failed *function.Error
	require.ErrorAs(t, err, &failed)
	require.Equal(t, function.Error{Func: "asked", Text: "it failed"}, *failed)
	_, err = Call(ctx, q, asked, question{Do: "panic"})
	var panicked *function.PanicError
	require.ErrorAs(t, err, &panicked)
	require.Equal(t, "it panicked", panicked.Value)
	require.Contains(t, panicked.Stack, "call_test.go")
	_, err = Call(ctx, q, asked, question{Do: "exit"})
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode)
	require.Contains(t, string(exit.Stderr), "last words")
	_, err = Call(ctx, q, asked, question{Do: "leave"})
	require.ErrorIs(t, err, function.ErrNoAnswer)
	_, err = Call(ctx, q, asked, question{Do: "grow", N: 3 << 20})
	require.ErrorIs(t, err, function.ErrMessageLimit)
	_, err = Call(ctx, q, asked, question{Do: "echo", Data: make([]byte, 3<<20)})
	require.ErrorIs(t, err, function.ErrMessageLimit)
	_, err = Call(ctx, q, asked, question{Do: "wait"}, Task{Limits: Limits{Timeout: 200 * time.Millisecond}})
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	_, err = Call(ctx, q, streamed, struct{ R io.Reader }{})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	var option *sandbox.OptionError
	_, err = Call(ctx, q, asked, question{}, Task{Command: shell("true")})
	require.ErrorAs(t, err, &option)

	// It is a task: it has logs, attempts and an end.
	id, err := SubmitCall(ctx, q, asked, question{Do: "fail"}, Task{Tenant: "a", Retry: Retry{Attempts: 2, Failures: true, Backoff: 10 * time.Millisecond}})
	require.NoError(t, err)
	_, err = WaitCall(ctx, q, asked, id)
	require.ErrorIs(t, err, ErrDead)
	require.ErrorAs(t, err, &failed)
	id, err = SubmitCall(ctx, q, asked, question{Do: "echo"}, Task{Key: "k"})
	require.NoError(t, err)
	res := mustWait(t, q, id)
	require.Equal(t, "printed", text(res.Stdout))

	gone, leave := context.WithCancelCause(ctx)
	id, err = SubmitCall(ctx, q, asked, question{Do: "wait"}, Task{Class: "none"})
	require.NoError(t, err)
	leave(errors.New("enough"))
	_, err = WaitCall(gone, q, asked, id)
	require.ErrorContains(t, err, "waits for a worker of build")
}

// A key names a call of one function, and only that one has its result.
func TestCallKey(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	key := func(class string) Task { return Task{Key: "k", Class: class} }
	others, err := SubmitCall(ctx, q, asked, question{}, key("none"))
	require.NoError(t, err)
	again, err := SubmitCall(ctx, q, asked, question{N: 1}, key("none"))
	require.NoError(t, err)
	require.Equal(t, others, again)
	of, err := SubmitCall(ctx, q, renamed, question{}, key("none"))
	require.NoError(t, err)
	require.NotEqual(t, others, of)

	work(t, q)
	for _, do := range []string{"echo", "fail", "exit"} {
		id, err := SubmitCall(ctx, q, asked, question{Do: do, N: 7})
		require.NoError(t, err)
		_, err = WaitCall(ctx, q, renamed, id)
		var option *sandbox.OptionError
		require.ErrorAs(t, err, &option, do)
		require.ErrorContains(t, err, `called function "asked", and this is "renamed"`, do)
		out, err := WaitCall(ctx, q, asked, id)
		require.Equal(t, do == "echo", err == nil, do)
		require.Equal(t, do == "echo", out.In["n"] == 7, do)
	}
}

// otherBuild returns a copy of this program that does the same, and is another build.
func otherBuild(t testing.TB) string {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "other")
	require.NoError(t, os.WriteFile(file, append(program, '\n'), 0o755))
	return file
}

// A call waits for a worker of its build, also if that is lost and another one must come.
func TestCallOtherBuild(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"), Lease(minLease))
	ctx := longDeadline(t)
	out := t.TempDir()
	startProgram(t, otherBuild(t), q, 2, out)
	id, err := SubmitCall(ctx, q, asked, question{Do: "echo", N: 1})
	require.NoError(t, err)
	mustWait(t, q, submit(t, q, Task{Command: shell("true")})) // it works
	build, err := BuildID()
	require.NoError(t, err)
	needs := "for a worker of build " + build[:buildDigits]
	s, err := q.Status(ctx, id)
	require.NoError(t, err)
	require.Equal(t, Waiting, s.State)
	require.Equal(t, needs, s.Text)
	for s, err := range q.List(ctx) {
		require.NoError(t, err)
		require.True(t, s.ID != id || s.Text == needs, "%+v", s)
	}
	for w, err := range q.Workers(ctx) {
		require.NoError(t, err)
		require.NotEqual(t, build, w.Build)
		require.Contains(t, w.Functions, "asked")
	}
	// Who writes it where that one asks for it does not have it called.
	r, err := (&Task{}).record(&callRecord{Func: "asked", Build: build})
	require.NoError(t, err)
	r.Inputs, err = q.packValue(ctx, []byte{0xa0})
	require.NoError(t, err)
	forged, err := q.submit(ctx, (&Task{}).id(""), r, &Task{}, time.Now())
	require.NoError(t, err)
	mustWait(t, q, submit(t, q, Task{Command: shell("true")}))
	s, err = q.Status(ctx, forged)
	require.NoError(t, err)
	require.Equal(t, Waiting, s.State)
	require.Zero(t, s.Attempt)

	mine := startWorker(t, q, 2, out)
	got, err := WaitCall(ctx, q, asked, id)
	require.NoError(t, err)
	require.Equal(t, 1, got.In["n"])
	lost, err := SubmitCall(ctx, q, asked, question{Do: "wait"})
	require.NoError(t, err)
	awaitState(t, q, lost, Running)
	require.NoError(t, mine.Kill())
	startWorker(t, q, 2, out)
	testkit.Eventually(t, "it is called again", func() bool {
		time.Sleep(20 * time.Millisecond)
		s, err := q.Status(ctx, lost)
		require.NoError(t, err)
		return s.State == Running && s.Attempt == 2
	})
	_, err = q.Cancel(ctx, lost, "enough")
	require.NoError(t, err)
}

// A hostile argument harms the function's process alone, a hostile answer is bounded, and what is
// no call is refused.
func TestAttackCalls(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	build, err := BuildID()
	require.NoError(t, err)
	call := func(value []byte, change func(*taskRecord)) string {
		r, err := (&Task{Retry: Retry{Attempts: 1}}).record(&callRecord{Func: "asked", Build: build})
		require.NoError(t, err)
		r.Inputs, err = q.packValue(ctx, value)
		require.NoError(t, err)
		change(r)
		data, err := encode(r)
		require.NoError(t, err)
		id := (&Task{}).id(build)
		require.NoError(t, q.store(ctx, id, data))
		return id
	}
	asIs := func(*taskRecord) {}
	for name, value := range map[string][]byte{
		"none":  nil,
		"type":  {0x61, 'x'},
		"two":   {0xa0, 0xa0},
		"deep":  []byte(strings.Repeat("\x81", 1000)),
		"huge":  {0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"large": make([]byte, 3<<20),
	} {
		_, err := WaitCall(ctx, q, asked, call(value, asIs))
		require.Error(t, err, name)
	}
	for name, change := range map[string]func(*taskRecord){
		"command": func(r *taskRecord) { r.Command = shell("true") },
		"build":   func(r *taskRecord) { r.Call.Build = "../x" },
		"name":    func(r *taskRecord) { r.Call.Func = strings.Repeat("x", 1000) },
		"inputs":  func(r *taskRecord) { r.Inputs = nil },
		"service": func(r *taskRecord) { r.Replica = &replicaRecord{Service: "s"} },
	} {
		_, err := q.Wait(ctx, call([]byte{0xa0}, change))
		require.ErrorContains(t, err, "no task", name)
	}
	// A worker's answer that would take much memory when it is decoded.
	bomb := append([]byte{0xa0, 0xa1, 0x62, 'I', 'n', 0xba, 0x00, 0x10, 0x00, 0x00}, make([]byte, 100)...)
	_, err = asked.Decode(ctx, bomb)
	require.Error(t, err)
	_, err = asked.Decode(ctx, []byte("\xa1\x66Fields\x81\x00\xa0"))
	require.Error(t, err, "a file that there is not")
	out, err := Call(ctx, q, asked, question{Do: "echo", N: 1})
	require.NoError(t, err)
	require.Equal(t, 1, out.In["n"])
}
