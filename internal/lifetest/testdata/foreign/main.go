// Command foreign is a program of another author that requires the modules.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/queue"
)

func main() {
	ctx := context.Background()
	if _, err := image.Open(ctx, "./no-such-image"); !errors.Is(err, fs.ErrNotExist) {
		log.Fatal(err)
	}
	if _, err := queue.Open(ctx, "", queue.Lease(0)); !errors.As(err, new(*sandbox.OptionError)) {
		log.Fatal(err)
	}
	out, err := sandbox.New(sandbox.WithCommand("echo", "in a sandbox")).Output(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	if err := sandbox.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
