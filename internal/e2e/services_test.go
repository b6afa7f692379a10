//go:build linux

package e2e

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Each run has a network of its own, whose description is used many times at once.
func TestRootlessPrivateAlone(t *testing.T) {
	t.Parallel()
	port := echoServer(t, "127.0.0.1", "one")
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1"})
	var seen observer
	alone := sandbox.Private(sandbox.AllowHost("one.test", port), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(port)), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(seen.tell))
	web := listening(t, "web", "0.0.0.0:80", sandbox.WithNetwork(alone), sandbox.WithPublish("127.0.0.1:0", 80))
	require.Equal(t, "web: hello", reach(web.Published()[0].String()))
	got := runs.Output(t, runs.Helper("reach", at("one.test", port), "198.18.0.2:80", "198.18.0.3:80").With(sandbox.WithNetwork(alone)))
	require.Regexp(t, `^one: hello\nno: .* refused\nno: .* refused$`, got, "the other has the same address, on a network of its own")
	require.Equal(t, "run", seen.await(t, "one.test", func(c sandbox.Conn) bool { return c.Name == "one.test" }).Run)

	s := runs.Prepared(t, 2, append(runs.HelperOptions(), sandbox.WithNetwork(alone))...)
	for range 3 {
		r, w := io.Pipe()
		p := runs.StartPrepared(t, runs.HelperOf(s, "listen", "web", "0.0.0.0:80").With(sandbox.WithStdout(w), sandbox.WithPublish("127.0.0.1:0", 80)))
		_, err := io.ReadFull(r, make([]byte, 10))
		require.NoError(t, err)
		require.Equal(t, "web: hello", reach(p.Published()[0].String()))
	}
	_, err := work.Call(testkit.Deadline(t), job{Do: "see", Text: "tcp:198.18.0.1:53"}, sandbox.WithNetwork(alone))
	require.NoError(t, err, "functions are runs")

	_, err = runs.Shell("", sandbox.WithNetwork(sandbox.Private(sandbox.AllowHost("127.0.0.1", 80), sandbox.MaxConns(0)))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "sandbox: AllowHost: ")
	require.ErrorContains(t, err, "sandbox: MaxConns: ")
}
