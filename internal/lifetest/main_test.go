//go:build linux

package lifetest_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// roleVar makes the test binary one of the host processes that the tests watch.
const roleVar = "SANDBOX_LIFETEST_ROLE"

var roles = map[string]func(){
	"victim":    victim,
	"worker":    worker,
	"crowded":   crowded,
	"delegated": delegated,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		play := roles[role]
		if play == nil {
			fmt.Fprintf(os.Stderr, "%s=%q: no such role\n", roleVar, role)
			os.Exit(2)
		}
		play()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inGuest tells whether this is the emulated machine, where all is some thirty times slower.
func inGuest() bool { return os.Getenv("VM_GUEST") == "1" }

// scale picks a number for this machine.
func scale[T any](host, guest T) T {
	if inGuest() {
		return guest
	}
	return host
}

// needRoot skips for ordinary users, whose runs the root package's tests are about.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it looks for leftovers in root's state directory and cgroups")
	}
}

// shutdown ends the default cell after the test and looks for what it left.
func shutdown(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), scale(10*time.Second, time.Minute))
	defer cancel()
	require.NoError(t, sandbox.Shutdown(ctx))
	requireNothingLeft(t)
}
