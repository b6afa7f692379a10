//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "work") {
		main() // a process that TestAll has started
		return
	}
	code := m.Run()
	// A new cell removes what the worker that was killed has left.
	if c, err := sandbox.NewCell(); err == nil {
		_ = c.Close() // Shutdown would say so
	}
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestAll compiles the project on three workers, one of which is killed: another one takes over
// what it had.
func TestAll(t *testing.T) {
	testkit.Need(t, "gcc")
	t.Setenv("SANDBOX_QUEUE_URL", "") // all sets it
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	require.NoError(t, run(ctx, []string{"all", "-workers", "3", "-pace", "500ms"}, &out), "%s", &out)
	t.Log(out.String())
	killed := regexp.MustCompile(`killed (worker-\d) while it compiled (\w+\.c)`).FindStringSubmatch(out.String())
	require.NotNil(t, killed)
	again := regexp.MustCompile(`compiled ` + regexp.QuoteMeta(killed[2]) + `: (worker-\d), attempt 2\n`).FindStringSubmatch(out.String())
	require.NotNil(t, again)
	require.NotEqual(t, killed[1], again[1])
	require.Contains(t, out.String(), "ran it: crc32 cbf43926, primes 9592, sorted 1..9, fibonacci 12586269025, collatz 111, value 21\n")
}

func TestUsage(t *testing.T) {
	require.ErrorContains(t, run(context.Background(), nil, nil), "usage")
	t.Setenv("SANDBOX_QUEUE_URL", "")
	require.ErrorContains(t, run(context.Background(), []string{"submit"}, nil), "SANDBOX_QUEUE_URL")
}
