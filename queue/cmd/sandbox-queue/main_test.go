//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// commands opens a queue, and returns it with what runs a command that uses it: that requires the
// exit status, and returns what was printed.
func commands(t *testing.T) (q *queue.Queue, do func(want int, args ...string) (out, stderr string)) {
	t.Helper()
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	t.Cleanup(q.Close)
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	return q, func(want int, args ...string) (string, string) {
		t.Helper()
		var out, stderr bytes.Buffer
		require.Equal(t, want, run(testkit.Deadline(t), args, strings.NewReader("in"), &out, &stderr), "%q: %s", args, &stderr)
		return strings.TrimSpace(out.String()), stderr.String()
	}
}

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

func TestCommands(t *testing.T) {
	_, do := commands(t)
	waiting, _ := do(0, "submit", "-class", "other", "--", "true")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"work", "-slots", "2"}, nil, os.Stdout, os.Stderr) }()

	job := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(job, "a"), []byte("content"), 0o644))
	to := filepath.Join(t.TempDir(), "got")
	out, stderr := do(3, "submit", "-in", job, "-out", "b", "-to", to, "-stdin", "-env", "A=x", "-wait", "--", "/bin/sh", "-c", "cat; cp a b; echo $A >&2; exit 3")
	require.Equal(t, "in", out)
	require.Equal(t, "x\n", stderr)
	got, err := os.ReadFile(filepath.Join(to, "b"))
	require.NoError(t, err)
	require.Equal(t, "content", string(got))

	id, _ := do(0, "submit", "-attempts", "1", "--", "/no/such/program")
	_, stderr = do(failed, "wait", id)
	require.Contains(t, stderr, "dead")
	out, _ = do(0, "dead", "-json")
	var s queue.Status
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Equal(t, id, s.ID)
	require.Equal(t, queue.Dead, s.State)
	out, _ = do(0, "requeue", "-json", id)
	require.JSONEq(t, `{"id": "`+id+`", "state": "waiting"}`, out)
	do(failed, "wait", id)
	id, _ = do(0, "submit", "--", "echo", "hello")
	out, _ = do(0, "logs", id)
	require.Equal(t, "hello", out)
	out, _ = do(0, "logs", "-json", id)
	require.Regexp(t, `^{"attempt":1,"data":"hello\\n","offset":0,"position":"\d+","stderr":false}$`, out)
	do(0, "cancel", waiting, "not", "needed")
	out, _ = do(0, "ls")
	require.Contains(t, out, "not needed")
	out, _ = do(0, "ls", "-json")
	require.Regexp(t, `(?m)^{"id":"`+waiting+`","state":"canceled","attempt":0,"text":"not needed","at":"[^"]+"}$`, out)
	out, _ = do(0, "workers")
	require.Contains(t, out, "default")
	out, _ = do(0, "workers", "-json")
	var w queue.WorkerStatus
	require.NoError(t, json.Unmarshal([]byte(out), &w))
	require.Equal(t, []string{"default"}, w.Classes)
	require.Equal(t, 2, w.Slots)
	_, stderr = do(failed, "submit", "-class", "nobody", "-deadline", "1ms", "-wait", "--", "true")
	require.Contains(t, stderr, "expired")
	_, stderr = do(misused, "submit", "-backoff", "2h", "--", "true")
	require.Contains(t, stderr, "2h0m0s")
	do(misused, "submit", "-replicas", "2", "--", "true")
	do(misused, "work", "-replicas", "2")
	do(misused, "nonsense")
	do(misused, "submit", "-class", "A", "--", "true")
	do(misused, "wait")
	stop()
	require.Zero(t, <-ended)
}

// What a machine can do, as sandbox check finds it out there, is seen from elsewhere.
func TestCheckTravels(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	ctx, stop := context.WithCancel(testkit.Deadline(t))
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"work", "-check"}, nil, os.Stdout, os.Stderr) }()
	var w queue.WorkerStatus
	testkit.Eventually(t, "the worker is there", func() bool {
		time.Sleep(20 * time.Millisecond)
		var out bytes.Buffer
		require.Zero(t, run(ctx, []string{"workers", "-json"}, nil, &out, os.Stderr))
		return out.Len() > 0 && json.Unmarshal(out.Bytes(), &w) == nil
	})
	rows := map[string]queue.Feature{}
	for _, f := range w.Features {
		rows[f.Name] = f
		require.True(t, f.Missing == "" || !f.Required, "%s is missing where tasks run: %s", f.Name, f.Missing)
	}
	require.Contains(t, rows, "WithMemory")
	require.True(t, rows["runs"].Required)
	require.NotEmpty(t, rows["runs"].Detail)
	require.NotEmpty(t, rows["CellRuntime(docker)"].Missing, "this program does not import it")
	stop()
	require.Zero(t, <-ended)
}

// Servers that know their users by nkeys, and TLS, are reached from the command line too; and large
// files are followed.
func TestConnections(t *testing.T) {
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	public, err := user.PublicKey()
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, content, 0o600))
		return name
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, Nkeys: []*server.NkeyUser{{Nkey: public}}})
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(testkit.Patience))
	t.Setenv("SANDBOX_QUEUE_URL", s.ClientURL())
	do := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, stderr bytes.Buffer
		require.Equal(t, want, run(testkit.Deadline(t), args, nil, &out, &stderr), "%q: %s", args, &stderr)
		return strings.TrimSpace(out.String()), stderr.String()
	}
	key := file("seed", seed)
	job := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(job, "large"), make([]byte, 3<<20), 0o600))
	id, stderr := do(0, "submit", "-nkey", key, "-in", job, "-progress", "--", "true")
	require.Contains(t, stderr, "large: 3 of 3 MiB\n")
	t.Setenv("SANDBOX_QUEUE_NKEY", key)
	out, _ := do(0, "ls")
	require.Contains(t, out, id)

	t.Setenv("SANDBOX_QUEUE_NKEY", "")
	_, stderr = do(failed, "ls")
	require.Contains(t, stderr, "Authorization Violation")
	do(misused, "ls", "-nkey", file("other", []byte("nothing")))
	do(misused, "ls", "-ca", file("ca", []byte("nothing")))
	do(misused, "ls", "-ca", "/no/such/file")
	do(misused, "ls", "-creds", "/no/such/file")
}
