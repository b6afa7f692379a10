package image

import (
	"context"
	"fmt"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/service"
)

// Sandbox returns, for service.Open, a function that makes a sandbox of an image: of its Options,
// its Command and, if it has one, its StopSignal, with 10 s until the service is killed. It opens
// the image when it is called first, and reports the layers that it reads. The image stays open
// from then on, for all that start later. Many images begin as root to become another user, for
// which a run has no capabilities: service.With(sandbox.WithUser(999, 999)) has it begin as that.
//
//	pg := service.Open("pg", image.Sandbox("postgres:16"), service.Port(5432),
//		service.With(sandbox.WithEnv("POSTGRES_PASSWORD=x")))
func Sandbox(ref string, opts ...Option) func(ctx context.Context, report func(service.Progress)) (*sandbox.Sandbox, error) {
	turn := make(chan struct{}, 1) // holds one while somebody uses img
	var img *Image
	return func(ctx context.Context, report func(service.Progress)) (*sandbox.Sandbox, error) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return nil, fmt.Errorf("image: %s: %w", ref, context.Cause(ctx))
		}
		if img == nil {
			opened, err := Open(ctx, ref, append([]Option{WithProgress(func(p Progress) {
				report(service.Progress{What: fmt.Sprintf("layer %d of %d", p.Index+1, p.Count), Done: p.Bytes, Total: p.Total})
			})}, opts...)...)
			if err != nil {
				return nil, err
			}
			img = opened
		}
		opts := append(img.Options(), img.Command())
		if signal := spec.SignalOf(img.StopSignal()); signal != 0 {
			opts = append(opts, sandbox.WithStopSignal(signal, 10*time.Second))
		}
		return sandbox.New(opts...), nil
	}
}
