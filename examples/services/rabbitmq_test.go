//go:build linux

package services

import (
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
var rabbit = service.New("rabbit", sandbox.New(sandbox.WithCommand("/usr/lib/rabbitmq/bin/rabbitmq-server"),
	sandbox.WithEnv("RABBITMQ_LOGS=-", "RABBITMQ_LOG_BASE=/tmp", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-rabbit loopback_users []")),
	service.Volume("/var/lib/rabbitmq", 128*sandbox.MiB), service.Port(5672), service.StartTimeout(5*time.Minute), service.Restart(2))

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

// TestRootlessRabbit has a message that was published before RabbitMQ was killed arrive after that.
func TestRootlessRabbit(t *testing.T) {
	testkit.Need(t, "RabbitMQ")
	i := sandboxtest.Service(t, rabbit)
	c := queue(t, i)
	require.NoError(t, c.Confirm(false))
	sent, err := c.PublishWithDeferredConfirm("", "tasks", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("kept")})
	require.NoError(t, err)
	confirmed, err := sent.WaitContext(testkit.Deadline(t))
	require.NoError(t, err)
	require.True(t, confirmed)
	first := i.Process()
	require.NoError(t, first.Kill())
	testkit.Eventually(t, "RabbitMQ to be back", func() bool {
		p := i.Process()
		return p != nil && p != first && i.State() == service.Running
	})
	got, ok, err := queue(t, i).Get("tasks", true)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "kept", string(got.Body))
}
