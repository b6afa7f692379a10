//go:build linux

package e2e

import (
	"io"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Runs of several cells on one network find and reach each other as those of one do.
func TestRootlessPrivateCells(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	n := newNetwork(t, local(t, port)...)
	own, err := sandbox.NewCell()
	require.NoError(t, err)
	defer own.Close()
	in := sandbox.WithCell(own)
	on := func(name string, opts ...sandbox.PlaceOption) sandbox.Option {
		return sandbox.WithNetwork(n.As(name, opts...))
	}
	_, err = sandbox.New(sandbox.WithCommand("no-such-command"), on("none"), in).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)

	db := listening(t, "db", "[::]:80", on("db"))
	listening(t, "sink", "[::]:80", on("sink"), in)
	r, w := io.Pipe()
	runs.Start(t, runs.Helper("listen-udp", "dns", ":53").With(on("dns"), in, sandbox.WithStdout(w)))
	_, err = io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)

	here, there := held(t, on("here")), held(t, on("there"), in)
	require.Equal(t, []string{"db: hello", "db: hello", "sink: hello", "one: hello"}, reachingIn(t, there, "db:80", "tcp4/db.internal:80", "sink:80", at("one.test", port)))
	require.Equal(t, []string{"db: hello", "sink: hello", "one: hello"}, reachingIn(t, here, "db:80", "sink:80", at("one.test", port)))
	require.Equal(t, []string{"dns answered", "there answered"}, printedIn(t, here, "ping-to", "20s", "dns", "there"))
	require.Equal(t, "12 110 110 ", printedIn(t, here, "datagrams", "20s", "dns:53")[0])
	if runs.HasIPv6() {
		require.Equal(t, []string{"db: hello", "sink: hello"}, reachingIn(t, there, "tcp6/db:80", "tcp6/sink:80"))
		require.Equal(t, []string{"sink: hello"}, reachingIn(t, here, "tcp6/sink:80"))
		require.Equal(t, []string{"ip6/there answered"}, printedIn(t, here, "ping-to", "20s", "ip6/there"))
	}
	// A mebibyte, and back.
	runs.Output(t, runs.Helper("exchange", "db:80").With(on("client"), in))

	was := addressOf(t, db, 80)
	require.NoError(t, db.Kill())
	_, _ = db.Wait()
	require.NotContains(t, reachingIn(t, there, was)[0], "hello", "a run that has ended")
	require.Equal(t, "db: hello", func() string {
		listening(t, "db", "[::]:80", on("db"), in)
		return reachingIn(t, here, "db:80")[0]
	}(), "another of its name, in the other cell")

	require.NoError(t, own.Close())
	got := reachingIn(t, here, "db:80", at("one.test", port))
	require.Contains(t, got[0], "no such host", "a run whose cell has ended")
	require.Equal(t, "one: hello", got[1])
	third, err := sandbox.NewCell()
	require.NoError(t, err)
	defer third.Close()
	listening(t, "late", "[::]:80", on("late"), sandbox.WithCell(third))
	require.Equal(t, "late: hello", reachingIn(t, here, "late:80")[0])
}

// Reaches holds from cell to cell.
func TestRootlessReachesCells(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	own, err := sandbox.NewCell()
	require.NoError(t, err)
	defer own.Close()
	on := func(name string, reaches ...string) sandbox.Option {
		return sandbox.WithNetwork(n.As(name, sandbox.Reaches(reaches...)))
	}
	listening(t, "db", "[::]:80", on("db"))
	web := held(t, on("web", "db", "late"), sandbox.WithCell(own))
	other := listening(t, "other", "[::]:80", on("other"))
	require.Equal(t, "db: hello", reachingIn(t, web, "db:80")[0])
	got := reachingIn(t, web, "other:80", addressOf(t, other, 80))
	require.Contains(t, got[0], "no such host")
	require.Regexp(t, "permission denied|no route to host", got[1])
	listening(t, "late", "[::]:80", on("late"))
	require.Equal(t, "late: hello", reachingIn(t, web, "late:80")[0])
}

// A run without a user namespace is in a cell of its own: the others find and ping it, and it them.
func TestPrivateCellsNoUserNamespace(t *testing.T) {
	testkit.Need(t, "root's power over networks")
	t.Parallel()
	n := newNetwork(t, sandbox.AllowHost("one.test", sandbox.Ping()), sandbox.AllowCIDR("127.0.0.1", sandbox.Ping()), sandbox.NetworkResolver(testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"}).Resolver()))
	plain := listening(t, "plain", "[::]:80", sandbox.WithNetwork(n.As("plain")), sandbox.WithoutUserNamespace())
	here := listening(t, "here", "[::]:80", sandbox.WithNetwork(n.As("here")))
	require.Equal(t, []string{"plain: hello"}, reachingIn(t, here, "plain:80"))
	require.Equal(t, []string{"here: hello"}, reachingIn(t, plain, "here:80"))
	require.Equal(t, []string{"plain answered"}, printedIn(t, here, "ping-to", "20s", "plain"))
	require.Equal(t, []string{"here answered", "one.test answered"}, printedIn(t, plain, "ping-to", "20s", "here", "one.test"))
}
