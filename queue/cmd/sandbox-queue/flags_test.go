//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// Each flag of submit, wait and logs has its effect.
func TestFlags(t *testing.T) {
	q, do := commands(t)
	submitted := func(args ...string) string {
		t.Helper()
		id, _ := do(0, append([]string{"submit"}, args...)...)
		return id
	}
	waited := func(want int, id string) (r shown) {
		t.Helper()
		out, _ := do(want, "wait", id, "-json")
		require.NoError(t, json.Unmarshal([]byte(out), &r), "%s", out)
		return r
	}
	ended := func(id string) time.Time {
		t.Helper()
		s, err := q.Status(testkit.Deadline(t), id)
		require.NoError(t, err)
		require.Equal(t, queue.Done, s.State)
		return s.At
	}

	// All are there before the worker, which has one slot.
	begun := time.Now()
	delayed := submitted("-delay", "1s", "--", "true")
	low := submitted("-priority", "low", "--", "true")
	normal := submitted("-key", "k", "--", "true")
	high := submitted("-priority", "high", "--", "true")
	require.Equal(t, normal, submitted("-key", "k", "--", "false"))
	require.NotEqual(t, normal, submitted("-key", "other", "--", "true"))
	twice := submitted("-retry-failures", "-attempts", "2", "-backoff", "1ms", "--", "false")
	once := submitted("-attempts", "2", "--", "false")
	long := submitted("-timeout", "50ms", "--", "sleep", "1000")
	two := submitted("-out", "large", "--", "/bin/sh", "-c", "echo out; echo err >&2; head -c 3145728 /dev/zero > large")
	ctx, stop := context.WithCancel(context.Background())
	left := make(chan int, 1)
	go func() { left <- run(ctx, []string{"work", "-slots", "1"}, nil, io.Discard, io.Discard) }()

	require.Equal(t, queue.Done, waited(0, low).State)
	require.True(t, ended(high).Before(ended(normal)) && ended(normal).Before(ended(low)), "%v, %v, %v", ended(high), ended(normal), ended(low))
	out, stderr := do(failed, "cancel", low, "-json")
	require.Equal(t, fmt.Sprintf(`{"canceled":false,"id":%q}`, low), out)
	require.Equal(t, "sandbox-queue: "+low+" had ended before: there is nothing to cancel\n", stderr)
	r := waited(failed, twice)
	require.Equal(t, []any{queue.Dead, 2}, []any{r.State, r.Attempt})
	r = waited(1, once)
	require.Equal(t, []any{queue.Done, 1}, []any{r.State, r.Attempt})
	r = waited(timedOut, long)
	require.Equal(t, "timed out", r.Reason)

	got := filepath.Join(t.TempDir(), "got")
	_, stderr = do(0, "wait", "-to", got, "-progress", two)
	require.Contains(t, stderr, "large: 3 of 3 MiB\n")
	info, err := os.Stat(filepath.Join(got, "large"))
	require.NoError(t, err)
	require.EqualValues(t, 3<<20, info.Size())
	_, stderr = do(misused, "wait", "-to", got, two)
	require.Contains(t, stderr, "-to: "+got+" is there: name a directory that is not")

	out, _ = do(0, "logs", "-json", two)
	var first struct{ Position, Data string }
	require.NoError(t, json.NewDecoder(strings.NewReader(out)).Decode(&first))
	require.Equal(t, "out\n", first.Data)
	out, stderr = do(0, "logs", two, "-after", first.Position)
	require.Equal(t, []string{"", "err\n"}, []string{out, stderr})

	require.Equal(t, queue.Done, waited(0, delayed).State)
	require.GreaterOrEqual(t, ended(delayed).Sub(begun), time.Second)
	stop()
	require.Zero(t, <-left)
}

// What is wrong is said of the flag, with the reason and the remedy, and on the standard error.
func TestMisuse(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	dir := t.TempDir()
	for _, c := range []struct{ args, says string }{
		{"", "usage: sandbox-queue COMMAND"},
		{"nonsense", `there is no command "nonsense": sandbox-queue help lists them`},
		{"ls -nonsense", "-nonsense: sandbox-queue ls -h lists the flags"},
		{"ls -url", "flag needs an argument: -url: sandbox-queue ls -h lists the flags"},
		{"ls x", `"x": sandbox-queue ls takes flags alone: leave it out`},
		{"ls -json=perhaps", `-json: "perhaps": must be true or false, or left out`},
		{"wait", "an argument is missing: usage: sandbox-queue wait [flags] ID"},
		{"wait a b", `"b" is one argument too many: usage: sandbox-queue wait [flags] ID`},
		{"wait x", `ID: "x" is no id of a task: submit prints one, such as default.normal.3f2a`},
		{"logs x", `ID: "x" is no id`},
		{"logs a -after x", `-after: "x": must be a whole number that is not negative`},
		{"cancel x", `ID: "x" is no id`},
		{"requeue x", `ID: "x" is no id`},
		{"top -every 5", `-every: "5": must be a duration, such as 500ms`},
		{"top -n x", `-n: "x": must be a whole number`},
		{"submit -priority x true", `-priority: "x": must be high, normal or low`},
		{"submit -delay -1s true", "-delay: -1s: must be 0 to 720h"},
		{"submit -deadline -1s true", "-deadline: -1s: must not be negative"},
		{"submit -timeout -1s true", "-timeout: -1s: must not be negative"},
		{"submit -cpus NaN true", "-cpus: NaN: must not be negative"},
		{"submit -cpus x true", `-cpus: "x": must be a number, such as 0.5`},
		{"submit -attempts 101 true", "-attempts: 101 attempts: must be 1 to 100"},
		{"submit -backoff 2h true", "-backoff: 2h0m0s: must be 0 to 1h"},
		{"submit -class A true", `-class: "A": a class is 1 to 32 of a-z, 0-9 and -`},
		{"submit -key " + strings.Repeat("k", 513) + " true", "-key: 513 bytes, more than 512: hash it"},
		{"submit -env A true", `-env: "A": must be KEY=value`},
		{"submit -dir x true", `-dir: "x" is relative to those of -in and -out, of which there are none: take an absolute one`},
		{"submit -out /x true", `-out: "/x": must be a name in /task`},
		{"submit -to new true", "-to: means nothing without -wait: add that"},
		{"submit -wait -to " + dir + " true", "-to: " + dir + " is there: name a directory that is not"},
		{"wait -to /missing/new default.normal.x", "-to: stat /missing: no such file or directory: make that first"},
		{"submit -in /missing true", "-in: stat /missing: no such file or directory"},
		{"submit -in /dev/null true", "-in: /dev/null is a file: name a directory"},
		{"deploy -memory -1 x true", `-memory: "-1": must be a size, such as 500k, 64m or 2g`},
		{"submit -memory 64mb true", `-memory: "64mb": must be a size, such as 500k, 64m or 2g`},
		{"submit -replicas 2 true", "-replicas: 2: must be 1, 3 or 5"},
		{"work -slots 0", "-slots: 0: must be positive"},
		{"work -memory -1", `-memory: "-1": must be a size`},
		{"work -drain -1s", "-drain: -1s: must not be negative"},
		{"work -drain 30", `-drain: "30": must be a duration`},
		{"work -max-cpus -1", "-max-cpus: -1: must not be negative"},
		{"work -classes A", `-classes: "A": a class is`},
		{"work -services x", `-services: "x": must be an IP address of this machine`},
		{"serve -listen 127.0.0.1:0 -lease 1s", "-lease: 1s: must be 3s to 1h: workers count with a second less"},
		{"serve -listen x", `-listen: "x": must be an IP address and a port, such as 127.0.0.1:4222`},
		{"serve -url x", "-url: sandbox-queue serve -h lists the flags"},
		{"scale x many", `REPLICAS: "many": must be a whole number`},
		{"ls -url nats://secret@a:x", "-url: must be as nats://127.0.0.1:4222, or"},
		{"ls -connect-timeout -1s", "-connect-timeout: -1s: must not be negative"},
		{"wait -to -- a -nonsense", "-nonsense: sandbox-queue wait -h lists the flags"},
		{"deploy web -replicas x -- true", `-replicas: "x": must be a whole number`},
		{"ls -nkey /missing", "-nkey: nats: open /missing: no such file"},
		{"ls -ca /missing", "-ca: open /missing: no such file"},
	} {
		t.Setenv("SANDBOX_QUEUE_URL", q.URL())
		t.Setenv("XDG_STATE_HOME", dir)
		var out, stderr bytes.Buffer
		require.Equal(t, misused, run(testkit.Deadline(t), strings.Fields(c.args), nil, &out, &stderr), "%q: %s%s", c.args, &out, &stderr)
		require.Empty(t, out.String(), "%q", c.args)
		require.Contains(t, stderr.String(), c.says, "%q", c.args)
		require.NotContains(t, stderr.String(), "sandbox: ", "%q", c.args)
	}
}

// Flags may be anywhere before a -- or a command, which keeps its own, and a -- may be a value.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		what, args, rest, to string
		replicas             int
	}{
		{"NAME [--] COMMAND...", "web true", "web true", "", 0},
		{"NAME [--] COMMAND...", "web -replicas 3 -- cmd -to x", "web cmd -to x", "", 3},
		{"NAME [--] COMMAND...", "-replicas 3 web -to x cmd -to y -- z", "web cmd -to y -- z", "x", 3},
		{"NAME [--] COMMAND...", "web -- -replicas 3", "web -replicas 3", "", 0},
		{"NAME [--] COMMAND...", "-- web -replicas 3 -- cmd", "web cmd", "", 3},
		{"[--] COMMAND...", "cmd -replicas 3 -- x", "cmd -replicas 3 -- x", "", 0},
		{"[--] COMMAND...", "-replicas 3 -- -replicas 4", "-replicas 4", "", 3},
		{"ID", "-to -- a -replicas 3", "a", "--", 3},
		{"ID", "-json -to=x -- a -replicas 3", "a -replicas 3", "x", 0},
		{"ID", "-to x -json -- a -replicas 3", "a -replicas 3", "x", 0},
		{"ID", "-to -json -- a -replicas 3", "a -replicas 3", "-json", 0},
		{"ID", "a -replicas 3 b", "a b", "", 3},
		{"ID", "a -json=false -- b -json", "a b -json", "", 0},
	} {
		e := &env{flags: flag.NewFlagSet("x", flag.ContinueOnError)}
		e.flags.BoolVar(&e.json, "json", false, "")
		to, replicas := e.toFlag(), e.flags.Int("replicas", 0, "")
		rest, err := e.parse(strings.Fields(c.args), 1, anyNumber, c.what)
		require.NoError(t, err, "%s", c.args)
		require.Equal(t, strings.Fields(c.rest), rest, "%s", c.args)
		require.Equal(t, []any{c.to, c.replicas}, []any{*to, *replicas}, "%s", c.args)
	}
}

// Help is no error, and shows no secret. What does not answer is given up, and a signal ends what
// waits, each with its exit status.
func TestOutcomes(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	var out, stderr bytes.Buffer
	do := func(ctx context.Context, want int, args ...string) {
		t.Helper()
		out.Reset()
		stderr.Reset()
		require.Equal(t, want, run(ctx, args, nil, &out, &stderr), "%q: %s", args, &stderr)
	}
	ctx := testkit.Deadline(t)
	t.Setenv("SANDBOX_QUEUE_URL", "")
	do(ctx, misused, "ls")
	require.Contains(t, stderr.String(), "-url: which queue?")
	do(ctx, failed, "ls", "-url", "nats://secret@127.0.0.1:1,nats://127.0.0.1:2", "-connect-timeout", "100ms")
	require.Contains(t, stderr.String(), "nats://127.0.0.1:1,nats://127.0.0.1:2 could not be opened within 100ms (-connect-timeout): does its server run, and is -url right?")
	require.NotContains(t, stderr.String(), "secret")
	for url, says := range map[string]string{
		"secret@127.0.0.1:1": "nats://127.0.0.1:1 could not be opened within 1ms",
		"nats://me:secret@127.0.0.1:1, tls://secret@127.0.0.1:2": "nats://127.0.0.1:1,tls://127.0.0.1:2 could",
		"nats://%2Fsecret@127.0.0.1:1":                           "nats://127.0.0.1:1 could",
		"nats://secret/x@h":                                      "-url: must be as",
		"nats://x/secret@h":                                      "-url: must be as",
		"nats://x@secret/x@h":                                    "-url: must be as",
		"nats://me:secret/x@127.0.0.1:4222":                      "-url: must be as",
		"nats://me:1/secret@127.0.0.1:4222":                      "-url: must be as",
		"secret?x@h":                                             "-url: must be as",
		"secret#x@h":                                             "-url: must be as",
		"nats://%secret@h":                                       "-url: must be as",
		"nats:secret://x@h":                                      "-url: must be as",
		"x://secret://x@h":                                       "-url: must be as",
		"nats:///secret@h":                                       "-url: must be as nats://127.0.0.1:4222, or nats://TOKEN@127.0.0.1:4222 where / ? # % and , in the token are %2F %3F %23 %25 and %2C\n",
	} {
		t.Setenv("SANDBOX_QUEUE_URL", url)
		stderr.Reset()
		run(ctx, []string{"ls", "-connect-timeout", "1ms"}, nil, &out, &stderr)
		require.Contains(t, stderr.String(), says, "%s", url)
		require.NotContains(t, stderr.String(), "secret", "%s", url)
	}
	do(ctx, failed, "ls", "-url", regexp.MustCompile("//.*@").ReplaceAllString(q.URL(), "//wrong@"))
	require.Contains(t, stderr.String(), "Authorization Violation: is the token in -url right, or -nkey or -creds?")
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	for _, args := range [][]string{{"help"}, {"-h"}, {"wait", "-h"}, {"submit", "-help"}} {
		do(ctx, 0, args...)
		require.Empty(t, stderr.String(), "%q", args)
		require.Contains(t, out.String(), "usage: sandbox-queue ")
		require.NotContains(t, out.String(), q.URL())
	}
	do(ctx, failed, "wait", "default.normal.none")
	require.Contains(t, stderr.String(), "default.normal.none: no such task")
	do(ctx, failed, "requeue", "default.normal.a", "default.normal.b")
	require.Equal(t, "sandbox-queue: default.normal.a: it is no dead letter\nsandbox-queue: default.normal.b: it is no dead letter\n", stderr.String())
	do(ctx, failed, "cancel", "-json", "default.normal.none")
	require.Empty(t, out.String())

	do(ctx, 0, "submit", "-class", "nobody", "--", "true")
	id := strings.TrimSpace(out.String())
	for _, command := range []string{"wait", "logs"} {
		ctx, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(100*time.Millisecond, func() { cancel(interrupt{Signal: syscall.SIGINT}) })
		do(ctx, 130, command, id)
		require.Contains(t, stderr.String(), "interrupt")
	}
	do(ctx, 0, "cancel", id, "-json", "no", "need")
	require.Equal(t, fmt.Sprintf("{\"canceled\":true,\"id\":%q}\n", id), out.String())
	do(ctx, failed, "wait", id)
	require.Contains(t, stderr.String(), id+": canceled: no need")
}
