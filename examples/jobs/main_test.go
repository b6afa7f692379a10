package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestDrain has ordinary jobs beside jobs that could take the machine down.
func TestDrain(t *testing.T) {
	jobs := make(chan string, 100)
	for i := range 20 {
		jobs <- fmt.Sprintf("echo $((%d * 2)) >/tmp/x; cat /tmp/x", i)
	}
	jobs <- "exit 3"
	jobs <- "f() { f | f & }; f"
	jobs <- "cat /dev/zero"
	jobs <- "cat /root/.profile; ls /home"
	jobs <- "tail /dev/zero"
	close(jobs)
	var out, log bytes.Buffer
	stats, err := drain(context.Background(), jobs, 4, &out, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	for i := range 20 {
		require.Contains(t, out.String(), fmt.Sprintf("cat /tmp/x\n%d\n", i*2))
	}
	require.Contains(t, out.String(), "exit status 3")
	require.Contains(t, out.String(), "cat: /root/.profile: No such file or directory\nsandbox\n")
	require.GreaterOrEqual(t, stats.Served, uint64(21))
	require.EqualValues(t, 1, stats.Failed[sandbox.OutputExceeded])
	require.EqualValues(t, 1, stats.Failed[sandbox.OutOfMemory])
	require.EqualValues(t, 25, stats.Served+stats.Failed[sandbox.Exited]+stats.Failed[sandbox.OutputExceeded]+stats.Failed[sandbox.OutOfMemory]+stats.Failed[sandbox.TimedOut])
	require.Equal(t, fmt.Sprint(stats.Failed[sandbox.OutOfMemory]), ends.ends.Get("out of memory").String())
	require.Equal(t, 25, strings.Count(log.String(), "run ended"))
}
