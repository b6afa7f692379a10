//go:build linux

package queue

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Servers know programs by nkeys over TLS, and hold workers to their classes: with
// testdata/servers.conf, which docs/QUEUE.md refers to.
func TestAttackOtherClasses(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.files()
	seeds, users := map[string]string{}, []string{}
	for _, name := range []string{"OWNER", "SUBMITTER", "LINUX_WORKER"} {
		var public string
		seeds[name], public = seedFile(t)
		users = append(users, "$"+name, public)
	}
	t.Setenv("STORE", t.TempDir())
	t.Setenv("CERT", cert)
	t.Setenv("KEY", key)
	conf, err := os.ReadFile("testdata/servers.conf")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "servers.conf")
	require.NoError(t, os.WriteFile(file, []byte(strings.NewReplacer(users...).Replace(string(conf))), 0o600))
	o, err := server.ProcessConfigFile(file)
	require.NoError(t, err)
	url := startServer(t, o).ClientURL()
	trust := TLS(&tls.Config{RootCAs: a.pool()})
	as := func(user string) *Queue {
		q, err := Open(testkit.Deadline(t), url, trust, NKey(seeds[user]))
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	owner := as("OWNER")
	submitter, worker := as("SUBMITTER"), as("LINUX_WORKER")
	mine := submit(t, submitter, Task{Command: shell("cat a; echo > out"), Inputs: dirOf(t, "a", strings.Repeat("x", 10_000)), Outputs: []string{"out"}, Class: "linux"})
	others := submit(t, submitter, Task{Command: shell("true"), Class: "gpu"})
	// That worker may not ask its lane.
	_ = submit(t, submitter, Task{Command: shell("true"), Class: "linux", Tenant: "a"})
	failing := submit(t, submitter, Task{Command: []string{"/no/such"}, Class: "linux", Retry: Retry{Attempts: 1}})
	stop := work(t, worker, Classes("linux"), WorkerName("linux-1"))
	require.Len(t, mustWait(t, submitter, mine).Stdout, 10_000)
	_, err = submitter.Wait(testkit.Deadline(t), failing)
	require.ErrorIs(t, err, ErrDead)
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	testkit.Eventually(t, "workers of a class may ask each other", func() bool { return bytes.Equal(free, worker.ask(ctx, "linux", "linux-1", mine)) })
	stop()
	lost := submit(t, submitter, Task{Command: shell("true"), Class: "linux"})
	lane, err := worker.consumer(ctx, "linux", "normal")
	require.NoError(t, err)
	testkit.Eventually(t, "it is handed out, to nobody", func() bool {
		m, err := lane.Next()
		return err == nil && worker.idOf("task", m.Subject()) == lost
	})
	n, err := worker.returnLost(ctx, "linux", "normal")
	require.NoError(t, err)
	require.Equal(t, 1, n, "it may look for what was lost in its class")

	// It does not see what a worker of gpu is given, as who may see everything does, and can't
	// end it.
	listen := func(q *Queue) chan *nats.Msg {
		heard := make(chan *nats.Msg, 1000)
		_, err := q.nc.ChanSubscribe("_INBOX.>", heard)
		require.NoError(t, err)
		_, err = q.nc.ChanSubscribe("_INBOX."+users[1]+".>", heard) // the owner's
		require.NoError(t, err)
		require.NoError(t, q.nc.FlushWithContext(ctx))
		return heard
	}
	workerHears, submitterHears, hears := listen(worker), listen(submitter), listen(as("OWNER"))
	c, err := owner.consumer(ctx, "gpu", "normal")
	require.NoError(t, err)
	m, err := c.Next()
	require.NoError(t, err)
	testkit.Eventually(t, "it is heard", func() bool {
		select {
		case heard := <-hears:
			return heard.Reply == m.Reply()
		default:
			return false
		}
	})
	require.NoError(t, worker.nc.FlushWithContext(ctx))
	require.NoError(t, submitter.nc.FlushWithContext(ctx))
	require.Empty(t, workerHears)
	require.Empty(t, submitterHears)
	require.NoError(t, worker.nc.Publish(m.Reply(), []byte("+TERM")))
	require.NoError(t, worker.nc.FlushWithContext(ctx))
	_, err = owner.nc.RequestWithContext(ctx, m.Reply(), []byte("+WPI")) // what was sent before is done then
	require.NoError(t, err)
	info, err := c.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, info.NumAckPending)
	require.NoError(t, owner.tasks.DeleteConsumer(ctx, "gpu-normal"))

	short, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = worker.replace(short, others, &stateRecord{State: Done}, 0)
	require.Error(t, err)
	_, err = worker.consumer(short, "gpu", "normal")
	require.Error(t, err)
	_, err = submitter.consumer(short, "gpu", "normal")
	require.Error(t, err)
	status, err := submitter.Status(testkit.Deadline(t), others)
	require.NoError(t, err)
	require.Equal(t, Waiting, status.State)

	// It can't speak for others, nor for another class: a task that asks for too much is not
	// left to a worker that says that it is of the task's class.
	lie, err := encode(&workerRecord{Version: version, Classes: []string{"gpu"}, Slots: 8, Offer: Offer{Max: Limits{Memory: 1 << 50, CPUs: 1 << 10, PIDs: 1 << 20, CPUTime: 1 << 50, Timeout: 1 << 50, Output: 1 << 50, Files: 1 << 50}}})
	require.NoError(t, err)
	says := func() bool {
		for _, name := range []string{"linux-1", "gpu-2"} {
			require.NoError(t, worker.nc.Publish("sandbox.worker."+name, lie))
		}
		require.NoError(t, worker.nc.FlushWithContext(ctx))
		says := false
		for s, err := range owner.Workers(ctx) {
			require.NoError(t, err)
			require.NotEqual(t, "gpu-2", s.Name)
			says = says || s.Name == "linux-1" && slices.Contains(s.Classes, "gpu")
		}
		return says
	}
	testkit.Eventually(t, "it says so", says)
	large := submit(t, submitter, Task{Command: shell("true"), Class: "gpu", Limits: Limits{Memory: 1 << 40}, Retry: Retry{Attempts: 1}})
	stop = work(t, owner, Classes("gpu"), WorkerName("gpu-1"))
	testkit.Eventually(t, "it fails, while the other one says so", func() bool {
		require.True(t, says())
		time.Sleep(100 * time.Millisecond)
		status, err = submitter.Status(ctx, large)
		require.NoError(t, err)
		return status.State == Dead
	})
	require.Contains(t, status.Text, "asks for")
	stop()

	// Servers write answers wherever who asks says. What it has them write there is no end, no
	// state and no task of another class.
	victim := submit(t, submitter, Task{Command: shell("true"), Class: "gpu"})
	results := make(chan *Result, 1)
	go func() {
		res, _ := submitter.Wait(ctx, victim) // nil: it failed
		results <- res
	}()
	announcements := make(chan *nats.Msg, 1000)
	_, err = submitter.nc.ChanSubscribe("sandbox.now."+victim, announcements)
	require.NoError(t, err)
	require.NoError(t, submitter.nc.FlushWithContext(ctx))
	forged, err := encode(&stateRecord{Version: version, State: Done, Attempt: 1, Worker: "linux-1", Run: &runRecord{Reason: "exited"}})
	require.NoError(t, err)
	r, err := (&Task{Command: shell("true"), Class: "gpu"}).record(nil)
	require.NoError(t, err)
	task, err := encode(r)
	require.NoError(t, err)
	claims := nats.Header{expected: {"0"}, "Nats-Stream": {"sandbox-states"}, "Nats-Subject": {"sandbox.state." + victim}, "Nats-Sequence": {"1"}}
	var tasks []string
	for n, header := range []nats.Header{nil, {expected: {"0"}}, claims} {
		for m, body := range []string{"", `{"no_hdr":true}`} {
			name := fmt.Sprint(n, "-", m)
			tasks = append(tasks, "gpu.normal."+name)
			for _, f := range []struct {
				to   string
				data []byte
			}{{"now." + victim, forged}, {"state." + victim, forged}, {"task.gpu.normal." + name, task}} {
				_, err := worker.js.PublishMsg(ctx, &nats.Msg{Subject: "sandbox.chunk.x" + name + "." + f.to[:1], Header: header, Data: f.data})
				require.NoError(t, err)
				require.NoError(t, worker.nc.PublishRequest("$JS.API.DIRECT.GET.sandbox-blobs.sandbox.chunk.x"+name+"."+f.to[:1], "sandbox."+f.to, []byte(body)))
			}
		}
	}
	testkit.Eventually(t, "they are stored", func() bool {
		_, err := owner.task(ctx, tasks[len(tasks)-1])
		return !errors.Is(err, ErrNotFound)
	})
	for range tasks {
		_, _, err := submitter.announced(<-announcements)
		require.True(t, errors.Is(err, errHeaders) || errors.Is(err, errForeign), "%v", err)
	}
	status, err = submitter.Status(ctx, victim)
	require.NoError(t, err)
	require.Equal(t, Waiting, status.State)
	stop = work(t, owner, Classes("gpu"), WorkerName("gpu-1"))
	res := <-results
	require.NotNil(t, res)
	require.Equal(t, "gpu-1", res.Worker)
	for _, id := range tasks {
		_, err := submitter.Wait(ctx, id)
		require.ErrorIs(t, err, ErrDead, id)
	}
	stop()

	// Who may not ask for many ends at once is not kept waiting for long.
	begun := time.Now()
	_, answered := worker.ended(ctx, []string{mine})
	require.False(t, answered)
	require.Less(t, time.Since(begun), 2*endedTime)
	ends, answered := submitter.ended(ctx, []string{mine})
	require.True(t, answered)
	require.NotNil(t, ends[mine])

	// What it may not read plainly is an error soon, whatever the headers pretend.
	for _, header := range []nats.Header{{"Nats-Sequence": {"7"}}, {"Status": {"503"}}} {
		id := submit(t, submitter, Task{Command: shell("true"), Class: "linux", Delay: time.Hour})
		_, err := submitter.js.PublishMsg(ctx, &nats.Msg{Subject: submitter.subject("state", id), Header: header})
		require.NoError(t, err)
		_, _, err = worker.state(ctx, id)
		require.ErrorIs(t, err, errHeaders)
		_, _, err = submitter.state(ctx, id)
		require.NoError(t, err)
	}

	stranger, _ := seedFile(t)
	require.ErrorIs(t, refused(t, url, trust, NKey(stranger)), nats.ErrAuthorization, "the server does not know it")
	require.ErrorIs(t, refused(t, url, trust), nats.ErrAuthorization, "nobody")
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, refused(t, url, TLS(&tls.Config{RootCAs: newAuthority(t).pool()}), NKey(seeds["OWNER"])), &unknown, "somebody else's server")
	var option *sandbox.OptionError
	require.ErrorAs(t, refused(t, url, trust, NKey("/no/such/file")), &option)
	require.ErrorAs(t, refused(t, url, trust, NKey(cert)), &option, "a file of something else")
}
