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

// BusyboxImage writes an image of a static busybox, with a user app (1001), as an archive of docker
// save. Without a command of its own it executes sh. Debian's busybox has a wget that always fails,
// so the image has "get HOST PORT PATH", which fails unless there is an answer.
func BusyboxImage(t testing.TB, path string) {
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
	require.NoError(t, w.Close())
	encoded := func(v any) string {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return string(b)
	}
	config := encoded(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	manifest := encoded([]map[string]any{{"Config": "config.json", "RepoTags": []string{"busybox:test"}, "Layers": []string{"layer.tar"}}})
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	for _, file := range [][2]string{{"manifest.json", manifest}, {"config.json", config}, {"layer.tar", layer.String()}} {
		add(tar.Header{Name: file[0], Mode: 0o644}, file[1])
	}
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(path, archive.Bytes(), 0o644))
}
