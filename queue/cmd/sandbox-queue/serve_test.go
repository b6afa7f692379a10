//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// permitted starts a server with queue/testdata/servers.conf, but without TLS, and returns its URL
// and the file of the seed of each user.
func permitted(t *testing.T) (url string, seeds map[string]string) {
	t.Helper()
	dir := t.TempDir()
	seeds = map[string]string{}
	var users []string
	for _, name := range []string{"OWNER", "SUBMITTER", "LINUX_WORKER"} {
		user, err := nkeys.CreateUser()
		require.NoError(t, err)
		seed, err := user.Seed()
		require.NoError(t, err)
		public, err := user.PublicKey()
		require.NoError(t, err)
		seeds[name] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(seeds[name], seed, 0o600))
		users = append(users, "$"+name, public)
	}
	conf, err := os.ReadFile("../../testdata/servers.conf")
	require.NoError(t, err)
	plain := regexp.MustCompile(`(?s)tls {.*?}`).ReplaceAllString(strings.NewReplacer(users...).Replace(string(conf)), "")
	file := filepath.Join(dir, "servers.conf")
	require.NoError(t, os.WriteFile(file, []byte(plain), 0o600))
	t.Setenv("STORE", t.TempDir())
	o, err := server.ProcessConfigFile(file)
	require.NoError(t, err)
	o.NoLog, o.NoSigs = true, true
	s, err := server.NewServer(o)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(testkit.Patience))
	return s.ClientURL(), seeds
}

// A worker that servers hold to a name says under that name what it gives, and a task that asks for
// more fails.
func TestWorkerName(t *testing.T) {
	url, seeds := permitted(t)
	t.Setenv("SANDBOX_QUEUE_URL", url)
	t.Setenv("SANDBOX_QUEUE_NKEY", seeds["OWNER"])
	do := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, stderr bytes.Buffer
		require.Equal(t, want, run(testkit.Deadline(t), args, nil, &out, &stderr), "%q: %s", args, &stderr)
		return strings.TrimSpace(out.String()), stderr.String()
	}
	do(0, "ls")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"work", "-nkey", seeds["LINUX_WORKER"], "-classes", "linux", "-name", "linux-1", "-max-memory", "64m", "-max-cpus", "0.5", "-max-pids", "20",
			"-max-cpu-time", "1m", "-max-timeout", "2m", "-max-output-limit", "1000", "-max-files", "2000k"}, nil, io.Discard, os.Stderr)
	}()
	var w queue.WorkerStatus
	testkit.Eventually(t, "it is listed", func() bool {
		out, _ := do(0, "workers", "-json")
		return out != "" && json.Unmarshal([]byte(out), &w) == nil
	})
	require.Equal(t, "linux-1", w.Name)
	require.Equal(t, queue.Limits{Memory: 64 << 20, CPUs: 0.5, PIDs: 20, CPUTime: 60e9, Timeout: 120e9, Output: 1000, Files: 2000 << 10}, w.Max)
	for _, limit := range [][]string{{"-cpus", "2"}, {"-pids", "21"}, {"-memory", "67108865"}} {
		_, stderr := do(failed, append([]string{"submit", "-class", "linux", "-attempts", "1", "-wait"}, append(limit, "--", "true")...)...)
		require.Contains(t, stderr, "it asks for "+limit[1])
	}
	do(0, "submit", "-class", "linux", "-cpus", "0.5", "-pids", "20", "-wait", "--", "true")
	stop()
	require.Zero(t, <-ended)
}
