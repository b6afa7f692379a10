// Package sandboxtest makes Go tests hermetic. New returns a sandbox for what a test runs, and
// Isolate puts the test itself into one:
//
//	func TestFormat(t *testing.T) {
//		sandboxtest.Isolate(t) // now: no network, no files, a clean environment
//		...
//	}
//
// On a machine that can't isolate anything, tests that ask for it are skipped, with the reason.
// With SANDBOXTEST_REQUIRED=1 in the environment they fail instead, so that missing tests don't go
// unnoticed.
package sandboxtest

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// New returns a sandbox whose runs are the same on every machine, as far as the options let them.
// They have no network, nothing of this process's environment, the time zone UTC, the language
// C.UTF-8, the host name sandbox, the user sandbox (1000:1000) and the umask 022. Their root is
// HostRootfs, which is the one thing that differs between machines: WithRootfs with another root
// changes that.
//
// The output of a failing run is in the test's log, except what goes to an *os.File. Runs that are
// still alive when the test is over are killed and waited for. Runs also end, with
// context.DeadlineExceeded, a moment before the test's own deadline (go test -timeout), so that
// their output can be logged. New skips the test as Need does.
func New(t testing.TB, opts ...sandbox.Option) *sandbox.Sandbox {
	t.Helper()
	Need(t)
	return sandbox.New(hermetic()).With(opts...).With(newWatcher(t).option())
}

// hermetic returns what every sandbox of this package has in addition to sandbox.New's.
func hermetic() sandbox.Option { return sandbox.WithEnv("TZ=UTC", "LANG=C.UTF-8", "LC_ALL=C.UTF-8") }

// Need skips the test, with the reason and the remedy, unless this machine has what every run needs
// and the features with the given names in sandbox.Check's report, such as "WithMemory". A name
// that is not in the report fails the test.
func Need(t testing.TB, features ...string) {
	t.Helper()
	report := thisMachine()
	known := map[string]bool{}
	for _, f := range report.Features {
		known[f.Name] = true
		if f.Err == nil || !f.Required && !slices.Contains(features, f.Name) {
			continue
		}
		skip := t.Skipf
		if os.Getenv("SANDBOXTEST_REQUIRED") == "1" {
			skip = t.Fatalf
		}
		skip("sandboxtest: %s: %s", f.Name, fault.WithRemedy(f.Err, f.Remedy))
	}
	for _, name := range features {
		if !known[name] {
			t.Fatalf("sandboxtest: Need: sandbox.Check knows no feature %q", name)
		}
	}
}

var thisMachine = sync.OnceValue(func() *sandbox.Report { return sandbox.Check(context.Background()) })
