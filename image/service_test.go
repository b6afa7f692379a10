//go:build linux

package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// programOf is a layer with a program of this machine, and what it is linked with.
func programOf(t testing.TB, name string) []byte {
	t.Helper()
	testkit.Need(t, name)
	path, err := exec.LookPath(name)
	require.NoError(t, err)
	linked, err := exec.Command("ldd", path).Output()
	require.NoError(t, err)
	args := []string{"-chP", "--hard-dereference", path}
	for _, word := range strings.Fields(string(linked)) {
		if strings.HasPrefix(word, "/") {
			args = append(args, word)
		}
	}
	archive, err := exec.Command("tar", args...).Output()
	require.NoError(t, err)
	return archive
}

// Servers of this machine's packages run from images that have nothing else, as a user of no name.
// Opening an image reports its layers once.
func TestRootlessServices(t *testing.T) {
	const conf = "daemon off; pid /tmp/pid; error_log stderr; events {} http { access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e; server { listen 80; return 204; } }"
	for name, c := range map[string]struct {
		args []string
		opts []service.Option
	}{
		"redis-server": {[]string{"--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"}, []service.Option{service.Port(6379), service.Volume("/data", sandbox.MiB)}},
		"nginx":        {[]string{"-e", "stderr", "-c", "/srv/conf"}, []service.Option{service.Port(80), service.Ready(service.Listens(80), service.HTTP(80, "/")), service.With(sandbox.WithFile("/srv/conf", []byte(conf), 0o444))}},
		"etcd":         {[]string{"--data-dir", "/data/etcd", "--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://127.0.0.1:2379"}, []service.Option{service.Port(2379), service.Volume("/data", 256*sandbox.MiB), service.Ready(service.HTTP(2379, "/health"))}},
	} {
		t.Run(name, func(t *testing.T) {
			layer := programOf(t, name)
			path, err := exec.LookPath(name)
			require.NoError(t, err)
			ref := layoutOf(t, imageOf(t, v1.Config{User: "1234:1234", Entrypoint: []string{path}, Cmd: c.args}, asGzip(t, layer)))
			var mu sync.Mutex
			layers := 0
			s := service.Open("x", Sandbox(ref, WithStore(newStore(t))), append(c.opts, service.Scale(2), service.Observe(func(e service.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.State == service.Preparing && e.Progress.What == "layer 1 of 1" && e.Progress.Done == e.Progress.Total {
					layers++
				}
			}))...)
			i, err := s.Start(testkit.Deadline(t))
			require.NoError(t, err)
			require.NoError(t, i.Close())
			require.Positive(t, layers)
			first := layers
			i, err = s.Start(testkit.Deadline(t))
			require.NoError(t, err)
			require.NoError(t, i.Close())
			require.Equal(t, first, layers)
		})
	}
}

// A service is ended by the signal that its image names.
func TestRootlessServiceStopSignal(t *testing.T) {
	testkit.Need(t, "a static busybox")
	ref := layoutOf(t, imageOf(t, v1.Config{StopSignal: "SIGUSR1", Cmd: []string{"sh", "-c", "trap 'echo asked; exit' USR1; echo ready; while :; do busybox sleep 0.1; done"}}, asGzip(t, busybox(t))))
	i, err := service.Open("x", Sandbox(ref, WithStore(newStore(t))), service.Ready(service.Log("ready"))).Start(testkit.Deadline(t))
	require.NoError(t, err)
	require.NoError(t, i.Close())
	require.Equal(t, "[ready asked]", fmt.Sprint(i.Logs()))
}

// A run of an image on a private network uses that network's names and not the image's, and is
// published by WithPublish alone, whatever ports the image exposes.
func TestRootlessPrivateNetwork(t *testing.T) {
	testkit.Need(t, "a static busybox")
	foreign := tarOf(t, file{name: "etc/resolv.conf", content: "nameserver 192.0.2.1\n"}, file{name: "etc/hosts", content: "192.0.2.1 web\n"})
	img := open(t, newStore(t), layoutOf(t, imageOf(t, v1.Config{ExposedPorts: volumes("80/tcp"), Cmd: []string{"sh", "-c", "echo page > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp"}}, asGzip(t, busybox(t)), asGzip(t, foreign))))
	n, err := sandbox.NewNetwork()
	require.NoError(t, err)
	defer n.Close()
	defer http.DefaultClient.CloseIdleConnections()
	s := sandbox.New(img.Options()...)
	for name, opts := range map[string][]sandbox.Option{"web": {sandbox.WithPublish("127.0.0.1:0", 80)}, "hidden": nil} {
		p, err := s.With(img.Command()).With(sandbox.WithNetwork(n.As(name))).With(opts...).Start(testkit.Deadline(t))
		require.NoError(t, err)
		defer func() { _ = p.Kill(); _, _ = p.Wait() }()
		require.Len(t, p.Published(), len(opts))
		require.Equal(t, "page", run(t, img, "until busybox wget -q -O - http://"+name+"/ 2>/dev/null; do busybox sleep 0.01; done", sandbox.WithNetwork(n.As("client"))))
		for _, at := range p.Published() {
			res, err := http.Get(fmt.Sprintf("http://%v/", at))
			require.NoError(t, err)
			body, err := io.ReadAll(res.Body)
			require.NoError(t, errors.Join(err, res.Body.Close()))
			require.Equal(t, "page\n", string(body))
		}
	}
	require.Contains(t, run(t, img, "busybox nslookup one.test 2>&1 || true", sandbox.WithNetwork(n.As("client"))), "NXDOMAIN")
}

// A volume of a service begins with what the image has at its place, for each replica, as the
// image's user's, and stays as it is through restarts.
func TestRootlessServiceVolumes(t *testing.T) {
	testkit.Need(t, "a static busybox")
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	const script = "cd /srv; stat -c %n=%a,%u . base; find . -type f | sort; cat base; echo; echo changed >base; busybox rm gone 2>/dev/null || exit 0; exit 1"
	ref := layoutOf(t, imageOf(t, v1.Config{User: "app", Volumes: volumes("/srv"), Cmd: []string{"sh", "-c", script}}, asGzip(t, busybox(t)), asGzip(t, tarOf(t, file{name: "srv/", uid: 33, mode: 0o700}))))
	open := Sandbox(ref, WithStore(newStore(t)))
	ends := []service.Option{service.Ready(service.Exits()), service.Restart(1)}
	i, err := service.Open("x", open, append(ends, service.Scale(2), service.Volume("/srv", sandbox.MiB))...).Start(testkit.Deadline(t))
	require.NoError(t, err)
	for _, r := range i.Replicas() {
		var lines []string
		for _, line := range r.Logs() {
			lines = append(lines, line.Text)
		}
		require.Equal(t, ".=700,33 base=600,33 ./base ./gone base .=700,33 base=600,33 ./base changed ", strings.Join(lines, " "))
	}
	require.NoError(t, i.Close())

	i, err = service.Open("x", open, service.Ready(service.Exits()), service.Volume("/srv", sandbox.MiB, service.NoCopy()), service.With(sandbox.WithCommand("ls", "-A", "/srv"))).Start(testkit.Deadline(t))
	require.NoError(t, err)
	require.Empty(t, i.Logs())
	require.NoError(t, i.Close())

	_, err = service.Open("x", open, service.Volume("/bin", 4096)).Start(testkit.Deadline(t))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "x: sandbox: Fill: what the image has at /bin can't be copied")
	require.ErrorContains(t, err, "give service.Volume more bytes, or service.NoCopy")
}
