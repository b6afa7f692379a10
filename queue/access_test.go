//go:build linux

package queue

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
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
	seeds := map[string]string{}
	for name, variable := range map[string]string{"owner": "OWNER", "submitter": "SUBMITTER", "linux-worker": "LINUX_WORKER"} {
		var public string
		seeds[name], public = seedFile(t)
		t.Setenv(variable, public)
	}
	t.Setenv("STORE", t.TempDir())
	t.Setenv("CERT", cert)
	t.Setenv("KEY", key)
	o, err := server.ProcessConfigFile("testdata/servers.conf")
	require.NoError(t, err)
	url := startServer(t, o).ClientURL()
	trust := TLS(&tls.Config{RootCAs: a.pool()})
	as := func(user string) *Queue {
		q, err := Open(testkit.Deadline(t), url, trust, NKey(seeds[user]))
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	owner := as("owner")
	submitter, worker := as("submitter"), as("linux-worker")
	mine := submit(t, submitter, Task{Command: shell("cat a; echo > out"), Inputs: dirOf(t, "a", strings.Repeat("x", 10_000)), Outputs: []string{"out"}, Class: "linux"})
	others := submit(t, submitter, Task{Command: shell("true"), Class: "gpu"})
	// That worker may not ask its lane.
	_ = submit(t, submitter, Task{Command: shell("true"), Class: "linux", Tenant: "a"})
	failing := submit(t, submitter, Task{Command: []string{"/no/such"}, Class: "linux", Retry: Retry{Attempts: 1}})
	stop := work(t, worker, Classes("linux"), WorkerName("one"))
	require.Len(t, mustWait(t, submitter, mine).Stdout, 10_000)
	_, err = submitter.Wait(testkit.Deadline(t), failing)
	require.ErrorIs(t, err, ErrDead)
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	testkit.Eventually(t, "workers of a class may ask each other", func() bool { return bytes.Equal(free, worker.ask(ctx, "linux", "one", mine)) })
	stop()

	// It sees what a worker of gpu is given, and can't end it.
	overheard := make(chan *nats.Msg, 100)
	_, err = worker.nc.ChanSubscribe("_INBOX.>", overheard)
	require.NoError(t, err)
	require.NoError(t, worker.nc.FlushWithContext(ctx))
	c, err := owner.consumer(ctx, "gpu", "normal")
	require.NoError(t, err)
	m, err := c.Next()
	require.NoError(t, err)
	testkit.Eventually(t, "it is overheard", func() bool {
		select {
		case heard := <-overheard:
			return heard.Reply == m.Reply()
		default:
			return false
		}
	})
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

	stranger, _ := seedFile(t)
	require.ErrorIs(t, refused(t, url, trust, NKey(stranger)), nats.ErrAuthorization, "the server does not know it")
	require.ErrorIs(t, refused(t, url, trust), nats.ErrAuthorization, "nobody")
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, refused(t, url, TLS(&tls.Config{RootCAs: newAuthority(t).pool()}), NKey(seeds["owner"])), &unknown, "somebody else's server")
	var option *sandbox.OptionError
	require.ErrorAs(t, refused(t, url, trust, NKey("/no/such/file")), &option)
	require.ErrorAs(t, refused(t, url, trust, NKey(cert)), &option, "a file of something else")
}
