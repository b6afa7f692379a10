//go:build linux

package queue

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Servers hold workers to their classes: testdata/servers.conf, which docs/QUEUE.md refers to.
func TestAttackOtherClasses(t *testing.T) {
	t.Setenv("STORE", t.TempDir())
	t.Setenv("PASSWORD", "not-a-secret")
	o, err := server.ProcessConfigFile("testdata/servers.conf")
	require.NoError(t, err)
	o.NoLog, o.NoSigs = true, true
	s, err := server.NewServer(o)
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(testkit.Patience))
	as := func(user string) *Queue {
		q, err := Open(testkit.Deadline(t), strings.Replace(s.ClientURL(), "nats://", fmt.Sprintf("nats://%s:not-a-secret@", user), 1))
		require.NoError(t, err)
		t.Cleanup(q.Close)
		return q
	}
	as("owner")
	submitter, worker := as("submitter"), as("linux-worker")
	mine := submit(t, submitter, Task{Command: shell("cat a; echo > out"), Inputs: dirOf(t, "a", strings.Repeat("x", 10_000)), Outputs: []string{"out"}, Class: "linux"})
	others := submit(t, submitter, Task{Command: shell("true"), Class: "gpu"})
	// That worker may not ask its lane.
	_ = submit(t, submitter, Task{Command: shell("true"), Class: "linux", Tenant: "a"})
	failing := submit(t, submitter, Task{Command: []string{"/no/such"}, Class: "linux", Retry: Retry{Attempts: 1}})
	stop := work(t, worker, Classes("linux"))
	require.Len(t, mustWait(t, submitter, mine).Stdout, 10_000)
	_, err = submitter.Wait(testkit.Deadline(t), failing)
	require.ErrorIs(t, err, ErrDead)
	stop()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = worker.replace(ctx, others, &stateRecord{State: Done}, 0)
	require.Error(t, err)
	_, err = worker.consumer(ctx, "gpu", "normal")
	require.Error(t, err)
	_, err = submitter.consumer(ctx, "gpu", "normal")
	require.Error(t, err)
	status, err := submitter.Status(testkit.Deadline(t), others)
	require.NoError(t, err)
	require.Equal(t, Waiting, status.State)
}
