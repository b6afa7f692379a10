//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A layout that an attacker wrote is read without waiting, with little memory, and only within its
// directory.
func TestRootlessAttackLayout(t *testing.T) {
	good := imageOf(t, v1.Config{}, asGzip(t, tarOf(t, file{name: "x", content: "x"})))
	blob := func(hash func() (v1.Hash, error)) string {
		h, err := hash()
		require.NoError(t, err)
		return path.Join("blobs", h.Algorithm, h.Hex)
	}
	layers, err := good.Layers()
	require.NoError(t, err)
	links := func(to string) func(string) error { return func(at string) error { return os.Symlink(to, at) } }
	hole := func(at string) error {
		if err := os.WriteFile(at, nil, 0o644); err != nil {
			return err
		}
		return os.Truncate(at, 1<<40)
	}
	for _, file := range []string{"index.json", blob(good.Digest), blob(good.ConfigName), blob(layers[0].Digest)} {
		up := strings.Repeat("../", strings.Count(file, "/"))
		for name, test := range map[string]struct {
			make func(at string) error
			want string
		}{
			"pipe":               {func(at string) error { return unix.Mkfifo(at, 0o644) }, "no regular file"},
			"directory":          {func(at string) error { return os.Mkdir(at, 0o755) }, "no regular file"},
			"socket":             {func(at string) error { return unix.Mknod(at, unix.S_IFSOCK|0o644, 0) }, "no such device or address"},
			"link to a pipe":     {links(up + "pipe"), "no regular file"},
			"link to zeros":      {links("/dev/zero"), "a link out of the layout"},
			"link to itself":     {links(path.Base(file)), "too many levels of symbolic links"},
			"link up":            {links(up + "../outside"), "a link out of the layout"},
			"link to root":       {links("/"), "a link out of the layout"},
			"link to a stream":   {links("/proc/self/fd/0"), "a link out of the layout"},
			"hole of a tebibyte": {hole, "has 1099511627776 bytes"},
			"nothing":            {func(string) error { return nil }, "no such file"},
		} {
			t.Run(name+" as "+file[:9], func(t *testing.T) {
				dir, store := layoutOf(t, good), newStore(t)
				require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
				require.NoError(t, os.WriteFile(filepath.Join(dir, "../outside"), []byte("secret"), 0o644))
				require.NoError(t, os.Remove(filepath.Join(dir, file)))
				require.NoError(t, test.make(filepath.Join(dir, file)))
				bounded(t, 20, func() {
					_, err := Open(t.Context(), dir, WithStore(store))
					require.ErrorContains(t, err, test.want)
					require.NotContains(t, err.Error(), "secret")
					requireEmpty(t, store)
				})
			})
		}
	}

	// Directories on the way do not lead out either, but links within the layout work.
	dir := layoutOf(t, good)
	require.NoError(t, os.Rename(filepath.Join(dir, "blobs"), filepath.Join(dir, "elsewhere")))
	require.NoError(t, os.Symlink("elsewhere", filepath.Join(dir, "blobs")))
	require.NoError(t, open(t, newStore(t), dir).Close())
	away := filepath.Join(t.TempDir(), "away")
	require.NoError(t, os.Rename(filepath.Join(dir, "elsewhere"), away))
	require.NoError(t, os.Remove(filepath.Join(dir, "blobs")))
	require.NoError(t, os.Symlink(away, filepath.Join(dir, "blobs")))
	_, err = Open(t.Context(), dir, WithStore(newStore(t)))
	require.ErrorContains(t, err, "a link out of the layout")

	// The given path of the layout or archive itself may be a link, since it is the caller's,
	// but must not be waited for.
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(layoutOf(t, good), link))
	require.NoError(t, open(t, newStore(t), link).Close())
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(pipe, 0o644))
	for _, ref := range []string{pipe, "/dev/zero", "/dev/null"} {
		_, err = Open(t.Context(), ref, WithStore(newStore(t)))
		require.ErrorContains(t, err, "neither a directory nor a regular file")
	}
}

// An index with sizes and numbers that are too large.
func TestRootlessAttackLayoutIndex(t *testing.T) {
	good := imageOf(t, v1.Config{}, asGzip(t, tarOf(t, file{name: "x", content: "x"})))
	dir := layoutOf(t, good)
	honest, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	with := func(change func(d *v1.Descriptor)) string {
		var index v1.IndexManifest
		require.NoError(t, json.Unmarshal(honest, &index))
		change(&index.Manifests[0])
		b, err := json.Marshal(index)
		require.NoError(t, err)
		return string(b)
	}
	for name, test := range map[string]struct{ index, want string }{
		"-1 byte":    {with(func(d *v1.Descriptor) { d.Size = -1 }), "the size of the manifest is -1 bytes"},
		"no bytes":   {with(func(d *v1.Descriptor) { d.Size = 0 }), "the size of the manifest is 0 bytes"},
		"a tebibyte": {with(func(d *v1.Descriptor) { d.Size = 1 << 40 }), "must be from 1 to 16777216"},
		"one less":   {with(func(d *v1.Descriptor) { d.Size-- }), " bytes, not "},
		"one more":   {with(func(d *v1.Descriptor) { d.Size++ }), " bytes, not "},
		"no type":    {with(func(d *v1.Descriptor) { d.MediaType = "" }), "which is no image's"},
		"a way out":  {strings.Replace(string(honest), `"sha256:`, `"../../../:`, 1), "unsupported hash"},
		"no digest":  {`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":7}]}`, "cannot parse hash"},
		"nothing":    {`{}`, "there is no image for linux/"},
		"null":       {`null`, "there is no image for linux/"},
		"a million":  {`{"manifests":[` + strings.Repeat(`{},`, 1_000_000) + `{}]}`, "more than 131072 values"},
		"a long name": {with(func(d *v1.Descriptor) {
			d.Annotations = map[string]string{"org.opencontainers.image.ref.name": strings.Repeat("x", 1<<20)}
		}), `there is no image "v9"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir, store := layoutOf(t, good), newStore(t)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte(test.index), 0o644))
			ref := dir
			if name == "a long name" {
				ref += ":v9"
			}
			bounded(t, 50, func() {
				_, err := Open(t.Context(), ref, WithStore(store))
				require.ErrorContains(t, err, test.want)
				require.Less(t, len(err.Error()), 2*maxText)
				requireEmpty(t, store)
			})
		})
	}
}

// An archive of either kind that an attacker wrote.
func TestRootlessAttackArchive(t *testing.T) {
	good := imageOf(t, v1.Config{}, asPlain(t, tarOf(t, file{name: "x", content: "x"})))
	dir := layoutOf(t, good)
	var layout []file
	require.NoError(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		layout = append(layout, file{name: strings.TrimPrefix(p, dir+"/"), content: string(b)})
		return err
	}))
	h, err := good.Digest()
	require.NoError(t, err)
	manifest := path.Join("blobs/sha256", h.Hex)
	// archive returns the layout's archive with one file replaced.
	archive := func(in file) []byte {
		files := []file{}
		for _, f := range layout {
			if f.name != in.name {
				files = append(files, f)
			}
		}
		return tarOf(t, append(files, in)...)
	}
	layer := tarOf(t, file{name: "x", content: "x"})
	config := func(layers int) string {
		content, _, err := v1.SHA256(bytes.NewReader(layer))
		require.NoError(t, err)
		c := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
		for range layers {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, content)
		}
		b, err := json.Marshal(c)
		require.NoError(t, err)
		return string(b)
	}
	docker := func(manifest string, more ...file) []byte {
		return tarOf(t, append([]file{{name: "manifest.json", content: manifest}, {name: "c.json", content: config(1)}, {name: "l.tar", content: string(layer)}}, more...)...)
	}
	const honest = `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]`
	sized := func(size int64) []byte { // changes the size in the first file's header
		b := docker(honest)
		h := b[:512]
		copy(h[124:136], []byte{0x80, 11: 0})
		if size < 0 {
			copy(h[124:136], bytes.Repeat([]byte{0xff}, 12))
		}
		binary.BigEndian.PutUint64(h[128:136], uint64(size))
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	window := append([]byte("\x28\xb5\x2f\xfd"), 0x00, 0x98, 0x01, 0x00, 0x00) // a frame of zstd with a window of 512 MiB
	for name, test := range map[string]struct {
		archive []byte
		want    string
	}{
		"honest":               {docker(honest), ""},
		"twice":                {docker("nonsense", file{name: "manifest.json", content: honest}), ""},
		"absolute":             {tarOf(t, file{name: "/manifest.json", content: honest}, file{name: "./c.json", content: config(1)}, file{name: "//l.tar", content: string(layer)}), ""},
		"linked":               {docker(`[{"Config":"d/c","Layers":["d/l"]}]`, file{name: "d/c", link: "../c.json"}, file{name: "d/l", link: "l.tar", kind: tar.TypeLink}), ""},
		"compressed layer":     {docker(`[{"Config":"c.json","Layers":["l.gz"]}]`, file{name: "l.gz", content: string(gzipped(t, layer))}), ""},
		"index of a tebibyte":  {sized(1 << 40), "larger than itself"},
		"index of -1 byte":     {sized(-1), "invalid tar header"},
		"index of 17 MiB":      {archive(file{name: "index.json", content: strings.Repeat(" ", 17<<20)}), "more than 16777216"},
		"index as a link":      {archive(file{name: "index.json", link: "/dev/zero"}), "file does not exist"},
		"index as a way out":   {archive(file{name: "index.json", link: "../../../../etc/passwd"}), "file does not exist"},
		"index as a circle":    {archive(file{name: "index.json", link: "index.json"}), "more than 8 links"},
		"index as a pipe":      {archive(file{name: "index.json", kind: tar.TypeFifo}), "file does not exist"},
		"index as a device":    {archive(file{name: "index.json", kind: tar.TypeChar}), "file does not exist"},
		"manifest as a link":   {archive(file{name: manifest, link: "../../index.json"}), " bytes, not "},
		"manifest of no bytes": {archive(file{name: manifest}), " bytes, not "},
		"a name of 2 KiB":      {archive(file{name: "index.json/" + strings.Repeat("x/", 1000)}), ""},
		"nothing":              {tarOf(t), "neither an archive of docker save nor of an OCI layout"},
		"zeros":                {make([]byte, 1<<20), "neither an archive of docker save nor of an OCI layout"},
		"gzip":                 {gzipped(t, docker(honest)), "it is compressed with gzip: decompress it first"},
		"zstd":                 {zstded(t, docker(honest)), "it is compressed with zstd: decompress it first"},
		"5 million images":     {docker("[" + strings.Repeat("{},", 5<<20) + "{}]"), "more than 131072 values"},
		"17 MiB of images":     {docker(strings.Repeat(" ", 17<<20)), "more than 16777216"},
		"no images":            {docker("[]"), "names no image"},
		"null":                 {docker("null"), "names no image"},
		"no configuration":     {docker(`[{"Layers":["l.tar"]}]`), "file does not exist"},
		"configuration out":    {docker(`[{"Config":"../../../../../../etc/passwd","Layers":["l.tar"]}]`), "file does not exist"},
		"configuration large":  {docker(`[{"Config":"l","Layers":["l.tar"]}]`, file{name: "l", content: strings.Repeat(" ", 17<<20)}), "more than 16777216"},
		"layer out":            {docker(`[{"Config":"c.json","Layers":["/etc/passwd"]}]`), "file does not exist"},
		"layer of no bytes":    {docker(`[{"Config":"c.json","Layers":["e"]}]`, file{name: "e"}), "its size is 0 bytes"},
		"65 layers":            {docker(`[{"Config":"c","Layers":["l.tar"`+strings.Repeat(`,"l.tar"`, 64)+`]}]`, file{name: "c", content: config(65)}), "65 layers, at most 64"},
		"two layers for one":   {docker(`[{"Config":"c.json","Layers":["l.tar","l.tar"]}]`), "1 layers, the manifest 2"},
		"memory for zstd":      {docker(`[{"Config":"c.json","Layers":["z"]}]`, file{name: "z", content: string(window)}), "window size exceeded"},
		"another layer":        {docker(`[{"Config":"c.json","Layers":["c.json"]}]`), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			at, store := filepath.Join(t.TempDir(), "image.tar"), newStore(t)
			require.NoError(t, os.WriteFile(at, test.archive, 0o644))
			bounded(t, 150, func() {
				img, err := Open(t.Context(), at, WithStore(store))
				if test.want == "" {
					require.NoError(t, err)
					require.NoError(t, img.Close())
					return
				}
				require.ErrorContains(t, err, test.want)
				requireEmpty(t, store)
			})
		})
	}
}

// Reading an archive of many entries, or a long one that is a hole, ends with the bound on entries,
// the end of the archive, or ctx.
func TestRootlessAttackArchiveLength(t *testing.T) {
	dir := t.TempDir()
	many := filepath.Join(dir, "many.tar")
	require.NoError(t, os.WriteFile(many, bytes.Repeat(tarOf(t, file{name: "x"})[:512], maxEntries+1), 0o644))
	bounded(t, 300, func() {
		_, err := Open(t.Context(), many, WithStore(newStore(t)))
		require.ErrorContains(t, err, "more than 100000 entries")
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, many, WithStore(newStore(t)))
	require.ErrorIs(t, err, context.Canceled)

	hole := filepath.Join(dir, "hole.tar")
	require.NoError(t, os.WriteFile(hole, nil, 0o644))
	require.NoError(t, os.Truncate(hole, 1<<40))
	bounded(t, 20, func() {
		_, err = Open(t.Context(), hole, WithStore(newStore(t)))
		require.ErrorContains(t, err, "neither an archive of docker save nor of an OCI layout")
	})

	// A layer that decompresses to nothing for as long as there is input.
	layer := tarOf(t, file{name: "x"})
	nothing := bytes.Repeat(gzipped(t, nil), 1<<20)
	at := layoutOf(t, imageOf(t, v1.Config{}, compressed{static.NewLayer(append(gzipped(t, layer), nothing...), types.OCILayer), layer}))
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := Open(ctx, at, WithStore(newStore(t))); err != nil { // a fast machine may have read all of it
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Less(t, time.Since(start), time.Minute)
}

// An image is chosen among several by the names that tools write. If none fits, the error lists the
// images.
func TestRootlessChoiceByName(t *testing.T) {
	images := map[name.Reference]v1.Image{}
	digests := map[string]string{}
	for _, ref := range []string{"debian:12", "docker.io/library/alpine:latest", "ghcr.io/owner/app:v1", "ghcr.io/other/app:v1", "localhost:5000/x:y"} {
		tag, err := name.NewTag(ref)
		require.NoError(t, err)
		images[tag] = imageOf(t, v1.Config{Labels: map[string]string{"ref": ref}}, asPlain(t, tarOf(t, file{name: "x"})))
		h, err := images[tag].ConfigName()
		require.NoError(t, err)
		digests[ref] = h.String()
	}
	saved := filepath.Join(t.TempDir(), "save:1.tar") // the path itself contains a colon
	require.NoError(t, tarball.MultiRefWriteToFile(saved, images))

	var index v1.IndexManifest
	dir := layoutOf(t)
	for tag, img := range images {
		one := layoutOf(t, img)
		blobs, err := filepath.Glob(filepath.Join(one, "blobs/sha256/*"))
		require.NoError(t, err)
		for _, b := range blobs {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755))
			require.NoError(t, os.Rename(b, filepath.Join(dir, "blobs/sha256", filepath.Base(b))))
		}
		b, err := os.ReadFile(filepath.Join(one, "index.json"))
		require.NoError(t, err)
		var of v1.IndexManifest
		require.NoError(t, json.Unmarshal(b, &of))
		of.Manifests[0].Annotations = map[string]string{"io.containerd.image.name": tag.Name(), "org.opencontainers.image.ref.name": tag.Identifier()}
		index.Manifests = append(index.Manifests, of.Manifests[0])
	}
	b, err := json.Marshal(index)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), b, 0o644))

	store := newStore(t)
	for _, in := range []string{saved, dir} {
		for choice, want := range map[string]string{
			"debian:12": "debian:12", "12": "debian:12", "docker.io/library/debian:12": "debian:12", "alpine": "docker.io/library/alpine:latest", "alpine:latest": "docker.io/library/alpine:latest",
			"ghcr.io/owner/app:v1": "ghcr.io/owner/app:v1", "ghcr.io/other/app:v1": "ghcr.io/other/app:v1", "localhost:5000/x:y": "localhost:5000/x:y", "y": "localhost:5000/x:y",
		} {
			img := open(t, store, in+":"+choice)
			require.Equal(t, want, img.config.Labels["ref"], "%s:%s", in, choice)
			if in == saved {
				require.Equal(t, digests[want], img.Digest())
				require.Equal(t, want, open(t, store, in+":"+img.Digest()).config.Labels["ref"])
			}
		}
		for choice, want := range map[string]string{
			":v1": "there are 2 images: choose one with a tag: ", "": "there are 5 images: choose one with a tag: ", ":debian:13": `there is no image "debian:13": there is `, ":UPPER": `there is no image "UPPER": there is `,
		} {
			_, err := Open(t.Context(), in+choice, WithStore(store))
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, "ghcr.io/owner/app:v1")
		}
	}
	_, err = Open(t.Context(), saved+".gone:debian:12", WithStore(store))
	require.ErrorIs(t, err, os.ErrNotExist)

	t.Chdir(filepath.Dir(saved))
	for _, ref := range []string{filepath.Base(saved) + ":debian:12", "./" + filepath.Base(saved) + ":debian:12"} {
		img, err := Open(t.Context(), ref, WithStore(store))
		if strings.HasPrefix(ref, "./") {
			require.NoError(t, err)
			require.NoError(t, img.Close())
		} else {
			require.ErrorContains(t, err, `for the file "save:1.tar" write ./save:1.tar:debian:12`)
		}
	}

	var long []string
	for i := range 50 {
		long = append(long, strings.Repeat("x", 1000)+fmt.Sprint(i))
	}
	none := noImage("x", long, func(name string) []string { return []string{name} })
	require.Less(t, len(none.Error()), maxText)
	require.ErrorContains(t, none, "and 40 more")
}
