//go:build linux

package testkit

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// BusyboxImage writes an image of a static busybox, with a user app (1001), who has files in
// /var/lib/app, as an archive of docker save. Without a command of its own it executes sh. Debian's
// busybox has a wget that always fails, so the image has "get HOST PORT PATH", which fails unless
// there is an answer. config is JSON for the image's configuration.
func BusyboxImage(t testing.TB, path string, config ...string) {
	t.Helper()
	busybox := Busybox(t)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(content))
		require.NoError(t, err)
	}
	for _, dir := range []string{"bin/", "etc/", "srv/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, string(busybox))
	for name := range strings.FieldsSeq("sh ls cat echo env id true false sleep test grep touch mkdir rm hostname httpd nc sed wc chown kill df mount") {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, "")
	}
	add(tar.Header{Name: "bin/get", Mode: 0o755}, `#!/bin/sh
body=$(printf 'GET %s HTTP/1.0\r\n\r\n' "$3" | nc -w 10 "$1" "$2" | sed '1,/^\r*$/d')
test "$body" && echo "$body"
`)
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0::/root:/bin/sh\napp:x:1001:1001::/srv:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\napp:x:1001:\n")
	add(tar.Header{Name: "var/lib/app/", Typeflag: tar.TypeDir, Mode: 0o1770, Uid: 1001, Gid: 1001}, "")
	add(tar.Header{Name: "var/lib/app/seed", Mode: 0o600, Uid: 1001, Gid: 1001}, "seed\n")
	add(tar.Header{Name: "var/lib/app/conf", Mode: 0o444}, "conf\n")
	require.NoError(t, w.Close())
	of := map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sh"}}
	for _, more := range config {
		require.NoError(t, json.Unmarshal([]byte(more), &of))
	}
	DockerArchive(t, path, "busybox:test", layer.Bytes(), of)
}

// DockerArchive writes an image of one layer, a tar, as an archive of docker save. config is what
// its configuration says of the commands.
func DockerArchive(t testing.TB, path, tag string, layer []byte, config map[string]any) {
	t.Helper()
	encoded := func(v any) []byte {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return b
	}
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	w := tar.NewWriter(file)
	add := func(name string, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	add("manifest.json", encoded([]map[string]any{{"Config": "config.json", "RepoTags": []string{tag}, "Layers": []string{"layer.tar"}}}))
	add("config.json", encoded(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	}))
	add("layer.tar", layer)
	require.NoError(t, w.Close())
}
