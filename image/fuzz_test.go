//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

// FuzzUnpack unpacks archives of every kind: whatever is in one, nothing changes outside of its
// directory, its limits hold, and the result can be removed.
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

// FuzzArchive opens whole archives, of docker save and of layouts: whatever is in one, finding an
// image in it ends, with an error of bounded length or an image whose layers are inside the
// archive.
func FuzzArchive(f *testing.F) {
	config := `{"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`
	f.Add(tarOf(f, file{name: "manifest.json", content: `[{"Config":"c","RepoTags":["a:1"],"Layers":["d/l"]}]`}, file{name: "c", content: config}, file{name: "d/l", link: "../l"}, file{name: "l", content: "x"}), "1")
	f.Add(tarOf(f, file{name: "index.json", content: `{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":2,"digest":"sha256:` + strings.Repeat("a", 64) + `"}]}`},
		file{name: "blobs/sha256/" + strings.Repeat("a", 64), content: "{}"}), "")
	f.Fuzz(func(t *testing.T, b []byte, tag string) {
		at := filepath.Join(t.TempDir(), "x.tar")
		require.NoError(t, os.WriteFile(at, b, 0o600))
		s, err := find(context.Background(), at+":"+tag, &options{limits: limits{1 << 20, 50}})
		if err != nil {
			require.Less(t, len(err.Error()), 2*maxText)
			return
		}
		defer s.close()
		require.Equal(t, len(s.config.RootFS.DiffIDs), len(s.layers))
		for _, l := range s.layers {
			size, err := l.Size()
			require.NoError(t, err)
			require.LessOrEqual(t, size, int64(len(b)))
			r, err := l.Compressed()
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, r)
			require.NoError(t, err)
			require.Equal(t, size, n)
		}
	})
}
