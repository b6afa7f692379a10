//go:build linux

package lifetest_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// The test binary also serves as the host processes that the tests watch.
func init() {
	testkit.AddHelper("victim", victim)
	testkit.AddHelper("worker", worker)
	testkit.AddHelper("crowded", crowded)
	testkit.AddHelper("delegated", delegated)
}

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// shutdown ends the default cell after the test and checks that nothing is left.
func shutdown(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Scale(10*time.Second, time.Minute))
	defer cancel()
	require.NoError(t, sandbox.Shutdown(ctx))
	requireNothingLeft(t)
}
