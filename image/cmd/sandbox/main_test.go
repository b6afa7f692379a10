//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sandbox": main})
}

// TestRootlessScripts has an image with a busybox and an entry point at $WORK/layout.
func TestRootlessScripts(t *testing.T) {
	busybox := testkit.Busybox(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(env *testscript.Env) error {
		env.Setenv("XDG_CACHE_HOME", env.WorkDir+"/cache")
		return makeImage(env.WorkDir+"/layout", busybox)
	}})
}

func makeImage(dir string, busybox []byte) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := map[string][]byte{"bin/sh": busybox, "etc/passwd": []byte("app:x:7:8::/srv:/bin/sh\n")}
	for _, h := range []*tar.Header{
		{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/sh", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "bin/echo", Typeflag: tar.TypeSymlink, Linkname: "sh"},
		{Name: "bin/cat", Typeflag: tar.TypeSymlink, Linkname: "sh"},
	} {
		h.Size = int64(len(content[h.Name]))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(content[h.Name]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	f, err := img.ConfigFile()
	if err != nil {
		return err
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/bin/sh", "-c", `echo "$COLOR $0 $*"`}, Cmd: []string{"cmd"}, Env: []string{"COLOR=green"}}
	if img, err = mutate.ConfigFile(img, f); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img)
}

// A terminal shows the progress of each layer.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	b := &bars{out: &out}
	b.show(image.Progress{Layer: "a", Count: 2, Total: 1000})
	b.show(image.Progress{Layer: "a", Count: 2, Total: 1000, Bytes: 500})
	b.show(image.Progress{Layer: "b", Index: 1, Count: 2})
	b.show(image.Progress{Layer: "b", Index: 1, Count: 2, Bytes: 500})
	require.Contains(t, out.String(), "layer 1 of 2")
	require.Contains(t, out.String(), "50%")
	require.True(t, strings.Contains(out.String(), "layer 2 of 2"), out.String())
}
