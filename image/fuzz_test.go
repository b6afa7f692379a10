//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

// FuzzUnpack has archives of every kind: whatever is in one, nothing changes outside the directory that it is unpacked to, its limits hold, and what
// is there can be removed.
func FuzzUnpack(f *testing.F) {
	for _, files := range [][]file{
		{{name: "a/"}, {name: "a/b", content: "x"}, {name: "c", link: "a"}, {name: "c/d", content: "y"}, {name: "e", link: "a/b", kind: tar.TypeLink}},
		{{name: "out", link: "../.."}, {name: "out/outside", content: "z"}, {name: "h", link: "out/outside", kind: tar.TypeLink}},
		{{name: "a/"}, {name: "a/.wh..wh..opq"}, {name: "a/.wh.b"}, {name: ".wh..wh..opq"}, {name: "f", kind: tar.TypeFifo}},
		{{name: "a", pax: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.x": "1"}}},
	} {
		f.Add(tarOf(f, files...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		outside := filepath.Join(dir, "outside")
		require.NoError(t, os.WriteFile(outside, []byte("outside"), 0o600))
		files := filepath.Join(dir, "layers", "files")
		require.NoError(t, os.MkdirAll(files, 0o755))
		content, _, err := v1.SHA256(bytes.NewReader(b))
		require.NoError(t, err)
		j := &job{src: &source{plain: true}, from: asPlain(t, b), content: content, limits: limits{1 << 20, 50}}
		made, err := j.unpack(context.Background(), files)
		if err == nil {
			require.LessOrEqual(t, made.Bytes, int64(1<<20))
			require.LessOrEqual(t, made.Files, int64(50))
			require.NotEmpty(t, made.Tree)
		}
		kept, err := os.ReadFile(outside)
		require.NoError(t, err)
		require.Equal(t, "outside", string(kept))
		for at, want := range map[string][]string{dir: {"layers", "outside"}, filepath.Dir(files): {"files"}} {
			entries, err := os.ReadDir(at)
			require.NoError(t, err)
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			require.Equal(t, want, names)
		}
		require.NoError(t, filepath.WalkDir(files, func(_ string, d fs.DirEntry, err error) error { return err }))
		require.NoError(t, removeAll(files))
	})
}
