//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Layers hide what is below them, except directories, which are merged.
func TestRootlessLayers(t *testing.T) {
	t.Parallel()
	base := testkit.Layer(t, map[string]string{"etc/a": "base", "etc/b": "base", "opt/only": "base", "data": "-> opt", "file": "base", "var/": ""})
	box := testkit.BusyboxRoot(t)
	top := testkit.Layer(t, map[string]string{"etc/b": "top", "etc/c": "top", "file/in": "top"})
	s := sandbox.New(runs.Layers(base, box, top), sandbox.WithTmpfs("/var/cache/deep", sandbox.MiB))
	given := sandbox.WithFile("/data/file", []byte("given"), 0o644)
	before := [][]string{testkit.Tree(t, base), testkit.Tree(t, box), testkit.Tree(t, top)}
	run := func(script string, opts ...sandbox.Option) string {
		t.Helper()
		return runs.Output(t, s.With(append(opts, sandbox.WithCommand("sh", "-c", script))...))
	}
	for range 2 {
		require.Equal(t, "base top top base top given",
			run(`echo $(cat /etc/a; echo; cat /etc/b; echo; cat /etc/c; echo; cat /opt/only; echo; cat /file/in; echo; cat /data/file)`, given))
		require.Equal(t, "refused", run(`touch /etc/x 2>/dev/null || touch /x 2>/dev/null || echo refused; touch /var/cache/deep/x /tmp/x ~/x`))
		require.Equal(t, "new", run(`mkdir /new && cd /new && echo new >f && cat f`, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0)))
	}
	require.Equal(t, before, [][]string{testkit.Tree(t, base), testkit.Tree(t, box), testkit.Tree(t, top)}, "layers change")

	s = s.With(runs.Layers(append(manyLayers(t, 63), box)...))
	require.Equal(t, "62 63", run("echo $(cat /last; echo; cat /f* | wc -c)"))
	require.Equal(t, "62 63", run("echo $(cat /last; echo; cat /f* | wc -c)", sandbox.WithWritableRoot(sandbox.MiB)))
}

// Files in a layer keep their owners in the run, and their permissions hold for these.
func TestLayersKeepOwners(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	box := testkit.BusyboxRoot(t)
	own := testkit.Layer(t, map[string]string{"root": "root's", "www": "www's", "user": "user's", "far": "", "home/": "", "srv/": "", "srv/file": "x", "setid": ""})
	for name, id := range map[string]int{"www": 33, "user": 1000, "far": 70000, "home": 1000, "srv": 33, "srv/file": 33} {
		require.NoError(t, os.Lchown(own+"/"+name, id, id))
	}
	for _, name := range []string{"root", "www", "user"} {
		require.NoError(t, os.Chmod(own+"/"+name, 0o600))
	}
	require.NoError(t, os.Chmod(own+"/srv", 0o750))
	require.NoError(t, unix.Chmod(own+"/setid", 0o4755))
	before := testkit.Tree(t, own)
	base := sandbox.New(runs.Layers(box, own))
	for _, opts := range [][]sandbox.Option{nil, {sandbox.WithWritableRoot(sandbox.MiB)}} {
		s := base.With(opts...)
		run := func(script string, opts ...sandbox.Option) string {
			t.Helper()
			return runs.Output(t, s.With(append(opts, sandbox.WithCommand("sh", "-c", script))...))
		}
		require.Equal(t, "0:0 33:33 1000:1000 65534:65534 1000:1000 33:33 0:0", run("echo $(stat -c %u:%g /root /www /user /far /home /srv /bin)"))
		require.Equal(t, "user's no", run("echo $(cat /user) $(cat /root /www /srv/file 2>/dev/null || echo no)"))
		require.Equal(t, "root's no", run("echo $(cat /root) $(cat /www 2>/dev/null || echo no)", sandbox.WithUser(0, 0)), "no capabilities")
		require.Equal(t, "www'sx", run("cat /www /srv/file", sandbox.WithUser(33, 33)))
		require.Equal(t, "755 0:0", run("stat -c '%a %u:%g' /"))
	}
	run := func(user int, script string) string {
		t.Helper()
		return runs.Output(t, base.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(user, user), sandbox.WithCommand("sh", "-c", script)))
	}
	for range 2 {
		require.Equal(t, "more", run(33, "echo more >/srv/file && cat /srv/file && rm /srv/file && mkdir /srv/dir"))
		require.Equal(t, "0:0 no", run(0, "echo x >/root && rm /root && mkdir -p /root/a && echo $(stat -c %u:%g /root/a) $(touch /srv/x 2>/dev/null || echo no)"))
		require.Equal(t, "no", run(1000, "(echo x >/setid || rm /root || mkdir /x) 2>/dev/null || echo no"), "another's")
	}
	require.Equal(t, before, testkit.Tree(t, own), "a layer changes")
	if testkit.WholeMachine() {
		require.Equal(t, "33:33", runs.Output(t, sandbox.New(runs.Layers(box, own), sandbox.WithoutUserNamespace(), sandbox.WithCommand("stat", "-c", "%u:%g", "/www"))))
	}
}

// Whiteouts and opaque directories hide what is below, in the form in which overlayfs itself leaves
// them.
func TestLayersHide(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs") // to make whiteouts takes root
	box := testkit.BusyboxRoot(t)
	base := testkit.Layer(t, map[string]string{"etc/gone": "x", "etc/stays": "x", "dir/below": "x", "tmp": "-> elsewhere", "elsewhere/": "", "opt/a/b/c": "x"})
	top := testkit.Layer(t, map[string]string{"etc/gone": "-", "dir/above": "x", "elsewhere": "-", "opt/a": "-"})
	opaque(t, top+"/dir")
	s := sandbox.New(runs.Layers(box, base, top), sandbox.WithTmpfs("/opt/a/b", sandbox.MiB), sandbox.WithCommand("sh", "-c",
		"echo $(ls /etc /dir); touch /tmp/x /opt/a/b/x && ls /tmp /opt/a /opt/a/b && test ! -e /elsewhere"))
	require.Equal(t, "/dir: above /etc: hostname hosts resolv.conf stays\n/opt/a:\nb\n\n/opt/a/b:\nx\n\n/tmp:\nx", runs.Output(t, s))
}

func opaque(t testing.TB, dir string) {
	t.Helper()
	testkit.Need(t, "extended attributes for users")
	require.NoError(t, unix.Setxattr(dir, "user.overlay.opaque", []byte("y"), 0))
}

func BenchmarkLayers(b *testing.B) {
	testkit.Need(b, "idmapped tmpfs")
	box := testkit.BusyboxRoot(b)
	some, more := testkit.Layer(b, map[string]string{"etc/a": "x"}), testkit.Layer(b, map[string]string{"etc/b": "x"})
	host := sandbox.New(sandbox.WithCommand("true"))
	writable := sandbox.WithWritableRoot(sandbox.MiB)
	alternate(b, map[string]*sandbox.Sandbox{
		"host": host, "dir": host.With(sandbox.WithRootfs(sandbox.DirRootfs(box))), "3-layers": host.With(runs.Layers(box, some, more)),
		"64-layers":     host.With(runs.Layers(append(manyLayers(b, 63), box)...)),
		"writable-host": host.With(writable), "writable-3-layers": host.With(runs.Layers(box, some, more), writable),
	})
}

func manyLayers(t testing.TB, n int) (dirs []string) {
	for i := range n {
		dirs = append(dirs, testkit.Layer(t, map[string]string{fmt.Sprint("f", i): "x", "last": fmt.Sprint(i)}))
	}
	return dirs
}

// The lookup of a link's target is repeated if something on the machine was renamed or mounted
// meanwhile: openat2(2), EAGAIN.
func TestRootlessLinksWhileOthersRename(t *testing.T) {
	t.Parallel()
	box := testkit.BusyboxRoot(t)
	require.NoError(t, os.MkdirAll(box+"/a/in", 0o755))
	require.NoError(t, os.Symlink(strings.Repeat("a/../", 500)+"a", box+"/link"))
	stop, ended := make(chan struct{}), make(chan struct{})
	dir := t.TempDir()
	testkit.WriteFile(t, dir+"/x", "", 0o644)
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(dir+"/x", dir+"/y")
				_ = os.Rename(dir+"/y", dir+"/x")
			}
		}
	}()
	defer func() {
		close(stop)
		<-ended
	}()
	s := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(box)), sandbox.WithTmpfs("/link/in", sandbox.MiB), sandbox.WithCommand("touch", "/a/in/x"))
	for range 30 {
		runs.Output(t, s)
	}
}

// alternate measures sandboxes in turns, so that their times can be compared even on an unsteady
// machine.
func alternate(b *testing.B, runs map[string]*sandbox.Sandbox) {
	b.Helper()
	took := map[string]time.Duration{}
	for b.Loop() {
		for name, s := range runs {
			began := time.Now()
			_, err := s.Run(context.Background())
			require.NoError(b, err)
			took[name] += time.Since(began)
		}
	}
	for name := range runs {
		b.ReportMetric(float64(took[name].Microseconds())/float64(b.N), name+"-µs")
	}
}
