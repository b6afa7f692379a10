//go:build linux

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// debian is a Debian system made by mmdebstrap: a tar file.
func debian(t testing.TB) []byte {
	t.Helper()
	testkit.Need(t, "Debian's archive")
	file := filepath.Join(t.TempDir(), "debian.tar")
	out, err := exec.Command("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b
}

// listing prints the type, path, owner and content of every file, using find(1). It leaves out a
// run's own files and those that it may not read.
const listing = `cd "$1" && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./tmp -o -path ./home/sandbox -o \
	-path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf \) -prune -o \
	\( -type d -printf '%P %y %m %U:%G\n' \) -o -printf '%P %y %m %U:%G %l %n ' \( -type f -readable -exec sha256sum {} \; -o -printf '\n' \) 2>/dev/null; true`

// TestDebian compares what a run sees of an image of three layers with what umoci, an independent
// tool, unpacks of it.
func TestDebian(t *testing.T) {
	testkit.Need(t, "umoci")
	base := debian(t)
	changes := tarOf(t, file{name: "etc/"}, file{name: "etc/motd", content: "changed\n"}, file{name: "etc/.wh.issue"}, file{name: "usr/"}, file{name: "usr/share/"}, file{name: "usr/share/.wh.doc"},
		file{name: "var/"}, file{name: "var/log/"}, file{name: "var/log/.wh..wh..opq"}, file{name: "var/log/new", content: "x", uid: 33}, file{name: "srv/"}, file{name: "srv/a b\nc", content: "x"},
		file{name: "opt/"}, file{name: "opt/setid", content: "x", mode: 0o6755}, file{name: "opt/tool", link: "../usr/bin/env"}, file{name: "opt/hard", link: "opt/setid", kind: tar.TypeLink, mode: 0o6755})
	back := tarOf(t, file{name: "usr/share/"}, file{name: "usr/share/doc/"}, file{name: "usr/share/doc/back", content: "again"}, file{name: "home/"}, file{name: "home/sandbox/"}, file{name: "opt/"}, file{name: "opt/.wh.tool"})
	first := asGzip(t, base)
	dir := layoutOf(t, imageOf(t, v1.Config{Env: []string{"PATH=/usr/bin:/bin"}}, first, asZstd(t, changes), asGzip(t, back)), imageOf(t, v1.Config{}, first, asGzip(t, changes), asGzip(t, back)))
	img := open(t, newStore(t), dir+":v0")
	require.NoError(t, img.layers[0].store.Verify(t.Context()))
	out, err := sandbox.New(img.Options()...).With(sandbox.WithCommand("sh", "-c", listing, "sh", "/")).Output(t.Context())
	require.NoError(t, err)

	bundle := filepath.Join(t.TempDir(), "bundle") // umoci does not know zstd, which the other image does without
	made, err := exec.Command("umoci", "unpack", "--image", dir+":v1", bundle).CombinedOutput()
	require.NoError(t, err, "%s", made)
	want, err := exec.Command("sh", "-c", listing, "sh", filepath.Join(bundle, "rootfs")).Output()
	require.NoError(t, err)
	got, there := lines(out), lines(want)
	require.Greater(t, len(got), 5000)
	require.Greater(t, len(there), 5000)
	differ := 0
	for name, is := range there {
		if got[name] != is && !hidden(there, name) {
			differ++
			t.Errorf("%s: %q, not %q", name, got[name], is)
		}
		if differ > 20 {
			break
		}
	}
	for name := range got {
		if _, ok := there[name]; !ok {
			t.Errorf("%s: only in the run", name)
		}
	}
	for _, name := range []string{"etc/issue", "usr/share/doc/apt", "var/log/dpkg.log", "opt/tool"} {
		require.NotContains(t, got, name)
	}
	require.Contains(t, got["usr/share/doc/back"], " f 644 0:0")
	apt, err := sandbox.New(img.Options()...).With(sandbox.WithCommand("sh", "-c", "dpkg --verify; apt-cache policy apt | head -1; perl -e 'print 6*7'"), sandbox.WithWritableRoot(16*sandbox.MiB)).Output(t.Context())
	require.NoError(t, err)
	require.Contains(t, string(apt), "apt:")
	require.True(t, strings.HasSuffix(string(apt), "42"), "%s", apt)
}

// lines maps a listing's names to the rest of their lines.
func lines(b []byte) map[string]string {
	list := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, is, _ := strings.Cut(s.Text(), " ")
		list[name] += " " + is
	}
	return list
}

// hidden reports whether a file is in a directory that the run's user, root without capabilities,
// may not read.
func hidden(list map[string]string, name string) bool {
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		var kind string
		var mode, uid, gid int
		if _, err := fmt.Sscanf(list[dir], " %s %o %d:%d", &kind, &mode, &uid, &gid); err == nil && uid != 0 && mode&0o5 != 0o5 && (gid != 0 || mode&0o50 != 0o50) {
			return true
		}
	}
	return false
}
