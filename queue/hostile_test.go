//go:build linux

package queue

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// What is no task, and who else may write to the servers, harms the task alone.
func TestAttackRecords(t *testing.T) {
	q := open(t, Lease(minLease))
	ctx := testkit.Deadline(t)
	put := func(kind, id string, data []byte) {
		_, err := q.js.Publish(ctx, q.subject(kind, id), data, jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
	}
	record := func(change func(*taskRecord)) []byte {
		r, err := (&Task{Command: shell("true")}).record(nil)
		require.NoError(t, err)
		change(r)
		b, err := encode(r)
		require.NoError(t, err)
		return b
	}
	files := func(entries ...entry) func(*taskRecord) {
		return func(r *taskRecord) {
			r.Inputs = &bundle{Inline: &bundleRecord{Version: version, Entries: entries}}
			r.Retry.Attempts = 1
		}
	}
	hostile := map[string][]byte{
		"garbage": []byte("\xff\x00garbage"),
		"empty":   nil,
		"deep":    []byte(strings.Repeat("\x81", 1000)),
		"huge":    {0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"version": {0xa1, 0x00, 0x20},
		"command": record(func(r *taskRecord) { r.Command = nil }),
		"outputs": record(func(r *taskRecord) { r.Outputs = []string{"../../etc"} }),
		"retries": record(func(r *taskRecord) { r.Retry.Attempts = 1 << 30 }),
		"up":      record(files(entry{Name: "../up", Mode: 0o644})),
		"root":    record(files(entry{Name: "/etc/x", Mode: 0o644})),
		"link":    record(files(entry{Name: "a", Mode: fs.ModeSymlink, Link: "../.."}, entry{Name: "a/b", Mode: 0o644})),
		"through": record(files(entry{Name: "s", Mode: fs.ModeSymlink, Link: "."}, entry{Name: "a", Mode: fs.ModeSymlink, Link: "s/s/../../x"})),
		"bytes":   record(func(r *taskRecord) { r.Command = []string{"\xff"} }),
		"twice":   record(files(entry{Name: "a", Mode: 0o644}, entry{Name: "a", Mode: 0o644})),
		"device":  record(files(entry{Name: "a", Mode: fs.ModeDevice})),
		"setuid":  record(files(entry{Name: "a", Mode: fs.ModeSetuid | 0o755})),
		"size":    record(files(entry{Name: "a", Size: 1 << 50, Sum: make([]byte, 32)})),
		"lie":     record(files(entry{Name: "a", Size: 1, Data: []byte("much more")})),
		"lost":    record(files(entry{Name: "a", Size: 1, Sum: make([]byte, 32)})),
	}
	for name, data := range hostile {
		put("task", "default.high."+name, data)
	}
	put("task", "default.high.\x1b[31m", nil)
	// A task of a newer version waits for a worker that knows it.
	put("task", "default.high.newer", []byte{0xa1, 0x00, 0x18, 0x63})
	good := submit(t, q, Task{Command: shell("echo good")})
	work(t, q)
	require.Equal(t, "good", text(mustWait(t, q, good).Stdout))
	for name := range hostile {
		_, err := q.Wait(ctx, "default.high."+name)
		require.ErrorIs(t, err, ErrDead, name)
	}
	_, err := q.Status(ctx, "default.high.newer")
	require.ErrorIs(t, err, errNewer)
	for s, err := range q.List(ctx) {
		require.NoError(t, err)
		require.True(t, validID(s.ID), "%q", s.ID)
	}
}

// Headers that the writer of a record has given it say nothing of it, and who reads many goes on.
func TestAttackHeaders(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	good := submit(t, q, Task{Command: shell("true")})
	headers := map[string]nats.Header{
		"sequence": {"Nats-Sequence": {"0"}},
		"later":    {"Nats-Sequence": {"1000000"}},
		"subject":  {"Nats-Subject": {q.subject("task", good)}},
		"time":     {"Nats-Time-Stamp": {"never"}},
		"stream":   {"Nats-Stream": {""}},
		"missing":  {"Status": {"404"}},
		"nobody":   {"Status": {"503"}},
		"pending":  {"Nats-Num-Pending": {"many"}},
	}
	want := map[string]bool{good: true}
	for name, h := range headers {
		id := "default.high." + name
		want[id] = true
		for _, kind := range []string{"task", "dead"} {
			_, err := q.js.PublishMsg(ctx, &nats.Msg{Subject: q.subject(kind, id), Header: h})
			require.NoError(t, err)
		}
	}
	// A client of NATS does not send such as these.
	conn, err := q.embedded.InProcessConn()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(testkit.Patience)))
	lines := bufio.NewReader(conn)
	_, err = lines.ReadString('\n') // INFO
	require.NoError(t, err)
	_, err = fmt.Fprint(conn, "CONNECT {\"headers\":true,\"verbose\":false}\r\n")
	require.NoError(t, err)
	put := func(subject, headers string, data []byte) {
		t.Helper()
		_, err = fmt.Fprintf(conn, "HPUB %s %d %d\r\n%s%s\r\nPING\r\n", subject, len(headers), len(headers)+len(data), headers, data)
		require.NoError(t, err)
		answer, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "PONG\r\n", answer)
	}
	// What servers add comes after the blank line.
	const ends = "\r\njunk: x\r\n\r\n"
	blank := func(kind string) string {
		return "NATS/1.0\r\n" + expected + ": 0\r\nNats-Stream: sandbox-" + kind + "\r\nNats-Subject: " + q.subject("state", good) + "\r\nNats-Sequence: 1\r\nNats-Time-Stamp: 2026-01-02T03:04:05Z\r\nNats-Num-Pending: 7\r\n" + ends
	}
	for _, kind := range []string{"task", "dead"} {
		for name, headers := range map[string]string{"raw": "NATS/1.0\r\nno header\r\n\r\n", "blank": blank(kind + "s"), "none": "NATS/1.0 404 no\r\n" + ends, "empty": "NATS/1.0\r\n" + ends,
			"short": "NATS/1.0\nNats-Stream:sandbox-tasks\nNats-Subject:x\nNats-Sequence:1\nNats-Time-Stamp:2026-01-02T03:04:05Z\n\n"} {
			want["default.high."+name] = true
			put(q.subject(kind, "default.high."+name), headers, nil)
		}
	}
	testkit.Eventually(t, "it is stored", func() bool {
		info, err := q.tasks.Info(ctx)
		require.NoError(t, err)
		return info.State.Msgs == uint64(len(want))
	})

	got := map[string]bool{}
	for s, err := range q.List(ctx) {
		require.NoError(t, err)
		require.False(t, got[s.ID], "%s comes twice", s.ID)
		got[s.ID] = true
	}
	require.Equal(t, want, got)
	for _, err := range q.Dead(ctx) {
		require.NoError(t, err)
	}
	require.NoError(t, q.Collect(ctx))
	stats, err := q.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, len(want), stats.Classes["default"].Tasks)

	// The number of a state is what the server says, so it can be replaced.
	state, err := encode(&stateRecord{Version: version, State: Waiting})
	require.NoError(t, err)
	_, err = q.js.PublishMsg(ctx, &nats.Msg{Subject: q.subject("state", good), Header: headers["later"], Data: state}, jetstream.WithExpectLastSequencePerSubject(0))
	require.NoError(t, err)
	short, cancel := context.WithTimeout(ctx, 2*plainTime)
	defer cancel()
	canceled, err := q.Cancel(short, good, "by its owner")
	require.NoError(t, err)
	require.True(t, canceled)
	_, errs := q.WaitAll(ctx, []string{good})
	require.ErrorIs(t, errs[0], ErrCanceled)

	// Nor does a state whose headers hide what the server says keep anybody busy, file another
	// one's end under its name, or hide the log.
	done, err := encode(&stateRecord{Version: version, State: Done, Run: &runRecord{Reason: "exited"}})
	require.NoError(t, err)
	mine := submit(t, q, Task{Command: shell("true"), Delay: time.Hour})
	put(q.subject("state", mine), strings.Replace(blank("states"), good, mine, 1), done)
	other := submit(t, q, Task{Command: shell("true"), Delay: time.Hour})
	put(q.subject("state", other), strings.Replace(blank("states"), good, mine, 1), done)
	put(q.subject("log", other), strings.Replace(blank("logs"), "state", "log", 1), nil)
	ended, _ := q.ended(ctx, []string{mine, other})
	require.Empty(t, ended)
	for _, id := range []string{mine, other} {
		short, cancel := context.WithTimeout(ctx, 4*plainTime)
		defer cancel()
		canceled, err := q.Cancel(short, id, "by its owner")
		require.NoError(t, err)
		require.True(t, canceled)
		_, err = q.Wait(short, id)
		require.ErrorIs(t, err, ErrCanceled)
		for _, err := range q.Logs(short, id, 0) {
			require.NoError(t, err)
		}
	}

	// All of them end.
	work(t, q)
	for id := range want {
		_, err := q.Wait(ctx, id)
		require.Error(t, err)
		require.NotErrorIs(t, err, context.DeadlineExceeded, id)
	}
}

// Names and links that a run leaves do not make its result unreadable, and lead nowhere else.
func TestAttackNames(t *testing.T) {
	q := open(t)
	work(t, q)
	id := submit(t, q, Task{Outputs: []string{"r"}, Command: shell(`mkdir r && cd r && echo good > good && ln -s ../r/good in && ln -s . s && ln -s s/s/s/../../../../x out &&
		bad=$(printf '\377') && echo > "$bad" && mkdir "d$bad" && echo > "d$bad/f" && ln -s "$bad" l &&
		n=$(printf %0200d 0) && p=$n/$n/$n/$n/$n/$n/$n/$n/$n/$n/$n/$n && mkdir -p a/$p b/$p && echo > b/$p/f && cd a/$p && mv /task/r/b .`)})
	res, err := q.Wait(testkit.Deadline(t), id)
	require.NoError(t, err, "%s", res.Stderr)
	require.Contains(t, res.Missing, "r/out")
	require.Contains(t, res.Missing, "r/l")
	require.Contains(t, res.Missing, "r/\ufffd")
	require.Contains(t, res.Missing, "r/d\ufffd")
	require.Len(t, res.Missing, 5, "and one that is too long")
	to := filepath.Join(t.TempDir(), "to")
	require.NoError(t, os.CopyFS(to, res.Outputs))
	require.NoError(t, filepath.WalkDir(to, func(name string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		real, err := filepath.EvalSymlinks(name)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(real, to), "%s leads to %s", name, real)
		return nil
	}))
	got, err := os.ReadFile(to + "/r/in")
	require.NoError(t, err)
	require.Equal(t, "good\n", string(got))
}

// A server's lease that would overflow, or kill this process at once, is refused.
func TestAttackLease(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	_, err := q.tasks.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "default-normal", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 1 << 62})
	require.NoError(t, err)
	_, err = q.consumer(ctx, "default", "normal")
	require.ErrorContains(t, err, "lease")
}

// What is read is what its name says, or an error.
func TestAttackContents(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	content := strings.Repeat("content", 100_000)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/a", []byte(content), 0o644))
	b, _, err := q.pack(ctx, os.DirFS(dir), []string{"."}, false)
	require.NoError(t, err)
	files, err := q.unpack(ctx, b)
	require.NoError(t, err)
	got, err := fs.ReadFile(files, "a")
	require.NoError(t, err)
	require.True(t, string(got) == content)

	m, r, err := q.blob(ctx, b.Inline.Entries[0].Sum)
	require.NoError(t, err)
	chunk := make([]byte, chunkSize)
	// As long as what was there.
	_, err = q.js.Publish(ctx, q.chunkSubject(r.Upload, "1"), chunk)
	require.NoError(t, err)
	_, err = fs.ReadFile(files, "a")
	require.ErrorIs(t, err, errBlob)
	_, err = q.js.Publish(ctx, m.Subject, []byte("nonsense"))
	require.NoError(t, err)
	_, err = fs.ReadFile(files, "a")
	require.ErrorIs(t, err, errBlob)
	// Who sends the same again mends it.
	_, _, err = q.pack(ctx, os.DirFS(dir), []string{"."}, false)
	require.NoError(t, err)
	got, err = fs.ReadFile(files, "a")
	require.NoError(t, err)
	require.True(t, string(got) == content)
}

// Others of this machine need the token.
func TestAttackWithoutToken(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"))
	url := q.URL()
	_, err := nats.Connect("nats://" + url[strings.Index(url, "@")+1:])
	require.ErrorIs(t, err, nats.ErrAuthorization)
	_, err = Open(testkit.Deadline(t), strings.Replace(url, "@", "x@", 1))
	require.ErrorIs(t, err, nats.ErrAuthorization)
	c, err := nats.Connect(url)
	require.NoError(t, err)
	c.Close()
}

// A run can't say more than it wrote, and what is kept of it is bounded.
func TestAttackOutput(t *testing.T) {
	q := open(t)
	work(t, q)
	ctx := testkit.Deadline(t)
	id := submit(t, q, Task{Command: shell("yes | head -c 4000000; yes | head -c 4000000 >&2")})
	res := mustWait(t, q, id)
	require.Len(t, res.Stdout, tailBytes)
	require.Len(t, res.Stderr, tailBytes)
	require.EqualValues(t, 8_000_000-2*tailBytes, res.Cut)
	kept := 0
	for c, err := range q.Logs(ctx, id, 0) {
		require.NoError(t, err)
		kept += len(c.Data)
	}
	require.LessOrEqual(t, kept, logChunks*logChunk)
	require.Positive(t, kept)
}

// SECURITY.md has every attack on queues.
func TestSecurity(t *testing.T) {
	text, err := os.ReadFile("../SECURITY.md")
	require.NoError(t, err)
	tests, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	found := 0
	for _, file := range tests {
		code, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (TestAttack\w+)\(`).FindAllSubmatch(code, -1) {
			require.Contains(t, string(text), "`"+string(m[1])+"`")
			found++
		}
	}
	require.NotZero(t, found)
}
