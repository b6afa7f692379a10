package sandboxtest

import (
	"errors"
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
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// isolatedEnv names the isolated test, in the environment of its sandbox.
const isolatedEnv = "_SANDBOXTEST_ISOLATED"

// isolated is the test that this process was started for in a sandbox, if any.
var isolated = func() string {
	name := os.Getenv(isolatedEnv)
	_ = os.Unsetenv(isolatedEnv) // the test must not see it
	return name
}()

const (
	home = "/home/sandbox"

	// maxOutput bounds what an isolated test may write.
	maxOutput = 64 * sandbox.MiB
)

// Isolate is the first line of a test that is to run in a sandbox: this test binary is executed
// again, in a run, for this test only. The lines after it run only there. Those before it, in this
// test and in those above a subtest, run in both: a t.Skip there must not look at the environment
// or at files, which are not there, but may look at a flag. The result, the log and the subtests
// inside are reported as this test's.
//
// Inside there is nothing except the test binary and the shared libraries that it needs, the
// writable file systems of every run, and what the options add, such as WithReadOnlyBind for files
// that the test reads, or WithRootfs(HostRootfs()) for the host's programs. There is no network
// except a loopback interface of its own, and nothing of this process's environment. Otherwise it
// is a sandbox as New makes it. The working directory is empty and writable: the home directory,
// where WithFS("/home/sandbox/testdata", os.DirFS("testdata")) puts the package's testdata. The
// package's init functions and TestMain run there too, with the flags of this process.
//
// Isolate may also be the first line of a subtest or of a fuzz target (for its seeds: not with
// -fuzz), and may follow t.Parallel. The subtests of an isolated test are isolated with it; a call
// of Isolate in them does nothing. Flags such as -run for subtests, -count, -cpu, -short and
// -timeout mean what they do elsewhere. With -cover, what the isolated test covers counts, up to 64
// files of counters with 16 MiB together, which takes Linux 6.3 as root. A test that panics or is
// killed, by a limit for example, fails. What it writes to its outputs is in the log, up to 64 MiB;
// one that reports more than 262,144 subtests, attributes and pieces of output between them fails.
//
// The go command does not see what the test reads inside. If its cache of results matters, use
// -count=1 after changing what the options show of the host.
//
// Isolate needs what every run needs (Need).
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

// isolate runs the test in its sandbox and returns the outcome.
func isolate(t *testing.T, opts []sandbox.Option) *result {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatalf("sandboxtest: Isolate: %v", err)
	}
	ctx, cancel := withDeadline(t.Context(), t)
	defer cancel()
	if err := ownOptions(opts); err != nil {
		return newParser(t.Name()).conclude(err)
	}
	inside := "/" + filepath.Base(exe)
	base := sandbox.New(hermetic(), ownProgram, sandbox.WithReadOnlyBind(exe, inside), sandbox.WithOutputLimit(maxOutput)).
		With(seeds(t)...).With(opts...).With(sandbox.WithEnv(isolatedEnv+"="+t.Name()), sandbox.WithWaitDelay(0))
	run := func(args []string, more ...sandbox.Option) (*parser, error) {
		events := newParser(t.Name())
		_, err := base.With(sandbox.WithCommand(inside, append(args, flag.Args()...)...), sandbox.WithStdout(events), sandbox.WithStderr(events)).With(more...).Run(ctx)
		return events, err
	}
	events, err := covered(t, run)
	return events.conclude(err)
}

// ownOptions refuses the options whose place the test takes.
func ownOptions(opts []sandbox.Option) error {
	var errs []error
	sandbox.New(opts...).With(func(c *spec.Spec) {
		for _, o := range []struct {
			name  string
			given bool
		}{{"WithCommand", c.Command.Argv != nil}, {"WithStdout", c.Streams.Stdout != nil}, {"WithStderr", c.Streams.Stderr != nil}} {
			if o.given {
				errs = append(errs, fault.Option(o.name, "the test is the command, and its output is in the log: leave it out"))
			}
		}
	})
	return errors.Join(errs...)
}

// ownProgram shows nothing in the root but what this program needs to be executed in it.
func ownProgram(c *spec.Spec) {
	c.Root.Rootfs = spec.Rootfs{Parts: spec.OwnProgram}
	c.Command.Env = append(c.Command.Env, program.LoaderVar+"="+program.LibraryDir)
}

// seeds gives a fuzz target the files with its seeds.
func seeds(t *testing.T) []sandbox.Option {
	name, _, _ := strings.Cut(t.Name(), "/")
	dir, err := filepath.Abs(filepath.Join("testdata", "fuzz", name))
	if _, statErr := os.Stat(dir); !strings.HasPrefix(name, "Fuzz") || err != nil || statErr != nil {
		return nil
	}
	return []sandbox.Option{sandbox.WithReadOnlyBind(dir, home+"/testdata/fuzz/"+name)}
}

// arguments returns this process's flags, changed so that they select the one test.
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

// finish ends a test that passed in its sandbox. Package testing has ways to end a test from within
// it only as failed or skipped, and takes runtime.Goexit for one of these two unless the test is
// marked as finished.
func finish(t *testing.T) {
	t.Helper()
	finished := reflect.ValueOf(t).Elem().FieldByName("common").FieldByName("finished")
	if finished.Kind() != reflect.Bool {
		t.Skip("sandboxtest: passed in its sandbox; with this version of Go a test can't say so")
	}
	*(*bool)(unsafe.Pointer(finished.UnsafeAddr())) = true
	runtime.Goexit()
}
