// Command foreign is a program of another author that requires both modules.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
)

func main() {
	ctx := context.Background()
	if _, err := image.Open(ctx, "./no-such-image"); !errors.Is(err, fs.ErrNotExist) {
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
