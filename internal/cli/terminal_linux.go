package cli

import (
	"context"
	"errors"
	"os"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/console"
)

// onTerminal runs the command on a terminal of its own, which this program's is connected to.
func onTerminal(ctx context.Context, s *settings, started func(*sandbox.Process)) (*sandbox.Result, error) {
	here, err := console.Open()
	if err != nil {
		return nil, err
	}
	// -env may say otherwise.
	opts := []sandbox.Option{sandbox.WithTerminal(here.Size()), sandbox.WithEnv(console.Env()...)}
	p, err := sandbox.New(append(opts, s.opts...)...).Start(ctx)
	if err != nil {
		return nil, err
	}
	started(p)
	if err := here.Connect(p.Terminal().(console.Connection), nil); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p.Wait()
}

func isTerminal(f *os.File) bool { return console.IsTerminal(f) }
