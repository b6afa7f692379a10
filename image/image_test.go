//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// file is an entry of a layer. Without a type it is a directory if its name ends in a slash, a
// symbolic link if it has a link, otherwise a regular file.
type file struct {
	name, content, link string
	kind                byte
	mode                int64
	uid                 int
	pax                 map[string]string
}

func (f file) header() *tar.Header {
	h := &tar.Header{Name: f.name, Linkname: f.link, Typeflag: f.kind, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.content)), PAXRecords: f.pax}
	switch {
	case f.kind != 0:
	case strings.HasSuffix(f.name, "/"):
		h.Typeflag = tar.TypeDir
	case f.link != "":
		h.Typeflag = tar.TypeSymlink
	default:
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	return h
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		require.NoError(t, w.WriteHeader(f.header()))
		_, err := w.Write([]byte(f.content))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

// compressed is a layer as a registry has it.
type compressed struct {
	v1.Layer
	plain []byte
}

func (c compressed) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(c.plain))
	return h, err
}

func (c compressed) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(c.plain)), nil
}

func asGzip(t testing.TB, b []byte) v1.Layer {
	return compressed{static.NewLayer(gzipped(t, b), types.OCILayer), b}
}

func asZstd(t testing.TB, b []byte) v1.Layer {
	return compressed{static.NewLayer(zstded(t, b), types.OCILayerZStd), b}
}

func asPlain(_ testing.TB, b []byte) v1.Layer {
	return compressed{static.NewLayer(b, types.OCIUncompressedLayer), b}
}

func imageOf(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	require.NoError(t, err)
	f, err := img.ConfigFile()
	require.NoError(t, err)
	f = f.DeepCopy()
	f.Config, f.OS, f.Architecture = config, "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, f)
	require.NoError(t, err)
	return img
}

func layoutOf(t testing.TB, images ...v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	require.NoError(t, err)
	for i, img := range images {
		require.NoError(t, p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": fmt.Sprint("v", i)})))
	}
	return dir
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, removeAll(s.dir)) })
	return s
}

func open(t testing.TB, s *Store, ref string, opts ...Option) *Image {
	t.Helper()
	img, err := Open(context.Background(), ref, append([]Option{WithStore(s)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, img.Close()) })
	return img
}

// requireEmpty requires that a store has nothing except locks that nobody holds.
func requireEmpty(t testing.TB, s *Store) {
	t.Helper()
	for _, kind := range []string{"layers", "temp"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, kind))
		require.NoError(t, err)
		require.Empty(t, entries, kind)
	}
	_, err := s.Collect(0)
	require.NoError(t, err)
}

// needWhiteouts skips the test if a store can't hide files of lower layers, and requires that Open
// says so.
func needWhiteouts(t testing.TB) {
	t.Helper()
	dir, why := t.TempDir(), "can't hide files of lower layers, as a container's own can't: operation not permitted: use OpenStore on a volume"
	err := unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0)
	if err == nil { // tmpfs before Linux 6.6
		err, why = unix.Setxattr(dir, "user.test", nil, 0), "has no extended attributes for users"
	}
	if err == nil {
		return
	}
	store := newStore(t)
	_, failed := Open(context.Background(), layoutOf(t, imageOf(t, v1.Config{}, asGzip(t, tarOf(t, file{name: "srv/"})), asGzip(t, second(t)))), WithStore(store))
	require.ErrorIs(t, failed, err)
	require.ErrorContains(t, failed, why)
	_, err = store.Collect(0) // the first layer is there
	require.NoError(t, err)
	requireEmpty(t, store)
	testkit.Need(t, "files that hide others")
	t.Fatal("the store can't hide files of lower layers, but this file system can")
}

// busybox is a layer with one program.
func busybox(t testing.TB) []byte {
	t.Helper()
	files := []file{{name: "bin/"}, {name: "bin/busybox", content: program(t), mode: 0o755}, {name: "etc/"},
		{name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\napp:x:33:44:app:/srv:/bin/sh\n"}, {name: "etc/group", content: "root:x:0:\nstaff:x:50:\n"},
		{name: "tmp/", mode: 0o1777}, {name: "srv/", uid: 33}, {name: "srv/base", content: "base", uid: 33, mode: 0o600}, {name: "srv/gone", content: "x"}, {name: "opt/"}, {name: "opt/below", content: "x"}}
	for _, applet := range []string{"sh", "ls", "cat", "id", "stat", "env", "pwd", "find", "echo", "touch", "readlink", "sort", "test"} {
		files = append(files, file{name: "bin/" + applet, link: "busybox"})
	}
	return tarOf(t, files...)
}

func second(t testing.TB) []byte {
	return tarOf(t, file{name: "srv/", uid: 33}, file{name: "srv/.wh.gone"}, file{name: "srv/new", content: "new", uid: 33}, file{name: "srv/hard", link: "srv/new", kind: tar.TypeLink, uid: 33},
		file{name: "opt/"}, file{name: "opt/above", content: "x"}, file{name: "opt/.wh..wh..opq"}, file{name: "etc/mtab", link: "/proc/self/mounts"})
}

func run(t testing.TB, img *Image, script string, opts ...sandbox.Option) string {
	t.Helper()
	out, err := sandbox.New(img.Options()...).With(sandbox.WithCommand("/bin/sh", "-c", script)).With(opts...).CombinedOutput(t.Context())
	require.NoError(t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

// Images from all kinds of sources are the same to a run.
func TestRootlessOpen(t *testing.T) {
	needWhiteouts(t)
	config := v1.Config{Env: []string{"PATH=/bin", "COLOR=green"}, WorkingDir: "/srv", User: "app", Entrypoint: []string{"/bin/echo", "hello"}, Cmd: []string{"world"}}
	img := imageOf(t, config, asGzip(t, busybox(t)), asZstd(t, second(t)), asPlain(t, tarOf(t, file{name: "srv/third", content: "3", uid: 33})))
	dir := layoutOf(t, img)
	oci := filepath.Join(t.TempDir(), "oci.tar")
	out, err := exec.Command("tar", "-C", dir, "-cf", oci, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	docker := filepath.Join(t.TempDir(), "docker.tar")
	tag, err := name.NewTag("example.com/app:v7")
	require.NoError(t, err)
	require.NoError(t, tarball.WriteToFile(docker, tag, imageOf(t, config, asGzip(t, busybox(t)), asGzip(t, second(t)), asGzip(t, tarOf(t, file{name: "srv/third", content: "3", uid: 33})))))
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	pulled := strings.TrimPrefix(server.URL, "http://") + "/app:v1"
	ref, err := name.ParseReference(pulled)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img))

	store := newStore(t)
	for _, ref := range []string{dir, dir + ":v0", oci, oci + ":v0", docker, docker + ":v7", pulled} {
		t.Run(filepath.Base(ref), func(t *testing.T) {
			for _, s := range []*Store{newStore(t), store} {
				img := open(t, s, ref)
				require.Equal(t, "/srv /srv green 33", run(t, img, `echo $(pwd) $HOME $COLOR $(id -u)`))
				require.Equal(t, "base hard new third\nabove\nnew\n/proc/self/mounts", run(t, img, `echo $(ls /srv); ls /opt; cat /srv/hard; echo; readlink /etc/mtab`))
				if cell.WideIDs() {
					require.Equal(t, "33:33 600\nbase", run(t, img, "stat -c '%u:%g %a' base; cat base"))
					require.Equal(t, "base", run(t, img, "cat base; test ! -w /bin/busybox", sandbox.WithWritableRoot(sandbox.MiB)))
				} else { // a file belongs to the user who unpacked it
					require.Equal(t, "600\n3", run(t, img, "stat -c %a base; cat third"))
				}
				out, err := sandbox.New(img.Options()...).With(img.Command()).Output(t.Context())
				require.NoError(t, err)
				require.Equal(t, "hello world\n", string(out))
				out, err = sandbox.New(img.Options()...).With(img.Command("you")).Output(t.Context())
				require.NoError(t, err)
				require.Equal(t, "hello you\n", string(out))
			}
		})
	}
	list, err := store.Layers()
	require.NoError(t, err)
	require.Len(t, list, 3, "once each")
	require.NoError(t, store.Verify(t.Context()))
}

// Root of a user namespace that has no other ids counts as an ordinary user.
func TestRootlessUserNamespace(t *testing.T) {
	needWhiteouts(t)
	busybox(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestRootlessOpen$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, "(?m)^--- PASS: TestRootlessOpen ", string(out))
}

// An ambiguous choice and a missing image are errors that list the images.
func TestChoice(t *testing.T) {
	one := imageOf(t, v1.Config{}, asGzip(t, tarOf(t, file{name: "one"})))
	two := imageOf(t, v1.Config{}, asGzip(t, tarOf(t, file{name: "two"})))
	dir, store := layoutOf(t, one, two), newStore(t)
	digest := func(img v1.Image) string {
		h, err := img.Digest()
		require.NoError(t, err)
		return h.String()
	}
	require.Equal(t, digest(two), open(t, store, dir+":v1").Digest())
	for ref, want := range map[string]string{
		dir: "there are 2 images: choose one with a tag", dir + ":v2": `there is no image "v2"`, t.TempDir(): "no such file or directory (a directory that is a root itself is no image", "/no/such/file": "no such file",
		"/proc/self/exe": "neither a directory nor a tar archive", "UPPER/case": "could not parse reference", "localhost:1/x": "connection refused",
		"docker://localhost:1/x": "no docker:// before it: write localhost:1/x", "oci:" + dir: fmt.Sprintf("for the layout or archive at %q write that", dir),
	} {
		_, err := Open(t.Context(), ref, WithStore(store))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "image: "+ref)
	}
	_, err := Open(t.Context(), dir, WithStore(store), nil, WithPlatform("a/b/c/d"))
	require.ErrorContains(t, err, "WithPlatform")
	_, err = Open(t.Context(), dir, WithStore(store), WithLimits(0, 1))
	require.ErrorContains(t, err, "WithLimits")

	platforms := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: two, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	multi := t.TempDir()
	p, err := layout.Write(multi, empty.Index)
	require.NoError(t, err)
	require.NoError(t, p.AppendIndex(platforms))
	require.Equal(t, digest(one), open(t, store, multi, WithPlatform("linux/amd64")).Digest())
	require.Equal(t, digest(two), open(t, store, multi, WithPlatform("linux/arm64")).Digest())
	_, err = Open(t.Context(), multi, WithStore(store), WithPlatform("linux/s390x"))
	require.ErrorContains(t, err, "no image for linux/s390x")
}

// Every digest is checked.
func TestAttackDigests(t *testing.T) {
	plain := tarOf(t, file{name: "x", content: "right"})
	wrong := tarOf(t, file{name: "x", content: "wrong"})
	good := imageOf(t, v1.Config{}, asGzip(t, plain))
	store := newStore(t)
	replace := func(hash func() (v1.Hash, error), b []byte) string {
		dir := layoutOf(t, good)
		h, err := hash()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", h.Hex), b, 0o644))
		return dir
	}
	layers, err := good.Layers()
	require.NoError(t, err)
	manifest, err := good.RawManifest()
	require.NoError(t, err)
	config, err := good.RawConfigFile()
	require.NoError(t, err)
	changed := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at] ^= 1
		return b
	}
	for want, dir := range map[string]string{
		"its content has the digest":            layoutOf(t, imageOf(t, v1.Config{}, compressed{static.NewLayer(gzipped(t, wrong), types.OCILayer), plain})),
		"its compressed content has the digest": replace(layers[0].Digest, changed(gzipped(t, plain), 4)), // its time, which means nothing
		" bytes, not ":                          replace(layers[0].Digest, append(gzipped(t, plain), gzipped(t, nil)...)),
		" has the digest":                       replace(layers[0].Digest, gzipped(t, wrong)),
		"the manifest has the digest":           replace(good.Digest, changed(manifest, len(manifest)/2)),
		"the configuration has the digest":      replace(good.ConfigName, changed(config, len(config)/2)),
		"unexpected EOF":                        replace(layers[0].Digest, gzipped(t, plain)[:40]),
	} {
		_, err := Open(t.Context(), dir, WithStore(store))
		require.ErrorContains(t, err, want)
		requireEmpty(t, store)
	}
	// A registry that sends another layer than the requested one, and one that never ends.
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	h, err := layers[0].Digest()
	require.NoError(t, err)
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/blobs/"+h.String()):
			_, _ = w.Write(gzipped(t, wrong))
		case strings.HasSuffix(r.URL.Path, "/manifests/endless"):
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		default:
			http.Redirect(w, r, server.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	defer liar.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/x:v1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, good))
	for _, tag := range []string{"v1", "endless"} {
		_, err = Open(t.Context(), strings.TrimPrefix(liar.URL, "http://")+"/x:"+tag, WithStore(store))
		require.Error(t, err)
		requireEmpty(t, store)
	}
}
