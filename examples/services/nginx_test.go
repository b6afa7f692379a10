//go:build linux

package services

import (
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// nginx is Debian's, with a configuration of its own. What it needs of /run and /var is empty
// there.
func nginx(conf string) *sandbox.Sandbox {
	return sandbox.New(sandbox.WithCommand("nginx", "-e", "stderr", "-g", "daemon off;", "-c", "/etc/nginx/test.conf"),
		sandbox.WithFile("/etc/nginx/test.conf", []byte("pid /run/nginx.pid;\nevents {}\nhttp { access_log /dev/stdout;\n"+conf+"\n}\n"), 0o644),
		sandbox.WithTmpfs("/run", sandbox.MiB), sandbox.WithTmpfs("/var/lib/nginx", 16*sandbox.MiB), sandbox.WithStopSignal(syscall.SIGQUIT, 10*time.Second))
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
	testkit.Need(t, "nginx")
	back := service.New("back", nginx("server { listen 80; location / { return 200 $pid; } }"), service.Port(80), service.Scale(3), service.Restart(3))
	front := service.New("front", nginx("server { listen 80; location / { proxy_pass http://back; } }"), service.Port(80), service.After("back"),
		service.Ready(service.Listens(80), service.HTTP(80, "/")))
	web := sandboxtest.Services(t, back, front)
	require.NotEmpty(t, get(t, "http://"+web[1].Addr(80)))
	r := web[0].Replicas()[0]
	first := r.Process()
	require.NoError(t, first.Kill())
	testkit.Eventually(t, "the replica to be replaced", func() bool {
		p := r.Process()
		return p != nil && p != first && r.State() == service.Running
	})
	require.NotEmpty(t, get(t, "http://"+r.Addr(80)))
}
