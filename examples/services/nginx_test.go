//go:build linux

package services

import (
	"io"
	"net/http"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// nginx is Debian's, with a configuration of its own. What it needs of /run and /var is empty
// there.
func nginx(conf string) program {
	return program{command: []string{"/usr/sbin/nginx", "-e", "stderr", "-g", "daemon off;", "-c", "/etc/nginx/test.conf"}, stop: syscall.SIGQUIT, with: []sandbox.Option{
		sandbox.WithFile("/etc/nginx/test.conf", []byte("pid /run/nginx.pid;\nevents {}\nhttp { access_log /dev/stdout;\n"+conf+"\n}\n"), 0o644),
		sandbox.WithTmpfs("/run", sandbox.MiB), sandbox.WithTmpfs("/var/lib/nginx", 16*sandbox.MiB)}}
}

func get(t testing.TB, url string) string {
	t.Helper()
	response, err := (&http.Client{Timeout: testkit.Patience, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	return string(body)
}

// TestRootlessNginx has one nginx pass requests on to three, which it finds by one name.
func TestRootlessNginx(t *testing.T) {
	fromBoth(t, "nginx", func(t *testing.T, of describe) {
		back := of("back", nginx("server { listen 80; location / { return 200 $server_addr; } }"), service.Port(80), service.Scale(3), service.Restart(3))
		front := of("front", nginx("server { listen 80; location / { proxy_pass http://back; } }"), service.Port(80), service.After("back"),
			service.Ready(service.Listens(80), service.HTTP(80, "/")))
		web := sandboxtest.Services(t, back, front)
		answers := map[string]bool{}
		testkit.Eventually(t, "all three to answer", func() bool {
			answers[get(t, "http://"+web[1].Addr(80))] = true
			return len(answers) == 3
		})
		r := web[0].Replicas()[0]
		killed(t, r)
		require.NotEmpty(t, get(t, "http://"+r.Addr(80)))
		require.NotEmpty(t, get(t, "http://"+web[1].Addr(80)))
	})
}
