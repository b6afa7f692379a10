//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
	"github.com/cellkit/sandbox/queue/metrics"
)

func TestTop(t *testing.T) {
	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	do := func(want int, args ...string) string {
		t.Helper()
		var out, stderr bytes.Buffer
		require.Equal(t, want, run(testkit.Deadline(t), args, nil, &out, &stderr), "%q: %s", args, &stderr)
		return out.String()
	}
	object := func(text string) map[string]any {
		t.Helper()
		var v map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &v), text)
		return v
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var log bytes.Buffer
	go func() { ended <- run(ctx, []string{"work", "-json", "-slots", "2"}, nil, io.Discard, &log) }()
	id := object(do(0, "submit", "-json", "--", "sleep", "1000"))["id"].(string)
	do(0, "submit", "-class", "other", "--", "true")
	var s sample
	testkit.Eventually(t, "the task runs", func() bool {
		s = sample{}
		require.NoError(t, json.Unmarshal([]byte(do(0, "top", "-json")), &s))
		return len(s.Tasks) == 1
	})
	require.Equal(t, id, s.Tasks[0].ID)
	require.Equal(t, 1, s.Classes["other"].Tasks)
	require.Equal(t, 2, s.Slots)
	require.Equal(t, 2, strings.Count(do(0, "top", "-json", "-n", "2", "-every", "100ms"), "\n"))
	view := do(0, "top", "-n", "2", "-every", "100ms")
	require.Equal(t, 2, strings.Count(view, "PROGRESS"))
	require.Contains(t, view, id)
	require.NotContains(t, view, "\x1b", "it is no terminal")

	e := &env{ctx: testkit.Deadline(t), err: &bytes.Buffer{}}
	url, end, err := e.serveMetrics("127.0.0.1:0", metrics.New(q))
	require.NoError(t, err)
	require.Equal(t, "metrics at "+url+"\n", e.err.(*bytes.Buffer).String())
	for address, want := range map[string]string{url: "sandbox_queue_tasks{class=\"other\"} 1\n", url + ".json": `"attempts":{}`} {
		r, err := http.Get(address)
		require.NoError(t, err)
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		require.Contains(t, string(body), want)
	}
	http.DefaultClient.CloseIdleConnections()
	end()
	_, _, err = e.serveMetrics("0.0.0.0:9464", metrics.New(q))
	require.ErrorContains(t, err, "-metrics")

	require.Equal(t, true, object(do(0, "cancel", "-json", id, "enough"))["canceled"])
	r := object(do(failed, "wait", "-json", id))
	require.Equal(t, "canceled", r["state"])
	require.Equal(t, "enough", r["why"])
	stop()
	require.Zero(t, <-ended)
	require.Contains(t, log.String(), `"task":"`+id)
}

func TestDraw(t *testing.T) {
	begin := time.Now()
	m := newMeter(begin.Add(-10 * time.Second))
	for range 30 {
		m.count("linux")
	}
	at := begin.UTC()
	s := sample{Stats: queue.Stats{At: at, Workers: 1, Slots: 4, Running: 1, Classes: map[string]queue.ClassStats{"linux": {Tasks: 90, Running: 1, Oldest: 90 * time.Second, Slots: 4, Workers: 1}}},
		Tasks: []running{{queue.RunningTask{ID: "linux.normal.abc", Attempt: 2, Since: at.Add(-3 * time.Second)}, "w1"}}}
	var view bytes.Buffer
	m.draw(&view, s)
	lines := strings.Split(view.String(), "\n")
	require.Regexp(t, `^linux +90 +1 +1m +0 +1 +4 +30 +[23]\.\d +\[#####\.{15}\]  25%  \d+s left$`, lines[3])
	require.Regexp(t, `^linux\.normal\.abc +2 +w1 +3s$`, lines[6])

	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, paint(w, strings.Repeat(strings.Repeat("x", 200)+"\n", 50)))
	require.NoError(t, w.Close())
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, 24, strings.Count(string(got), strings.Repeat("x", 80)+"\x1b[K"), "as a terminal of an unknown size has")
	require.NotContains(t, string(got), strings.Repeat("x", 81))

	now := begin
	for range 40 { // it forgets
		now = now.Add(time.Second)
		m.rates(now)
	}
	_, rate := m.rates(now.Add(time.Second))
	require.Zero(t, rate["linux"])
	require.LessOrEqual(t, len(m.past), 32)
}
