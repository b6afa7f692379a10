//go:build linux

package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

// layer is a directory with files in it, by name: directories end in a slash, "-" is a whiteout, "-> x" a link.
func layer(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := openDir(t)
	for name, content := range files {
		at := dir + "/" + name
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			require.NoError(t, os.Symlink(to, at))
		} else if content == "-" {
			require.NoError(t, unix.Mknod(at, unix.S_IFCHR, 0))
		} else if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(at, 0o755))
		} else {
			writeFile(t, at, content, 0o644)
		}
	}
	return dir
}

func layers(dirs ...string) sandbox.Option {
	return sandbox.WithRootfs(sandbox.LayersRootfs(dirs...))
}

// Layers hide what is below them, but for directories, which are merged.
func TestRootlessLayers(t *testing.T) {
	t.Parallel()
	base := layer(t, map[string]string{"etc/a": "base", "etc/b": "base", "opt/only": "base", "data": "-> opt", "file": "base", "var/": ""})
	box := busyboxRoot(t)
	top := layer(t, map[string]string{"etc/b": "top", "etc/c": "top", "file/in": "top"})
	s := sandbox.New(layers(base, box, top), sandbox.WithTmpfs("/var/cache/deep", sandbox.MiB))
	given := sandbox.WithFile("/data/file", []byte("given"), 0o644)
	before := [][]string{tree(t, base), tree(t, box), tree(t, top)}
	run := func(script string, opts ...sandbox.Option) string {
		t.Helper()
		return output(t, s.With(append(opts, sandbox.WithCommand("sh", "-c", script))...))
	}
	for range 2 {
		require.Equal(t, "base top top base top given",
			run(`echo $(cat /etc/a; echo; cat /etc/b; echo; cat /etc/c; echo; cat /opt/only; echo; cat /file/in; echo; cat /data/file)`, given))
		require.Equal(t, "refused", run(`touch /etc/x 2>/dev/null || touch /x 2>/dev/null || echo refused; touch /var/cache/deep/x /tmp/x ~/x`))
		require.Equal(t, "new", run(`mkdir /new && cd /new && echo new >f && cat f`, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0)))
	}
	require.Equal(t, before, [][]string{tree(t, base), tree(t, box), tree(t, top)}, "layers change")

	s = s.With(layers(append(manyLayers(t, 63), box)...))
	require.Equal(t, "62 63", run("echo $(cat /last; echo; cat /f* | wc -c)"))
	require.Equal(t, "62 63", run("echo $(cat /last; echo; cat /f* | wc -c)", sandbox.WithWritableRoot(sandbox.MiB)))
}

// What belongs to somebody in a layer belongs to the same in the run, for whom permissions are what they say.
func TestLayersKeepOwners(t *testing.T) {
	t.Parallel()
	need(t, "idmapped tmpfs")
	box := busyboxRoot(t)
	own := layer(t, map[string]string{"root": "root's", "www": "www's", "user": "user's", "far": "", "home/": "", "srv/": "", "srv/file": "x", "setid": ""})
	for name, id := range map[string]int{"www": 33, "user": 1000, "far": 70000, "home": 1000, "srv": 33, "srv/file": 33} {
		require.NoError(t, os.Lchown(own+"/"+name, id, id))
	}
	for _, name := range []string{"root", "www", "user"} {
		require.NoError(t, os.Chmod(own+"/"+name, 0o600))
	}
	require.NoError(t, os.Chmod(own+"/srv", 0o750))
	require.NoError(t, unix.Chmod(own+"/setid", 0o4755))
	before := tree(t, own)
	base := sandbox.New(layers(box, own))
	for _, opts := range [][]sandbox.Option{nil, {sandbox.WithWritableRoot(sandbox.MiB)}} {
		s := base.With(opts...)
		run := func(script string, opts ...sandbox.Option) string {
			t.Helper()
			return output(t, s.With(append(opts, sandbox.WithCommand("sh", "-c", script))...))
		}
		require.Equal(t, "0:0 33:33 1000:1000 65534:65534 1000:1000 33:33 0:0", run("echo $(stat -c %u:%g /root /www /user /far /home /srv /bin)"))
		require.Equal(t, "user's no", run("echo $(cat /user) $(cat /root /www /srv/file 2>/dev/null || echo no)"))
		require.Equal(t, "root's no", run("echo $(cat /root) $(cat /www 2>/dev/null || echo no)", sandbox.WithUser(0, 0)), "no capabilities")
		require.Equal(t, "www'sx", run("cat /www /srv/file", sandbox.WithUser(33, 33)))
		require.Equal(t, "755 0:0", run("stat -c '%a %u:%g' /"))
	}
	run := func(user int, script string) string {
		t.Helper()
		return output(t, base.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(user, user), sandbox.WithCommand("sh", "-c", script)))
	}
	for range 2 {
		require.Equal(t, "more", run(33, "echo more >/srv/file && cat /srv/file && rm /srv/file && mkdir /srv/dir"))
		require.Equal(t, "0:0 no", run(0, "echo x >/root && rm /root && mkdir -p /root/a && echo $(stat -c %u:%g /root/a) $(touch /srv/x 2>/dev/null || echo no)"))
		require.Equal(t, "no", run(1000, "(echo x >/setid || rm /root || mkdir /x) 2>/dev/null || echo no"), "another's")
	}
	require.Equal(t, before, tree(t, own), "a layer changes")
	if wholeMachine() {
		require.Equal(t, "33:33", output(t, sandbox.New(layers(box, own), sandbox.WithoutUserNamespace(), sandbox.WithCommand("stat", "-c", "%u:%g", "/www"))))
	}
}

// Whiteouts and opaque directories hide what is below, as in what overlayfs itself leaves behind.
func TestLayersHide(t *testing.T) {
	t.Parallel()
	need(t, "idmapped tmpfs") // to make whiteouts takes root
	box := busyboxRoot(t)
	base := layer(t, map[string]string{"etc/gone": "x", "etc/stays": "x", "dir/below": "x", "tmp": "-> elsewhere", "elsewhere/": "", "opt/a/b/c": "x"})
	top := layer(t, map[string]string{"etc/gone": "-", "dir/above": "x", "elsewhere": "-", "opt/a": "-"})
	opaque(t, top+"/dir")
	s := sandbox.New(layers(box, base, top), sandbox.WithTmpfs("/opt/a/b", sandbox.MiB), sandbox.WithCommand("sh", "-c",
		"echo $(ls /etc /dir); touch /tmp/x /opt/a/b/x && ls /tmp /opt/a /opt/a/b && test ! -e /elsewhere"))
	require.Equal(t, "/dir: above /etc: hostname hosts resolv.conf stays\n/opt/a:\nb\n\n/opt/a/b:\nx\n\n/tmp:\nx", output(t, s))
}

func opaque(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Setxattr(dir, "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skipf("%s: extended attributes: %v", dir, err)
	}
}

func BenchmarkLayers(b *testing.B) {
	need(b, "idmapped tmpfs")
	box := busyboxRoot(b)
	some, more := layer(b, map[string]string{"etc/a": "x"}), layer(b, map[string]string{"etc/b": "x"})
	host := sandbox.New(sandbox.WithCommand("true"))
	writable := sandbox.WithWritableRoot(sandbox.MiB)
	alternate(b, map[string]*sandbox.Sandbox{
		"host": host, "dir": host.With(sandbox.WithRootfs(sandbox.DirRootfs(box))), "3-layers": host.With(layers(box, some, more)),
		"64-layers":     host.With(layers(append(manyLayers(b, 63), box)...)),
		"writable-host": host.With(writable), "writable-3-layers": host.With(layers(box, some, more), writable),
	})
}

func manyLayers(t testing.TB, n int) (dirs []string) {
	for i := range n {
		dirs = append(dirs, layer(t, map[string]string{fmt.Sprint("f", i): "x", "last": fmt.Sprint(i)}))
	}
	return dirs
}

// Where a link leads is looked up again if something was renamed or mounted on the machine meanwhile: openat2(2), EAGAIN.
func TestRootlessLinksWhileOthersRename(t *testing.T) {
	t.Parallel()
	box := busyboxRoot(t)
	require.NoError(t, os.MkdirAll(box+"/a/in", 0o755))
	require.NoError(t, os.Symlink(strings.Repeat("a/../", 500)+"a", box+"/link"))
	stop, ended := make(chan struct{}), make(chan struct{})
	dir := t.TempDir()
	writeFile(t, dir+"/x", "", 0o644)
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
		output(t, s)
	}
}
