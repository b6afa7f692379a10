//go:build linux

package image

import (
	"context"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// threeLayers is a Debian system, and two small layers on top of it.
func threeLayers(b *testing.B, as func(testing.TB, []byte) v1.Layer) (ref string, bytes int64) {
	b.Helper()
	base := debian(b)
	img := imageOf(b, v1.Config{Env: []string{"PATH=/usr/bin:/bin"}}, as(b, base), asGzip(b, tarOf(b, file{name: "srv/a", content: "a"})), asGzip(b, tarOf(b, file{name: "srv/b", content: "b"})))
	return layoutOf(b, img), int64(len(base))
}

func BenchmarkUnpack(b *testing.B) {
	for name, as := range map[string]func(testing.TB, []byte) v1.Layer{"gzip": asGzip, "zstd": asZstd, "plain": asPlain} {
		b.Run(name, func(b *testing.B) {
			ref, bytes := threeLayers(b, as)
			b.SetBytes(bytes)
			for b.Loop() {
				b.StopTimer()
				store := newStore(b)
				b.StartTimer()
				img, err := Open(context.Background(), ref, WithStore(store))
				require.NoError(b, err)
				b.StopTimer()
				require.NoError(b, img.Close())
				_, err = store.Collect(0)
				require.NoError(b, err)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRun runs the same command from the host's root, from the image's three layers, as the
// first run, and in one of a hundred sandboxes of the same image, in turns.
func BenchmarkRun(b *testing.B) {
	ref, _ := threeLayers(b, asGzip)
	img := open(b, newStore(b), ref)
	command := sandbox.WithCommand("/usr/bin/true")
	host, next := sandbox.New(command), sandbox.New(img.Options()...).With(command)
	var many []*sandbox.Sandbox
	for range 100 {
		many = append(many, sandbox.New(img.Options()...).With(command))
	}
	took := map[string]time.Duration{}
	run := func(name string, s *sandbox.Sandbox) {
		began := time.Now()
		_, err := s.Run(context.Background())
		require.NoError(b, err)
		took[name] += time.Since(began)
	}
	run("boot", host)
	for i := 0; b.Loop(); i++ {
		run("host", host)
		run("next", next)
		run("first", sandbox.New(img.Options()...).With(command))
		run("of-100", many[i%len(many)])
	}
	for _, name := range []string{"host", "next", "first", "of-100"} {
		b.ReportMetric(float64(took[name].Microseconds())/float64(b.N), name+"-µs")
	}
}
