package sandboxtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/hook"
)

// isolatedEnv names, in its sandbox, the test that is isolated.
const isolatedEnv = "_SANDBOXTEST_ISOLATED"

// isolated is the test that this process is a sandbox for, if it is one.
var isolated = func() string {
	name := os.Getenv(isolatedEnv)
	_ = os.Unsetenv(isolatedEnv) // it is not what the test set out with
	return name
}()

const (
	home = "/home/sandbox"

	// maxOutput is how much an isolated test may write.
	maxOutput = 64 * sandbox.MiB
)

// Isolate is the first line of a test that is to run in a sandbox: this test binary is executed
// again, in a run, for this test only. What is after the line runs there and nowhere else; its
// result, its log and its subtests are reported as this test's.
//
// Inside there is nothing but the test binary and the shared libraries that it needs, the writable
// file systems of every run, and what the options add, such as WithReadOnlyBind for files that the
// test reads, or WithRootfs(HostRootfs()) for the host's programs. There is no network but a
// loopback of its own, and nothing of this process's environment. Else it is a sandbox as New makes
// it. The working directory is empty and writable: the home directory. The package's init functions
// and TestMain run there too, with the flags of this process.
//
// Isolate may also be the first line of a subtest or of a fuzz target (for its seeds: not with
// -fuzz), and come after t.Parallel. In a test that is isolated, subtests are isolated with it;
// there Isolate does nothing. Flags such as -run for subtests, -count, -cpu, -short and -timeout
// mean what they do elsewhere; with -cover, what the isolated test covers counts, up to 64 files of
// counters with 16 MiB, which takes, as root, Linux 6.3. A test that panics or is killed, by a
// limit for example, fails. What it writes to its outputs is in the log, up to 64 MiB; one that
// reports more than 262,144 subtests, attributes and pieces of output between them fails.
//
// The go command does not see what the test reads inside: where its cache of results matters, use
// -count=1 after changing what the options show of the host.
//
// It needs what every run needs (Need).
func Isolate(t *testing.T, opts ...sandbox.Option) {
	t.Helper()
	if isolated != "" {
		if t.Name() != isolated && !strings.HasPrefix(t.Name(), isolated+"/") {
			t.Fatalf("sandboxtest: Isolate: this is the sandbox of %s", isolated)
		}
		return
	}
	if value("test.fuzz") != "" {
		t.Fatal("sandboxtest: Isolate: an input of -fuzz can't have a process of its own: run the seeds, without -fuzz")
	}
	Need(t)
	r := isolate(t, opts)
	r.replay(t)
	finish(t)
}

// isolate runs the test in its sandbox and returns what became of it.
func isolate(t *testing.T, opts []sandbox.Option) *result {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatalf("sandboxtest: Isolate: %v", err)
	}
	ctx, cancel := withDeadline(t.Context(), t)
	defer cancel()
	inside := "/" + filepath.Base(exe)
	base := sandbox.New(hermetic(), hook.OwnProgram().(sandbox.Option), sandbox.WithReadOnlyBind(exe, inside), sandbox.WithOutputLimit(maxOutput)).
		With(seeds(t)...).With(opts...).With(sandbox.WithEnv(isolatedEnv+"="+t.Name()), sandbox.WithWaitDelay(0))
	run := func(args []string, more ...sandbox.Option) (*parser, error) {
		events := newParser(t.Name())
		_, err := base.With(sandbox.WithCommand(inside, append(args, flag.Args()...)...), sandbox.WithStdout(events), sandbox.WithStderr(events)).With(more...).Run(ctx)
		return events, err
	}
	events, err := covered(t, run)
	return events.conclude(err)
}

// seeds shows a fuzz target the files with its seeds.
func seeds(t *testing.T) []sandbox.Option {
	name, _, _ := strings.Cut(t.Name(), "/")
	dir, err := filepath.Abs(filepath.Join("testdata", "fuzz", name))
	if _, statErr := os.Stat(dir); !strings.HasPrefix(name, "Fuzz") || err != nil || statErr != nil {
		return nil
	}
	return []sandbox.Option{sandbox.WithReadOnlyBind(dir, home+"/testdata/fuzz/"+name)}
}

// arguments are this process's flags, changed so that they ask for the one test.
func arguments(t *testing.T) []string {
	args := []string{"-test.v=test2json", "-test.paniconexit0", "-test.count=1", "-test.run=" + only(t.Name(), value("test.run")),
		fmt.Sprintf("-test.cpu=%d", runtime.GOMAXPROCS(0))}
	if end, ok := deadline(t); ok {
		left := time.Until(end)
		args = append(args, fmt.Sprintf("-test.timeout=%v", left-min(time.Second, left/10)))
	}
	flag.Visit(func(f *flag.Flag) {
		if passedOn := []string{"test.short", "test.skip", "test.parallel", "test.fullpath"}; strings.HasPrefix(f.Name, "test.") && !slices.Contains(passedOn, f.Name) {
			return
		}
		args = append(args, "-"+f.Name+"="+f.Value.String())
	})
	return args
}

func value(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// finish ends a test that passed elsewhere. Of the ways that package testing has to end a test from within it, all say that it failed or was
// skipped; runtime.Goexit is taken for one of these two unless the test is marked as finished.
func finish(t *testing.T) {
	t.Helper()
	finished := reflect.ValueOf(t).Elem().FieldByName("common").FieldByName("finished")
	if finished.Kind() != reflect.Bool {
		t.Skip("sandboxtest: passed in its sandbox; with this version of Go a test can't say so")
	}
	*(*bool)(unsafe.Pointer(finished.UnsafeAddr())) = true
	runtime.Goexit()
}
