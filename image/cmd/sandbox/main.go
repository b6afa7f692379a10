// Command sandbox is that of github.com/cellkit/sandbox/cmd/sandbox, with container images as
// roots:
//
//	sandbox run -image debian:bookworm-slim -- cat /etc/os-release
//	sandbox run -image ./layout
//
// What -image takes is what image.Open does. Without a command it is the image's own. Layers are
// kept in the user's directory for caches, sandbox/images in $XDG_CACHE_HOME or ~/.cache.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/cli"
)

func main() {
	cli.OpenImage = func(ctx context.Context, ref, user string) (cli.Image, error) {
		b := &bars{out: io.Discard}
		if term.IsTerminal(int(os.Stderr.Fd())) {
			b.out = os.Stderr
		}
		img, err := image.Open(ctx, ref, image.WithProgress(b.show))
		if err != nil {
			return nil, err
		}
		if left := img.LeftOut(); len(left) > 0 && b.out != io.Discard {
			fmt.Fprintf(os.Stderr, "sandbox: -image: device nodes were left out: %q\n", left[:min(len(left), 10)])
		}
		if user != "" {
			return img.As(user), nil
		}
		return img, nil
	}
	cli.Main()
}

// bars shows a progress bar for each layer that is being read.
type bars struct {
	out   io.Writer
	bar   *progressbar.ProgressBar
	layer string
}

func (b *bars) show(p image.Progress) {
	if p.Layer != b.layer {
		if b.bar != nil {
			_ = b.bar.Finish() // fails if it can't be written, and then nobody sees it
		}
		total := p.Total
		if total == 0 {
			total = -1 // not known
		}
		b.layer = p.Layer
		b.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(b.out), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish(),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetDescription(fmt.Sprintf("layer %d of %d", p.Index+1, p.Count)))
	}
	_ = b.bar.Set64(p.Bytes)
}
