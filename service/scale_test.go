//go:build linux

package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// named answers with what its run is, and says so. From its second start on it is never ready.
const named = `
import os, socket
me = os.urandom(8).hex()
s = socket.create_server(("0.0.0.0", 7))
first = not os.path.exists("/data/started")
open("/data/started", "w").close()
print("ready" if first else "again", me, flush=True)
while True:
    c, _ = s.accept()
    c.sendall(me.encode())
    c.close()
`

// ask returns how often each answer came.
func ask(t *testing.T, addr string, n int) map[string]int {
	answers := map[string]int{}
	for range n {
		answers[testkit.Ask(t, addr)]++
	}
	return answers
}

// askByName returns what each address of the name answers.
func askByName(t *testing.T, i *service.Instance) (answers []string) {
	script := `
import socket
for a in socket.gethostbyname_ex("hello")[2]:
    print(socket.create_connection((a, 7)).recv(99).decode())
`
	out, err := python(script).With(i.Reach()).CombinedOutput(testkit.Deadline(t))
	require.NoError(t, err, "%s", out)
	return strings.Fields(string(out))
}

// Replicas answer in turn at one address, and all by one name. One that is killed is replaced, and
// while it is not ready others answer.
func TestRootlessScale(t *testing.T) {
	testkit.Need(t, "python3")
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	waits, goOn := make(chan struct{}), make(chan struct{})
	i, err := service.New("hello", python(named), service.Port(7), service.Scale(3), service.Restart(1), service.Volume("/data", sandbox.MiB),
		service.Ready(service.Log("^ready"), service.Listens(7)), service.Observe(func(e service.Event) {
			if e.State == service.Waiting {
				close(waits)
				<-goOn
			}
		})).Start(testkit.Deadline(t))
	require.NoError(t, err)
	defer i.Close()
	require.Equal(t, service.Running, i.State())
	first := ask(t, i.Addr(7), 6)
	require.Len(t, first, 3)
	for who, n := range first {
		require.Equal(t, 2, n, who)
	}
	require.Len(t, askByName(t, i), 3)
	killed := i.Replicas()[1]
	who := testkit.Ask(t, killed.Addr(7))
	require.Equal(t, 2, killed.Replica())
	require.Equal(t, map[string]int{who: 4}, ask(t, killed.Addr(7), 4), "an address of its own")
	require.NoError(t, killed.Process().Kill())
	<-waits
	require.Equal(t, service.Waiting, killed.State())
	require.Equal(t, service.Running, i.State())
	others := ask(t, i.Addr(7), 6)
	require.Len(t, others, 2)
	require.NotContains(t, others, who)
	close(goOn)
	testkit.Eventually(t, "the replica to listen again", func() bool { return len(killed.Logs()) == 2 })
	require.Equal(t, service.Starting, killed.State())
	require.Len(t, ask(t, killed.Addr(7), 1), 1)
	require.Equal(t, others, ask(t, i.Addr(7), 6), "it is not ready")
	require.Len(t, askByName(t, i), 2)
	require.Len(t, i.Logs(), 4)
	for _, line := range killed.Logs() {
		require.Equal(t, 2, line.Replica)
	}
	// The control: if none is ready, those that listen are asked.
	for _, r := range i.Replicas() {
		if r != killed {
			require.NoError(t, r.Close())
		}
	}
	require.Len(t, ask(t, i.Addr(7), 2), 1)
	require.Len(t, askByName(t, i), 1)
}

// A replica that is replaced is one of all again.
func TestRootlessScaleReplaced(t *testing.T) {
	testkit.Need(t, "python3")
	ctx := testkit.Deadline(t)
	i, err := service.New("hello", python(strings.ReplaceAll(named, "/data/started", "/tmp/started")), service.Port(7), service.Scale(2), service.Restart(1)).Start(ctx)
	require.NoError(t, err)
	defer i.Close()
	before := ask(t, i.Addr(7), 4)
	require.NoError(t, i.Replicas()[0].Process().Kill())
	testkit.Eventually(t, "a new replica to answer", func() bool {
		if i.Replicas()[0].State() != service.Running || len(i.Replicas()[0].Logs()) < 2 {
			return false
		}
		after := ask(t, i.Addr(7), 4)
		return len(after) == 2 && len(before) == 2
	})
	require.NoError(t, i.Close())
	require.Equal(t, service.Ended, i.State())
}

// If a replica fails for good, the service has failed, with the lines of that one; services whose
// replicas have all exited have ended.
func TestRootlessScaleEnds(t *testing.T) {
	testkit.Need(t, "user namespaces")
	ctx := testkit.Deadline(t)
	i, err := service.New("x", sh("echo $$; exec sleep 1000"), service.Scale(2), service.Ready(service.Log("."))).Start(ctx)
	require.NoError(t, err)
	require.NoError(t, i.Replicas()[1].Process().Kill())
	<-i.Ended()
	require.ErrorContains(t, i.Err(), "service x: replica 2: sandbox: signal: killed; its last lines:\n\t")
	require.Len(t, i.Err().(*service.Error).Last, 1)
	require.Equal(t, service.Failed, i.State())
	require.Equal(t, service.Ended, i.Replicas()[0].State())
	g, err := service.StartAll(ctx, service.New("x", sh("echo done"), service.Scale(2), service.Ready(service.Exits())), service.New("y", sh("exec sleep 1000"), service.After("x"), service.Scale(2)))
	require.NoError(t, err)
	<-g.Service("x").Ended()
	require.NoError(t, g.Service("x").Err())
	require.Len(t, g.Service("x").Logs(), 2)
	require.NoError(t, g.Close())
}

// A replica that is closed before it is ready ends the start, rather than have it wait for ever.
func TestRootlessScaleClosedEarly(t *testing.T) {
	testkit.Need(t, "user namespaces")
	_, err := service.New("x", sh("exec sleep 1000"), service.Scale(2), service.StartTimeout(time.Hour), service.Ready(service.Log("never")), service.Observe(func(e service.Event) {
		if e.Replica == 2 && e.State == service.Starting {
			go e.Instance.Close()
		}
	})).Start(testkit.Deadline(t))
	require.ErrorContains(t, err, "service x: sandbox: not started")
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}

// A volume on disk stays through restarts, and each replica has one of its own.
func TestDiskVolume(t *testing.T) {
	testkit.Need(t, "disks for file systems")
	i, err := service.New("x", sh("echo x >>/data/starts; cat /data/starts; echo; exec sleep 1000"), service.Scale(2), service.DiskVolume("/data", "/var/tmp", 4*sandbox.MiB), service.Restart(1), service.Ready(service.Log("^$"))).Start(testkit.Deadline(t))
	require.NoError(t, err)
	defer i.Close()
	r := i.Replicas()[0]
	require.NoError(t, r.Process().Kill())
	testkit.Eventually(t, "the replica to be started again", func() bool { return len(r.Logs()) == 5 })
	require.Equal(t, []string{"x", "", "x", "x", ""}, texts(r.Logs()))
	require.Equal(t, []string{"x", ""}, texts(i.Replicas()[1].Logs()))
}
