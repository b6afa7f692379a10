//go:build linux

package services

import (
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// rabbit is Debian's RabbitMQ. The package's script in PATH changes to a user of the package's; the
// one behind it does not. The user guest may log in from RabbitMQ's own loopback alone, unless that
// is changed: connections come from the network. The names of its data have the hostname in them,
// which is the same in every run.
var rabbit = program{command: []string{"/usr/lib/rabbitmq/bin/rabbitmq-server"},
	env: []string{"RABBITMQ_LOGS=-", "RABBITMQ_LOG_BASE=/tmp", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-rabbit loopback_users []"},
	// The last are what its scripts execute.
	files: strings.Fields("/usr/lib/rabbitmq /usr/lib/erlang /usr/bin/erl /usr/bin/sh /usr/bin/basename /usr/bin/date /usr/bin/df /usr/bin/dirname /usr/bin/expr /usr/bin/readlink"),
}

// queue returns a channel and a queue that stays.
func queue(t testing.TB, i *service.Instance) *amqp.Channel {
	t.Helper()
	conn, err := amqp.DialConfig("amqp://guest:guest@"+i.Addr(5672)+"/", amqp.Config{Dial: amqp.DefaultDial(testkit.Patience)})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	c, err := conn.Channel()
	require.NoError(t, err)
	_, err = c.QueueDeclare("tasks", true, false, false, false, nil)
	require.NoError(t, err)
	return c
}

// TestRootlessRabbit has a message that was published before RabbitMQ was ended arrive after that.
func TestRootlessRabbit(t *testing.T) {
	fromBoth(t, "RabbitMQ", rabbitRestarted)
}

func rabbitRestarted(t *testing.T, of describe) {
	i := sandboxtest.Service(t, of("rabbit", rabbit, service.Volume("/var/lib/rabbitmq", 128*sandbox.MiB), service.Port(5672), service.StartTimeout(testkit.Scale(5*time.Minute, 20*time.Minute)), service.Restart(2), service.RestartEnded()))
	c := queue(t, i)
	require.NoError(t, c.Confirm(false))
	sent, err := c.PublishWithDeferredConfirm("", "tasks", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("kept")})
	require.NoError(t, err)
	confirmed, err := sent.WaitContext(testkit.Deadline(t))
	require.NoError(t, err)
	require.True(t, confirmed)
	// If it is killed, RabbitMQ 3.10 now and then removes the queue when it starts again,
	// outside of sandboxes too.
	first := i.Process()
	require.NoError(t, first.Signal(syscall.SIGTERM))
	testkit.Eventually(t, "RabbitMQ to be back", func() bool {
		p := i.Process()
		return p != nil && p != first && i.State() == service.Running
	})
	got, ok, err := queue(t, i).Get("tasks", true)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "kept", string(got.Body))
}
