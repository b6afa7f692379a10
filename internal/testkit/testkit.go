//go:build linux

// Package testkit is shared by the tests of all packages of this repository: what a test may need
// of a machine, helper programs, files, processes, and a check for what tests leave behind. It does
// not import package sandbox, so that the tests inside that package can use it too. What black-box
// tests do with the API is in testkit/runs. Only tests import this package.
package testkit

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// InGuest reports whether the tests run in a virtual machine of internal/vmtest.
var InGuest = os.Getenv("VM_GUEST") == "1"

// Wall is what makes the cells of tests that choose none, "" being what is linked into them.
// Without rights for it, and for cells that it can't make, it is that too.
var Wall = os.Getenv("SANDBOX_TEST_WALL")

// Patience is how long a test waits for what must happen. The guest is emulated and may be 50 times
// slower than its host.
var Patience = Scale(time.Minute, 10*time.Minute)

// Scale returns the value for this machine. The guest's value is for machines where fork and exec
// take some fifteen times as long.
func Scale[T any](host, guest T) T {
	if InGuest {
		return guest
	}
	return host
}

// Main is the TestMain of a package. It runs a helper program if this process was started for that.
// Otherwise it runs the tests and then, one after the other, the functions that end what they used,
// such as sandbox.Shutdown. It fails if these fail, or if anything is left behind.
func Main(m *testing.M, ends ...func(context.Context) error) {
	if err := spec.CheckRuntime(Wall, false); err != nil {
		fmt.Fprintln(os.Stderr, "SANDBOX_TEST_WALL:", err)
		os.Exit(2)
	}
	spec.DefaultRuntime = Wall
	if os.Getenv(helperVar) != "" {
		os.Exit(runHelper(os.Args[1:]))
	}
	flag.Parse()
	os.Exit(runTests(m, ends))
}

func runTests(m *testing.M, ends []func(context.Context) error) int {
	before := TakeInventory()
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for _, end := range ends {
		if err := end(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "after all tests:", err)
			code = 1
		}
	}
	builds.remove()
	if left := before.AwaitNothingAdded(10 * time.Second); left != "" {
		fmt.Fprint(os.Stderr, "left behind:\n", left)
		code = 1
	}
	return code
}

// Deadline returns a context that ends when the test's patience does.
func Deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			require.FailNow(t, "waited in vain", what)
		}
	}
}
