//go:build linux

package queue

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/pool"
)

// statusOfService returns what is known of a service.
func statusOfService(t testing.TB, q *Queue, name string) ServiceStatus {
	t.Helper()
	for s, err := range q.Services(testkit.Deadline(t)) {
		require.NoError(t, err)
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no service %s", name)
	return ServiceStatus{}
}

// A service has as many replicas as it was given, each on a live worker, until it is stopped.
func TestService(t *testing.T) {
	q := open(t, Listen("127.0.0.1:0"), Lease(minLease))
	ctx := longDeadline(t)
	workers := []*os.Process{startWorker(t, q, 3, ""), startWorker(t, q, 3, "")}
	s := Service{Name: "web", Task: Task{Command: shell("while :; do sleep 1; done")}, Replicas: 2}
	require.NoError(t, q.Serve(ctx, s))
	first := statusOfService(t, q, "web")
	require.Len(t, first.Replicas, 2)
	for _, r := range first.Replicas {
		require.True(t, r.Healthy)
	}
	require.NoError(t, q.Serve(ctx, s))
	require.Equal(t, first.Replicas[0].ID, statusOfService(t, q, "web").Replicas[0].ID, "it is the same")

	// Whose worker is lost starts elsewhere.
	require.NoError(t, workers[0].Kill())
	require.NoError(t, workers[1].Kill())
	startWorker(t, q, 4, "")
	testkit.Eventually(t, "the replicas are back", func() bool {
		time.Sleep(50 * time.Millisecond)
		now := statusOfService(t, q, "web")
		for i, r := range now.Replicas {
			if !r.Healthy || r.Worker == first.Replicas[i].Worker || r.Attempt < 2 {
				return false
			}
		}
		return true
	})

	require.NoError(t, q.Scale(ctx, "web", 3))
	require.Len(t, statusOfService(t, q, "web").Replicas, 3)
	require.NoError(t, q.Scale(ctx, "web", 1))
	require.Len(t, statusOfService(t, q, "web").Replicas, 1)
	s.Task.Env, s.Replicas = []string{"VERSION=2"}, 2
	before := statusOfService(t, q, "web").Replicas[0].ID
	require.NoError(t, q.Serve(ctx, s))
	after := statusOfService(t, q, "web")
	require.Len(t, after.Replicas, 2)
	require.Empty(t, after.Old)
	old, err := q.Status(ctx, before)
	require.NoError(t, err)
	require.Equal(t, Canceled, old.State, "replaced")

	require.NoError(t, q.StopService(ctx, "web"))
	for _, r := range after.Replicas {
		s, err := q.Status(ctx, r.ID)
		require.NoError(t, err)
		require.Equal(t, Canceled, s.State)
	}
	for s, err := range q.Services(ctx) {
		require.NoError(t, err)
		t.Fatalf("%s is still there", s.Name)
	}
	require.ErrorIs(t, q.StopService(ctx, "web"), ErrNoService)
	require.ErrorIs(t, q.Scale(ctx, "web", 2), ErrNoService)
}

// One that exits is started again, and its replacement is not taken for healthy before it is.
func TestServiceFails(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	waiting := Service{Name: "a", Task: Task{Command: shell("sleep 1000")}}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, q.Serve(short, waiting), "for a worker that takes services")
	plain := work(t, q)
	mustWait(t, q, submit(t, q, Task{Command: shell("true")}))
	require.Equal(t, Waiting, statusOfService(t, q, "a").Replicas[0].State, "that worker takes none")
	plain()
	work(t, q, TakeServices("127.0.0.1"))
	require.NoError(t, q.Serve(ctx, waiting))
	canceled := statusOfService(t, q, "a").Replicas[0]
	_, err := q.Cancel(ctx, canceled.ID, "by somebody")
	require.NoError(t, err)
	require.NoError(t, q.Serve(ctx, waiting), "another one takes its place")
	good := statusOfService(t, q, "a").Replicas[0]
	require.NotEqual(t, canceled.ID, good.ID)

	broken := waiting
	broken.Task.Command = shell("echo no >&2; exit 1")
	broken.Port = 80
	short, cancel = context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	require.ErrorIs(t, q.Serve(short, broken), context.DeadlineExceeded)
	s := statusOfService(t, q, "a")
	require.Len(t, s.Old, 1)
	require.Equal(t, good.ID, s.Old[0].ID)
	require.True(t, s.Old[0].Healthy, "the old one goes on")
	testkit.Eventually(t, "it is started again", func() bool {
		time.Sleep(50 * time.Millisecond)
		return statusOfService(t, q, "a").Replicas[0].Attempt >= 2
	})
	require.NoError(t, q.Serve(ctx, Service{Name: "a", Task: Task{Command: shell("sleep 2000")}}))
	s = statusOfService(t, q, "a")
	require.Empty(t, s.Old)
	require.True(t, s.Replicas[0].Healthy)
	require.NoError(t, q.StopService(ctx, "a"))
}

// The helper web is a server of HTTP at port 8080.
func init() {
	testkit.AddHelper("web", func([]string) error {
		return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	})
}

// A replica is reached at the address that is in its key.
func TestServiceAddress(t *testing.T) {
	testkit.Need(t, "user namespaces")
	q := open(t)
	ctx := testkit.Deadline(t)
	p := pool.New(sandbox.New(sandbox.WithMemory(256*sandbox.MiB), sandbox.WithPIDs(64), sandbox.WithReadOnlyBind("/proc/self/exe", "/web")), 2)
	worker, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- NewWorker(q, p, Slots(2), TakeServices("127.0.0.1")).Run(worker) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, p.Close(context.Background()))
	})
	for _, health := range []string{"", "/health"} {
		s := Service{Name: "web", Task: Task{Command: append([]string{"/web"}, testkit.HelperArgs("web")...), Env: []string{testkit.HelperEnv}}, Port: 8080, Health: health}
		require.NoError(t, q.Serve(ctx, s))
		r := statusOfService(t, q, "web").Replicas[0]
		response, err := http.Get("http://" + r.Address + "/path")
		require.NoError(t, err)
		body, err := io.ReadAll(io.LimitReader(response.Body, 1000))
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, "/path", string(body))
		bucket, err := q.js.KeyValue(ctx, "sandbox-services")
		require.NoError(t, err)
		e, err := bucket.Get(ctx, healthKey("web", r.ID))
		require.NoError(t, err)
		h, err := decode[healthRecord](e.Value())
		require.NoError(t, err)
		require.Equal(t, r.Address, h.Address)
	}
	require.NoError(t, q.StopService(ctx, "web"))
}

// Records of services that can't be are refused, and wrong ones are named.
func TestAttackServices(t *testing.T) {
	q := open(t)
	ctx := testkit.Deadline(t)
	good := func() *serviceRecord {
		r, err := q.describe(ctx, &Service{Name: "s", Task: Task{Command: shell("true")}})
		require.NoError(t, err)
		require.NoError(t, r.resize(1))
		return r
	}
	for name, change := range map[string]func(*serviceRecord){
		"id":      func(r *serviceRecord) { r.IDs[0] = "default.>" },
		"old":     func(r *serviceRecord) { r.Old = []string{"../x"} },
		"route":   func(r *serviceRecord) { r.Route = "*" },
		"many":    func(r *serviceRecord) { _ = r.resize(maxReplicas + 1) },
		"task":    func(r *serviceRecord) { r.Task = nil },
		"replica": func(r *serviceRecord) { r.Task.Replica = nil },
		"port":    func(r *serviceRecord) { r.Task.Replica.Port = 1 << 20 },
		"health":  func(r *serviceRecord) { r.Task.Replica.Health = "/" },
		"at":      func(r *serviceRecord) { r.Task.Replica.Port, r.Task.Replica.Health = 80, "@elsewhere/" },
		"command": func(r *serviceRecord) { r.Task.Command = nil },
		"batch":   func(r *serviceRecord) { r.Batch = 0 },
	} {
		r := good()
		require.True(t, r.valid())
		change(r)
		require.False(t, r.valid(), name)
	}
	_, err := q.js.Publish(ctx, q.subject("service", "bad"), []byte("nonsense"))
	require.NoError(t, err)
	require.Error(t, q.Scale(ctx, "bad", 1))
	data, err := encode(good())
	require.NoError(t, err)
	_, err = q.js.Publish(ctx, q.subject("service", "foreign"), data) // as an answer of a server
	require.NoError(t, err)
	require.ErrorContains(t, q.Scale(ctx, "foreign", 1), "written")
	ending := good()
	ending.Definition = ""
	_, err = q.replaceService(ctx, "ending", ending, 0)
	require.NoError(t, err)
	require.ErrorIs(t, q.Scale(ctx, "ending", 2), ErrNoService)
	require.NotEqual(t, healthKey("s", "a.low-s.b"), healthKey("s", "a.normal-s.b"), "a task of another lane says nothing of it")
	id := ending.IDs[0]
	_, err = q.publish(ctx, q.healthSubject("s", id), []byte("nonsense"))
	require.NoError(t, err)
	h, err := q.health(ctx, "s", id)
	require.NoError(t, err)
	require.Nil(t, h)
	var option *sandbox.OptionError
	for _, s := range []Service{{}, {Name: "A"}, {Name: "a"}, {Name: "a", Task: Task{Command: shell(":"), Outputs: []string{"x"}}}, {Name: "a", Task: Task{Command: shell(":")}, Replicas: 1000},
		{Name: "a", Task: Task{Command: shell(":")}, Health: "/x"}, {Name: "a", Task: Task{Command: shell(":")}, Batch: -1}} {
		require.ErrorAs(t, q.Serve(ctx, s), &option, "%+v", s.Name)
	}
	require.ErrorAs(t, NewWorker(q, pool.New(sandbox.New(), 1), TakeServices("0.0.0.0")).Run(ctx), &option)
}
