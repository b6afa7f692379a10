//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// job is the argument and result of the test functions. Do says what a function does, so that one
// process can do several things.
type job struct {
	Do    string
	Text  string
	Size  int
	Time  time.Time
	Words map[string][]int
	Body  io.Reader
	Other io.Reader
	File  *os.File
}

var initialised = func() int { return os.Getpid() }()

// secret identifies a process: all of them have the same pid.
var secret = fmt.Sprint(rand.Uint64())

var work = function.New("work", doJob)

// conditional is not registered in the process that should serve it.
var conditional = func() *function.Func[string, string] {
	if len(os.Args) > 1 && os.Args[1] == "sandbox-function" {
		return nil
	}
	return function.New("conditional", func(_ context.Context, in string) (string, error) { return in, nil })
}()

// TestRootlessFuncUnregistered has main begin in a process that should serve a function.
func TestRootlessFuncUnregistered(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	_, err := conditional.Call(testkit.Deadline(t), "x", sandbox.WithStderr(&said))
	require.Equal(t, 125, runs.ExitError(t, err).ExitCode)
	require.Contains(t, said.String(), `sandbox: function: "conditional" is not registered in its own process: call function.New whenever packages are initialised, and under no condition`)
	require.NotContains(t, said.String(), "PASS")
}

func doJob(ctx context.Context, in job) (*job, error) {
	switch in.Do {
	case "echo":
		return &in, nil
	case "error":
		return &in, fmt.Errorf("no luck: %s", in.Text)
	case "panic":
		in.Words[in.Text] = nil // there is no such map
	case "goexit":
		runtime.Goexit()
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(in.Size)
	case "goroutine":
		go func() { panic(in.Text) }()
		select {}
	case "fault":
		_ = unix.Kill(os.Getpid(), unix.SIGSEGV)
		select {}
	case "spin":
		for {
			runtime.KeepAlive(in)
		}
	case "memory":
		var all [][]byte
		for {
			b := make([]byte, sandbox.MiB)
			for i := range b {
				b[i] = 1
			}
			if all = append(all, b); len(all) > 1<<20 {
				return nil, nil
			}
		}
	case "wait":
		fmt.Fprintln(os.Stderr, "begun")
		<-ctx.Done()
		slog.Info("stopped", "why", ctx.Err())
		return nil, ctx.Err()
	case "stubborn":
		select {}
	case "deadline":
		deadline, ok := ctx.Deadline()
		return &job{Text: fmt.Sprint(ok), Time: deadline}, nil
	case "large":
		return &job{Text: strings.Repeat("x", in.Size)}, nil
	case "print":
		slog.Error(in.Text)
		fmt.Println("to stdout")
		return nil, nil
	case "read":
		_, err := os.ReadFile(in.Text)
		return nil, err
	case "see":
		return see(in.Text)
	case "reach":
		return &job{Text: reach(in.Text)}, nil
	case "pid":
		return &job{Size: initialised, Text: strings.Join(os.Environ(), " ")}, nil
	case "count":
		fmt.Fprintln(os.Stderr, "counted")
		return &job{Text: secret}, nil
	case "suicide":
		time.AfterFunc(100*time.Millisecond, func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) })
		return nil, nil
	case "discard":
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, in.Body, make([]byte, sandbox.MiB))
		return &job{}, err
	case "zeros":
		return &job{Body: io.LimitReader(zeros{}, int64(in.Size))}, nil
	case "deaf":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		select {}
	case "flood":
		for range 10_000 {
			fmt.Fprintln(os.Stderr, strings.Repeat("flood ", 1000))
		}
		os.Exit(1)
	case "lie":
		return nil, lie(in.Text, in.Size)
	case "ignore":
		return &job{Text: "ignored"}, nil
	case "fds":
		fds, err := os.ReadDir("/proc/self/fd")
		return &job{Size: len(fds), File: os.NewFile(uintptr(openNull()), "null"), Body: strings.NewReader("x")}, err
	case "sum":
		h := sha256.New()
		n, err := io.Copy(h, in.Body)
		return &job{Text: fmt.Sprintf("%x", h.Sum(nil)), Size: int(n)}, err
	case "generate":
		return &job{Body: io.LimitReader(rand.NewChaCha8([32]byte{}), int64(in.Size))}, nil
	case "upper":
		return &job{Body: upper{in.Body}, Other: strings.NewReader("beside")}, nil
	case "broken":
		return &job{Body: io.MultiReader(strings.NewReader("part"), iotest.ErrReader(errors.New("it broke")))}, nil
	case "die":
		return &job{Body: io.MultiReader(strings.NewReader("part"), dying{})}, nil
	case "endless":
		return &job{Body: rand.NewChaCha8([32]byte{})}, nil
	case "file":
		b, err := io.ReadAll(in.File)
		f, createErr := os.Create("/tmp/answer")
		if err = errors.Join(err, createErr); err == nil {
			_, err = f.WriteString(strings.ToUpper(string(b)))
			_, _ = f.Seek(0, io.SeekStart)
		}
		return &job{File: f}, err
	}
	return nil, errors.New("no such job: " + in.Do)
}

// lie writes to the host in place of the code that serves functions.
func lie(text string, times int) error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		var fd int
		_, _ = fmt.Sscan(e.Name(), &fd)
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
			continue
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		for range times {
			_ = unix.Sendmsg(fd, []byte(text), unix.UnixRights(int(null.Fd()), int(null.Fd())), nil, 0)
		}
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	select {}
}

func openNull() int {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return fd
}

type upper struct{ r io.Reader }

func (u upper) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	copy(b, bytes.ToUpper(b[:n]))
	return n, err
}

type dying struct{}

func (dying) Read([]byte) (int, error) { os.Exit(9); return 0, nil }

// see returns what can be seen at a place.
func see(what string) (*job, error) {
	if address, ok := strings.CutPrefix(what, "tcp:"); ok {
		_, err := net.DialTimeout("tcp", address, time.Second)
		return nil, err
	}
	entries, err := os.ReadDir(what)
	out := &job{}
	for _, e := range entries {
		out.Text += e.Name() + " "
	}
	return out, err
}

func call(t *testing.T, in job, opts ...function.Option) *job {
	t.Helper()
	out, err := work.Call(testkit.Deadline(t), in, opts...)
	require.NoError(t, err)
	return out
}

// TestRootlessFuncValues has values of many kinds come back unchanged.
func TestRootlessFuncValues(t *testing.T) {
	t.Parallel()
	in := job{Do: "echo", Text: "a\x00\xff\u00e4\U0001f600", Size: -1 << 60, Time: time.Now().UTC(), Words: map[string][]int{"": nil, "a": {1, 2, 3}}}
	in.Time = in.Time.Round(0)
	out := call(t, in)
	require.True(t, in.Time.Equal(out.Time))
	out.Time = in.Time
	require.Equal(t, &in, out)
}

func TestRootlessFuncErrors(t *testing.T) {
	t.Parallel()
	var failed *function.Error
	_, err := work.Call(testkit.Deadline(t), job{Do: "error", Text: "none"})
	require.ErrorAs(t, err, &failed)
	require.EqualError(t, err, "no luck: none")
	require.Equal(t, "work", failed.Func)

	var panicked *function.PanicError
	_, err = work.Call(testkit.Deadline(t), job{Do: "panic"})
	require.ErrorAs(t, err, &panicked)
	require.Equal(t, "assignment to entry in nil map", panicked.Value)
	require.Contains(t, panicked.Stack, "doJob")
	_, err = work.Call(testkit.Deadline(t), job{Do: "goexit"})
	require.ErrorAs(t, err, &panicked)
	require.Equal(t, "runtime.Goexit", panicked.Value)

	var exit *sandbox.ExitError
	_, err = work.Call(testkit.Deadline(t), job{Do: "exit", Size: 3})
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode)
	require.Equal(t, "last words\n", string(exit.Stderr))
	_, err = work.Call(testkit.Deadline(t), job{Do: "exit"})
	require.ErrorIs(t, err, function.ErrNoAnswer)
	_, err = work.Call(testkit.Deadline(t), job{Do: "goroutine", Text: "elsewhere"})
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 2, exit.ExitCode)
	require.Contains(t, string(exit.Stderr), "panic: elsewhere")
	_, err = work.Call(testkit.Deadline(t), job{Do: "fault"})
	require.ErrorAs(t, err, &exit)
	require.Contains(t, string(exit.Stderr), "SIGSEGV")
}

func TestRootlessFuncTime(t *testing.T) {
	t.Parallel()
	_, err := work.Call(testkit.Deadline(t), job{Do: "spin"}, sandbox.WithTimeout(200*time.Millisecond))
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	// On a busy machine it may not have the time to report that.
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithCancel(testkit.Deadline(t))
		log := &onFirst{do: cancel}
		_, err := work.Call(ctx, job{Do: "wait"}, sandbox.WithStderr(log))
		require.ErrorIs(t, err, context.Canceled)
		return strings.Contains(log.text.String(), `stopped why="context canceled"`)
	}, testkit.Patience, time.Millisecond)

	why := errors.New("nobody wants it")
	ctx2, cancel2 := context.WithCancelCause(testkit.Deadline(t))
	time.AfterFunc(time.Second, func() { cancel2(why) })
	_, err = work.Call(ctx2, job{Do: "stubborn"})
	require.ErrorIs(t, err, why)
	_, err = work.Call(ctx2, job{Do: "echo"})
	require.ErrorIs(t, err, context.Canceled)

	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	want, _ := ctx.Deadline()
	out, err := work.Call(ctx, job{Do: "deadline"})
	require.NoError(t, err)
	require.WithinDuration(t, want, out.Time, time.Second)
	require.Equal(t, "false", call2(t, job{Do: "deadline"}).Text)
}

// onFirst does something when it is written to for the first time.
type onFirst struct {
	text bytes.Buffer
	do   func()
}

func (f *onFirst) Write(b []byte) (int, error) {
	if f.text.Len() == 0 {
		f.do()
	}
	return f.text.Write(b)
}

// call2 is a call without a deadline.
func call2(t *testing.T, in job) *job {
	t.Helper()
	out, err := work.Call(context.Background(), in)
	require.NoError(t, err)
	return out
}

func TestFuncLimits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	_, err := work.Call(testkit.Deadline(t), job{Do: "memory"}, sandbox.WithMemory(64*sandbox.MiB))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	_, err = work.Call(testkit.Deadline(t), job{Do: "spin"}, sandbox.WithCPUTime(300*time.Millisecond))
	require.ErrorIs(t, err, sandbox.ErrCPUTime)
	require.Contains(t, call(t, job{Do: "pid"}, sandbox.WithMemory(100*sandbox.MiB)).Text, fmt.Sprintf("GOMEMLIMIT=%d", 90*sandbox.MiB))
}

func TestRootlessFuncMessageLimit(t *testing.T) {
	t.Parallel()
	small := function.MessageLimit(1000)
	_, err := work.Call(testkit.Deadline(t), job{Do: "large", Size: 2000}, small)
	require.ErrorIs(t, err, function.ErrMessageLimit)
	_, err = work.Call(testkit.Deadline(t), job{Do: "echo", Text: strings.Repeat("x", 2000)}, small)
	require.ErrorIs(t, err, function.ErrMessageLimit)
	require.ErrorContains(t, err, "its argument")
	require.Len(t, call(t, job{Do: "large", Size: 10 * sandbox.MiB}).Text, 10*sandbox.MiB)
}

func TestRootlessFuncOutput(t *testing.T) {
	t.Parallel()
	var out, log bytes.Buffer
	call(t, job{Do: "print", Text: "hello"}, sandbox.WithStdout(&out), sandbox.WithStderr(&log))
	require.Equal(t, "to stdout\n", out.String())
	require.Contains(t, log.String(), "ERROR hello")
	_, err := work.Call(testkit.Deadline(t), job{Do: "print", Text: strings.Repeat("x", 2000)}, sandbox.WithStderr(&log), sandbox.WithOutputLimit(100))
	if err != nil { // the answer may have been quicker
		require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	}
}

// TestRootlessFuncSeesNothing looks around in a function.
func TestRootlessFuncSeesNothing(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	_, err = work.Call(testkit.Deadline(t), job{Do: "see", Text: "tcp:" + listener.Addr().String()})
	require.ErrorContains(t, err, "refused")
	for dir, want := range map[string]string{"/home": "sandbox ", "/tmp": "", "/home/sandbox": "", "/var": "run tmp ", "/sys": "devices fs kernel "} {
		require.Equal(t, want, call(t, job{Do: "see", Text: dir}).Text, dir)
	}
	for _, dir := range []string{"/root", "/srv", "/usr/bin", "/bin", "/usr/share", "/etc/ssl"} {
		_, err := work.Call(testkit.Deadline(t), job{Do: "see", Text: dir})
		require.ErrorContains(t, err, "no such file", dir)
	}
	fds := strings.Fields(call(t, job{Do: "see", Text: "/proc/self/fd"}).Text)
	require.LessOrEqual(t, len(fds), 8, "%v", fds)
	out := call(t, job{Do: "pid"})
	require.NotEqual(t, os.Getpid(), out.Size)
	for _, kv := range strings.Fields(out.Text) {
		name, _, _ := strings.Cut(kv, "=")
		require.Contains(t, []string{"PATH", "HOME", "USER", "LANG"}, name)
	}
}

func TestRootlessFuncStreams(t *testing.T) {
	t.Parallel()
	const size = 20_000_000
	random := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), size) }
	h := sha256.New()
	_, err := io.Copy(h, random())
	require.NoError(t, err)
	want := fmt.Sprintf("%x", h.Sum(nil))
	got := call(t, job{Do: "sum", Body: random()})
	require.Equal(t, want, got.Text)
	require.Equal(t, size, got.Size)

	h.Reset()
	out := call(t, job{Do: "generate", Size: size})
	n, err := io.Copy(h, out.Body)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	require.Equal(t, want, fmt.Sprintf("%x", h.Sum(nil)))

	out = call(t, job{Do: "upper", Body: strings.NewReader("through")})
	b, err := io.ReadAll(out.Other)
	require.NoError(t, err)
	require.Equal(t, "beside", string(b))
	b, err = io.ReadAll(out.Body)
	require.NoError(t, err)
	require.Equal(t, "THROUGH", string(b))
}

// TestRootlessFuncBrokenStreams requires that a stream that was cut off does not look complete.
func TestRootlessFuncBrokenStreams(t *testing.T) {
	t.Parallel()
	for _, broken := range []error{errors.New("the disk is gone"), os.ErrClosed, unix.EPIPE, io.ErrUnexpectedEOF} {
		_, err := work.Call(testkit.Deadline(t), job{Do: "sum", Body: io.MultiReader(strings.NewReader("part"), iotest.ErrReader(broken))})
		require.ErrorIs(t, err, broken)
	}

	require.Equal(t, "ignored", call(t, job{Do: "ignore", Body: neverEnds{}}).Text)
	b, err := io.ReadAll(call(t, job{Do: "broken"}).Body)
	require.Equal(t, "part", string(b))
	require.ErrorContains(t, err, "it broke")
	b, err = io.ReadAll(call(t, job{Do: "die"}).Body)
	require.Equal(t, "part", string(b))
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 9, exit.ExitCode)

	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	out, err := work.Call(ctx, job{Do: "endless"})
	require.NoError(t, err)
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err = io.Copy(io.Discard, out.Body)
	require.ErrorIs(t, err, context.Canceled)
	out = call(t, job{Do: "endless"})
	_, err = io.ReadFull(out.Body, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, out.Body.(io.Closer).Close())
	_, err = out.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestRootlessFuncFiles(t *testing.T) {
	t.Parallel()
	name := t.TempDir() + "/file"
	testkit.WriteFile(t, name, "content", 0o600)
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	out := call(t, job{Do: "file", File: f})
	defer out.File.Close()
	b, err := io.ReadAll(out.File)
	require.NoError(t, err)
	require.Equal(t, "CONTENT", string(b))
}

func TestFuncOptions(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]function.Option{
		"WithCommand":                           sandbox.WithCommand("true"),
		"WithMemory: -1":                        sandbox.WithMemory(-1),
		"function.MessageLimit: -1 is not":      function.MessageLimit(-1),
		"function.MessageLimit: 1073741825 is ": function.MessageLimit(1<<30 + 1),
	} {
		_, err := work.Call(testkit.Deadline(t), job{Do: "echo"}, o)
		require.ErrorContains(t, err, want)
		workers := work.With(o).Workers(1, function.MaxCalls(-1), function.MaxAge(-1))
		_, err = workers.Call(testkit.Deadline(t), job{Do: "echo"})
		workers.Close()
		for _, text := range []string{want, "function.MaxCalls: -1 is not a positive", "function.MaxAge: -1ns is not a positive"} {
			require.ErrorContains(t, err, text)
		}
		all, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok)
		require.Len(t, all.Unwrap(), 3)
	}
	none := func(context.Context, int) (int, error) { return 0, nil }
	require.PanicsWithValue(t, `function: New: "" is no name (`+here(1)+`)`, func() { function.New("", none) })
	require.Panics(t, func() { function.New("late", none) })
	defer func() {
		text := fmt.Sprint(recover())
		require.Contains(t, text, `the name "work" is used twice: at `)
		require.Regexp(t, `func_test.go:\d+ and at `+here(3), text)
	}()
	function.New("work", none)
}

func here(lines int) string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("%s:%d", file, line+lines-1)
}

// pidOf returns which process of the workers serves a call.
func pidOf(t *testing.T, workers *function.Workers[job, *job]) string {
	t.Helper()
	out, err := workers.Call(testkit.Deadline(t), job{Do: "count"})
	require.NoError(t, err)
	return out.Text
}

// TestRootlessWorkersReplaced has a process serve calls until it can't be trusted any more.
func TestRootlessWorkersReplaced(t *testing.T) {
	t.Parallel()
	workers := work.With(sandbox.WithTimeout(testkit.Patience)).Workers(1)
	defer workers.Close()
	first := pidOf(t, workers)
	require.Equal(t, first, pidOf(t, workers))
	_, err := workers.Call(testkit.Deadline(t), job{Do: "error"})
	require.EqualError(t, err, "no luck: ")
	require.Equal(t, first, pidOf(t, workers))
	for _, bad := range []string{"panic", "exit", "goroutine", "die", "large"} {
		out, err := workers.Call(testkit.Deadline(t), job{Do: bad, Size: 100 * sandbox.MiB})
		if err == nil && out.Body != nil {
			_, err = io.ReadAll(out.Body)
		}
		require.Error(t, err, bad)
		next := pidOf(t, workers)
		if bad != "large" { // that the worker refused to send
			require.NotEqual(t, first, next, bad)
		}
		first = next
	}
	require.Eventually(t, func() bool { // on a slow machine it may not come to a call
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), 200*time.Millisecond)
		defer cancel()
		_, err := workers.Call(ctx, job{Do: "wait"})
		return errors.Is(err, context.DeadlineExceeded) && pidOf(t, workers) != first
	}, testkit.Patience, time.Millisecond)

	out, err := workers.Call(testkit.Deadline(t), job{Do: "generate", Size: 100_000})
	require.NoError(t, err)
	n, err := io.Copy(io.Discard, out.Body)
	require.NoError(t, err)
	require.EqualValues(t, 100_000, n)
	first = pidOf(t, workers)
	out, err = workers.Call(testkit.Deadline(t), job{Do: "endless"})
	require.NoError(t, err)
	require.NoError(t, out.Body.(io.Closer).Close())
	require.NotEqual(t, first, pidOf(t, workers))
}

func TestRootlessWorkersAge(t *testing.T) {
	t.Parallel()
	workers := work.Workers(1, function.MaxCalls(2))
	defer workers.Close()
	first := pidOf(t, workers)
	require.Equal(t, first, pidOf(t, workers))
	require.NotEqual(t, first, pidOf(t, workers))
	workers = work.Workers(1, function.MaxAge(time.Second))
	defer workers.Close()
	first = pidOf(t, workers)
	time.Sleep(time.Second)
	require.NotEqual(t, first, pidOf(t, workers))
}

// TestRootlessWorkersMany has more callers than workers.
func TestRootlessWorkersMany(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	workers := work.With(sandbox.WithStderr(&log)).Workers(3)
	pids := make(chan string)
	for i := range 60 {
		go func() {
			out, err := workers.Call(context.Background(), job{Do: "count", Text: fmt.Sprint(i)})
			if err != nil {
				pids <- err.Error()
				return
			}
			pids <- out.Text
		}()
	}
	served := map[string]int{}
	for range 60 {
		served[<-pids]++
	}
	require.LessOrEqual(t, len(served), 3, "%v", served)
	workers.Close()
	workers.Close()
	_, err := workers.Call(testkit.Deadline(t), job{Do: "count"})
	require.ErrorIs(t, err, function.ErrClosed)
	require.Equal(t, 60, strings.Count(log.String(), "counted"))
}

// TestRootlessWorkersKilled has processes die while they are idle.
func TestRootlessWorkersKilled(t *testing.T) {
	t.Parallel()
	workers := work.Workers(1)
	defer workers.Close()
	for range 3 {
		first := pidOf(t, workers)
		_, _ = workers.Call(testkit.Deadline(t), job{Do: "suicide"}) // a slow machine may not see its answer
		require.Eventually(t, func() bool {
			next, err := workers.Call(testkit.Deadline(t), job{Do: "count"}) // it may be serving this one when it dies
			return err == nil && next.Text != first
		}, testkit.Patience, 50*time.Millisecond)
	}
	_, err := work.With(sandbox.WithMemory(-1)).Workers(1).Call(testkit.Deadline(t), job{})
	require.ErrorContains(t, err, "WithMemory")
	require.Panics(t, func() { work.Workers(0) })
}

func BenchmarkFuncWarm(b *testing.B) {
	workers := echo.Workers(1)
	defer workers.Close()
	in := bytes.Repeat([]byte{1}, 1000)
	for b.Loop() {
		_, err := workers.Call(context.Background(), in)
		require.NoError(b, err)
	}
}

func BenchmarkFuncFresh(b *testing.B) {
	for b.Loop() {
		_, err := echo.Call(context.Background(), nil)
		require.NoError(b, err)
	}
}

// BenchmarkFuncAhead has a fresh process for each call, started ahead; the start is not measured.
func BenchmarkFuncAhead(b *testing.B) {
	workers := echo.Workers(1, function.MaxCalls(1))
	defer workers.Close()
	for b.Loop() {
		_, err := workers.Call(context.Background(), nil)
		require.NoError(b, err)
		b.StopTimer()
		time.Sleep(30 * time.Millisecond)
		b.StartTimer()
	}
}

func BenchmarkFuncStreamIn(b *testing.B)  { benchmarkStream(b, "discard") }
func BenchmarkFuncStreamOut(b *testing.B) { benchmarkStream(b, "zeros") }

func benchmarkStream(b *testing.B, do string) {
	const size = sandbox.GiB
	workers := work.Workers(1)
	defer workers.Close()
	b.SetBytes(size)
	for b.Loop() {
		out, err := workers.Call(context.Background(), job{Do: do, Size: size, Body: io.LimitReader(zeros{}, size)})
		require.NoError(b, err)
		if out.Body != nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, out.Body, make([]byte, sandbox.MiB))
			require.NoError(b, err)
		}
	}
}

var echo = function.New("echo", func(_ context.Context, b []byte) ([]byte, error) { return b, nil })

// TestAttackFuncLiar has a function take over its process and answer as no function does. The host
// believes nothing of it and keeps nothing, and the next call gets a process that can be trusted.
func TestAttackFuncLiar(t *testing.T) {
	t.Parallel()
	workers := work.Workers(1)
	defer workers.Close()
	for name, text := range map[string]string{
		"no message":          "x",
		"huge":                "\xff\xff\xff\xff\x04\x00",
		"unasked":             "\x00\x00\x00\x00\x01\x00",
		"descriptors":         "\x00\x00\x00\x00\x04\x02",
		"two answers":         "\x01\x00\x00\x00\x04\x00\xf6\x01\x00\x00\x00\x04\x00\xf6",
		"a bomb":              "\x20\x00\x00\x00\x04\x00\xa1\x65Value\x9b\x00\x00\x00\xff\xff\xff\xff\xff" + strings.Repeat("x", 16),
		"an error of nothing": "\x01\x00\x00\x00\x05\x00\xff",
		"a panic of nothing":  "\x00\x00\x00\x00\x06\x00",
		"streams at once":     "\x00\x00\x00\x00\x07\x00",
	} {
		for _, times := range []int{1, 1000} {
			ctx, cancel := context.WithTimeout(testkit.Deadline(t), testkit.Patience)
			out, err := workers.Call(ctx, job{Do: "lie", Text: text, Size: times})
			require.Error(t, err, name)
			require.NoError(t, ctx.Err(), name)
			require.Nil(t, out, name)
			cancel()
			out, err = workers.Call(testkit.Deadline(t), job{Do: "echo", Text: "honest"})
			require.NoError(t, err, name)
			require.Equal(t, "honest", out.Text)
		}
	}
}

// TestAttackFuncFloods has functions that send errors, panics and output without end.
func TestAttackFuncFloods(t *testing.T) {
	t.Parallel()
	var failed *function.Error
	_, err := work.Call(testkit.Deadline(t), job{Do: "error", Text: strings.Repeat("x", sandbox.MiB)})
	require.ErrorAs(t, err, &failed)
	require.Len(t, failed.Text, 64*sandbox.KiB)
	var exit *sandbox.ExitError
	_, err = work.Call(testkit.Deadline(t), job{Do: "flood"})
	require.ErrorAs(t, err, &exit)
	require.Less(t, len(exit.Stderr), 65*sandbox.KiB)
}

// TestAttackFuncDeaf has a process that stops reading, and calls that need it to read. They end
// when their callers end them.
func TestAttackFuncDeaf(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 10 * sandbox.MiB} {
		workers := work.With(sandbox.WithTimeout(500 * time.Millisecond)).Workers(1)
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), 200*time.Millisecond)
		defer cancel()
		_, err := workers.Call(ctx, job{Do: "deaf"})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = workers.Call(testkit.Deadline(t), job{Do: "deaf", Text: strings.Repeat("x", size)})
		require.ErrorIs(t, err, sandbox.ErrTimeout)
		workers.Close()
	}
	for _, stop := range []function.Option{sandbox.WithTimeout(500 * time.Millisecond), nil} {
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), time.Second)
		defer cancel()
		_, err := work.Call(ctx, job{Do: "sum", Body: neverEnds{}}, stop)
		require.Error(t, err)
	}
}

type neverEnds struct{}

func (neverEnds) Read(b []byte) (int, error) { return len(b), nil }

// TestRootlessFuncWider gives functions more than they have by default.
func TestRootlessFuncWider(t *testing.T) {
	t.Parallel()
	require.Contains(t, call(t, job{Do: "see", Text: "/usr"}, sandbox.WithRootfs(sandbox.HostRootfs())).Text, "bin ")
	require.Equal(t, "x ", call(t, job{Do: "see", Text: "/data"}, sandbox.WithFile("/data/x", []byte("x"), 0o644)).Text)
	require.Contains(t, call(t, job{Do: "pid"}, sandbox.WithEnv("COLOUR=red", "GOMEMLIMIT=1GiB"), sandbox.WithPrepared(2)).Text, "COLOUR=red")
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, "echo", call(t, job{Do: "echo"}, sandbox.WithExtraFiles(f, f, f)).Do)
	if testkit.Kernel(5, 11) {
		require.Contains(t, call(t, job{Do: "see", Text: "/"}, sandbox.WithWritableRoot(sandbox.MiB)).Text, "etc ")
	}
	workers := work.With(sandbox.WithPrepared(2)).Workers(2, function.MaxCalls(1))
	defer workers.Close()
	seen := map[string]bool{}
	for range 6 {
		seen[pidOf(t, workers)] = true
	}
	require.Len(t, seen, 6)
}

// TestRootlessWorkersDescriptors has a worker serve many calls with files and streams in both
// directions. None stays open on either side.
func TestRootlessWorkersDescriptors(t *testing.T) {
	t.Parallel()
	workers := work.Workers(1)
	defer workers.Close()
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	var sizes []int
	for range 30 {
		out, err := workers.Call(testkit.Deadline(t), job{Do: "fds", File: null, Body: strings.NewReader("in")})
		require.NoError(t, err)
		require.NoError(t, out.File.Close())
		_, err = io.ReadAll(out.Body)
		require.NoError(t, err)
		sizes = append(sizes, out.Size)
	}
	require.Equal(t, sizes[1], sizes[29], "%v", sizes)
}
